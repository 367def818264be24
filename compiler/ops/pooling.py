"""A whole sequence as one vector."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.embed import ParameterAttrs
from vlmspec.compiler.ops.registry import ModuleKind, Op, Operands, StepKind


@dataclass(frozen=True, slots=True)
class MultiheadAttrs:
    """Width and number of heads of torch's own attention module."""

    width: Dim
    num_heads: Dim


def _multihead_shapes(attrs: MultiheadAttrs):
    width = attrs.width
    return {
        "in_proj_weight": (width * 3, width),
        "in_proj_bias": (width * 3,),
        "out_proj.weight": (width, width),
        "out_proj.bias": (width,),
    }


MULTIHEAD_MODULE = ModuleKind(
    "multihead_attention",
    MultiheadAttrs,
    _multihead_shapes,
    lambda module, scope: call(
        "nn.MultiheadAttention",
        scope.dim(module.attrs.width),
        scope.dim(module.attrs.num_heads),
        batch_first="True",
    ),
)


def _infer_pool(ops: Operands):
    x = ops.require_width("x", ops.module.attrs.width, "the attention pool")
    ops.require_same(ops.tensor("probe").width, x.width, "query and sequence differ in width")
    return (x.with_shape(x.shape[0], Dim.const(1), x.width),)


def _emit_pool(node, scope):
    x = scope.name(node["x"])
    probe = f"{scope.use(node['probe']).flat()}.expand({x}.shape[0], 1, -1)"
    pooled = call(scope.module(node), probe, x, x, need_weights="False")
    return scope.atom(f"{pooled.flat()}[0]")


ATTENTION_POOL = Op(
    "attention_pool",
    "One learned query that attends to the whole sequence.",
    infer=_infer_pool,
    emit=_emit_pool,
    module_kind="multihead_attention",
    results=("x",),
    inline=False,
)


PARAMETER = Op(
    "parameter",
    "A learned tensor itself.",
    infer=lambda ops: (TensorType(ops.module.attrs.shape),),
    emit=lambda node, scope: scope.atom(scope.module(node)),
    module_kind="parameter",
)


class AttentionPoolArgs(Args):
    """Arguments of `attention_pool`."""

    num_heads: Size


def _lower_pool(b, x, args: AttentionPoolArgs):
    width = x.type.width
    shape = (Dim.const(1), Dim.const(1), width)
    probe = f"{b.name}_probe"
    param = Param("", shape, (b.weights.key("probe"),))
    b.graph.add_module(Module(probe, "parameter", ParameterAttrs(shape), (param,), b.span))
    query = b.node("parameter", {}, module=probe)
    attrs = MultiheadAttrs(width, args.num_heads)
    module = b.module("multihead_attention", attrs, "attention", _multihead_shapes(attrs))
    return b.node("attention_pool", {"x": x, "probe": query}, module=module)


ATTENTION_POOL_STEP = StepKind(
    "attention_pool",
    ATTENTION_POOL.doc,
    AttentionPoolArgs,
    _lower_pool,
    shorthand="num_heads",
    roles={"probe": "probe", "attention": "attention"},
)
