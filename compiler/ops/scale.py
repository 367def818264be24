"""A branch scaled channel by channel."""

from vlmspec.compiler.emit.expr import Binary
from vlmspec.compiler.ops.args import NoArgs
from vlmspec.compiler.ops.embed import add_parameter
from vlmspec.compiler.ops.registry import Op, Operands, StepKind


def _infer_layer_scale(ops: Operands):
    return (ops.require_width("x", ops.state.attrs.shape[-1], "the layer scale"),)


LAYER_SCALE = Op(
    "layer_scale",
    "Product with a learned vector, one number for each channel (Touvron et al., CaiT, 2021).",
    infer=_infer_layer_scale,
    emit=lambda node, scope: Binary("*", scope.use(node["x"]), scope.atom(scope.module(node))),
    module_kind="parameter",
)
LAYER_SCALE_STEP = StepKind(
    "layer_scale",
    LAYER_SCALE.doc,
    NoArgs,
    lambda b, x, args: b.node(
        "layer_scale", {"x": x}, module=add_parameter(b, (x.type.width,), "scale")
    ),
    roles={"scale": ""},
)
