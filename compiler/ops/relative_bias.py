"""Positions as a bias on the scores of attention, learned by distance."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.attention import cached_tokens, model_input
from vlmspec.compiler.ops.embed import EMBEDDING_MODULE, EmbeddingAttrs
from vlmspec.compiler.ops.registry import Op, Operands, StepKind


@dataclass(frozen=True, slots=True)
class RelativeBiasAttrs:
    """The distance from which on all are alike, and whether a query sees only what is before it."""

    max_distance: Dim
    causal: bool


def _infer_relative_bias(ops: Operands):
    x, causal = ops.tensor("x"), ops.attrs.causal
    batch, tokens = x.shape[:2]
    keys = Dim.sym("keys") if causal else tokens
    return (TensorType((batch, ops.state.attrs.width, tokens, keys)),)


def _emit_relative_bias(node, scope):
    operands = [scope.use(node["x"]), scope.atom(f"{scope.module(node)}.weight")]
    operands.append(scope.use(node["mask"]) if node.get("mask") else scope.atom("None"))
    name = "relative_bias"
    if node.attrs.causal:
        name = "causal_relative_bias"
        operands.append(scope.use(node["past"]))
    return call(scope.helper(name), *operands, scope.dim(node.attrs.max_distance))


RELATIVE_BIAS = Op(
    "relative_bias",
    "A learned bias for each head and each bucket of distances (Raffel et al., 2020), with what "
    "must not be seen masked.",
    infer=_infer_relative_bias,
    emit=_emit_relative_bias,
    attrs=RelativeBiasAttrs,
    module_kind="embedding",
    bears=frozenset({"mask"}),
    results=("bias",),
    inline=False,
)


class RelativeBiasArgs(Args):
    """Arguments of `relative_bias`; `mask` is a named value, 1 for tokens and 0 for padding."""

    num_heads: Size
    num_buckets: Size
    max_distance: Size
    causal: bool = False
    mask: str | None = None


def _lower_relative_bias(b, x, args: RelativeBiasArgs):
    attrs = EmbeddingAttrs(args.num_buckets, args.num_heads)
    module = b.module("embedding", attrs, "table", EMBEDDING_MODULE.shapes(attrs))
    operands = {"x": x, "mask": None if args.mask is None else b.value(args.mask)}
    if args.causal:
        operands["mask"] = model_input(b.component, "attention_mask")
        operands["past"] = cached_tokens(b.component)
    bias = RelativeBiasAttrs(args.max_distance, args.causal)
    return b.node("relative_bias", operands, bias, module=module)


RELATIVE_BIAS_STEP = StepKind(
    "relative_bias",
    RELATIVE_BIAS.doc,
    RelativeBiasArgs,
    _lower_relative_bias,
    roles={"table": ""},
)
