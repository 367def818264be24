"""A branch scaled channel by channel, or by one learned number."""

from typing import Literal

from vlmspec.compiler.emit.expr import Binary
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ops.args import Args
from vlmspec.compiler.ops.embed import add_parameter
from vlmspec.compiler.ops.registry import Op, Operands, StepKind


def _infer_layer_scale(ops: Operands):
    (width,) = ops.module.attrs.shape
    if width == Dim.const(1):
        return (ops.tensor("x"),)
    return (ops.require_width("x", width, "the layer scale"),)


LAYER_SCALE = Op(
    "layer_scale",
    "Product with a learned vector, one number for each channel, or with one learned number.",
    infer=_infer_layer_scale,
    emit=lambda node, scope: Binary("*", scope.use(node["x"]), scope.atom(scope.module(node))),
    module_kind="parameter",
)


class LayerScaleArgs(Args):
    """Arguments of `layer_scale`; `per` says what has a number of its own."""

    per: Literal["channel", "tensor"] = "channel"


def _lower_layer_scale(b, x, args: LayerScaleArgs):
    width = x.type.width if args.per == "channel" else Dim.const(1)
    return b.node("layer_scale", {"x": x}, module=add_parameter(b, (width,), "scale"))


LAYER_SCALE_STEP = StepKind(
    "layer_scale",
    LAYER_SCALE.doc,
    LayerScaleArgs,
    _lower_layer_scale,
    shorthand="per",
    roles={"scale": ""},
)
