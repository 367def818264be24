"""A whole sequence as one vector."""

from dataclasses import dataclass
from typing import Literal

from vlmspec.compiler.emit.expr import call, method
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.embed import ParameterAttrs
from vlmspec.compiler.ops.registry import ModuleKind, Op, Operands, ShapeError, StepKind


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
    x = ops.require_width("x", ops.state.attrs.width, "the attention pool")
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
    infer=lambda ops: (TensorType(ops.state.attrs.shape),),
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


@dataclass(frozen=True, slots=True)
class PoolAttrs:
    """Which row of each sequence is taken, or that all are averaged; for `eos`, the id."""

    at: str
    token: Dim | None = None
    largest: Dim | None = None


def _infer_pool_tokens(ops: Operands):
    x = ops.tensor("x")
    if "ids" in ops.types and ops.tensor("ids").dtype != "int":
        raise ShapeError(f"`pool: eos` finds a token by its id, and is given {ops.tensor('ids')}")
    batch, _, width = x.shape
    return (x.with_shape(batch, width),)


def _emit_pool_tokens(node, scope):
    attrs = node.attrs
    if attrs.at == "mean":
        return method(scope.use(node["x"]), "mean", "1")
    if attrs.at == "eos":
        more = [] if attrs.largest is None else [scope.dim(attrs.largest)]
        operands = scope.use(node["x"]), scope.use(node["ids"])
        return call(scope.helper("pool_at_token"), *operands, scope.dim(attrs.token), *more)
    return scope.atom(f"{scope.name(node['x'])}[:, {0 if attrs.at == 'cls' else -1}]")


POOL = Op(
    "pool",
    "One vector for each sequence: its first (a class token), its last, the one at a token, or "
    "their mean.",
    infer=_infer_pool_tokens,
    emit=_emit_pool_tokens,
    attrs=PoolAttrs,
    results=("x",),
    inline=False,
)


class PoolArgs(Args):
    """Arguments of `pool`.

    `eos` is the first token with the id `token` among the ids that the component reads. Where that
    id is `largest`, the row's largest id is meant, as in configurations that were written with a
    wrong one.
    """

    at: Literal["cls", "last", "mean", "eos"]
    token: Size | None = None
    largest: Size | None = None


def _lower_pool_tokens(b, x, args: PoolArgs):
    if (args.at == "eos") != (args.token is not None):
        b.fail("VS102", "`token` is the id that `pool: eos` looks for; it takes one, others none")
    ids = b.component.stream if args.at == "eos" else None
    attrs = PoolAttrs(args.at, args.token, args.largest)
    return b.node("pool", {"x": x, "ids": ids}, attrs)


POOL_STEP = StepKind(
    "pool", POOL.doc, PoolArgs, _lower_pool_tokens, shorthand="at", component=("connector",)
)
