"""Text encoders and query transformers: learned queries, position tables, masks of padding."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import Binary, call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.attention import token_positions
from vlmspec.compiler.ops.embed import EMBEDDING_MODULE, EmbeddingAttrs, add_parameter, ranked
from vlmspec.compiler.ops.registry import Op, Operands, StepKind


def _infer_queries(ops: Operands):
    *_, count, width = ops.state.attrs.shape
    x = ops.require_width("x", width, "the learned queries")
    batch, tokens, _ = x.shape
    return (x.with_shape(batch, tokens + count, width),)


def _emit_queries(node, scope):
    x = scope.name(node["x"])
    return call("torch.cat", f"[{scope.module(node)}.expand({x}.shape[0], -1, -1), {x}]", dim="1")


PREPEND_QUERIES = Op(
    "prepend_queries",
    "Learned queries in front of each sequence (Li et al., 2023).",
    infer=_infer_queries,
    emit=_emit_queries,
    module_kind="parameter",
    results=("x",),
    inline=False,
)


class QueriesArgs(Args):
    """Arguments of `prepend_queries`; `rank` counts the dimensions in the checkpoint, leading ones
    included."""

    count: Size
    rank: int = 2


def _lower_queries(b, x, args: QueriesArgs):
    module = add_parameter(b, ranked(args.rank, args.count, x.type.width), "queries")
    return b.node("prepend_queries", {"x": x}, module=module)


PREPEND_QUERIES_STEP = StepKind(
    "prepend_queries",
    PREPEND_QUERIES.doc,
    QueriesArgs,
    _lower_queries,
    shorthand="count",
    roles={"queries": ""},
)


def _infer_positions(ops: Operands):
    return (ops.require_width("x", ops.state.attrs.width, "the position table"),)


def _emit_positions(node, scope):
    x = scope.name(node["x"])
    table, tokens = f"{scope.module(node)}.weight", f"{x}.shape[1]"
    if node.get("positions") is not None:
        return Binary(
            "+", scope.use(node["x"]), call(scope.module(node), scope.use(node["positions"]))
        )
    return Binary("+", scope.use(node["x"]), scope.atom(f"{table}[: {tokens}]"))


POSITION_TABLE = Op(
    "position_table",
    "A learned vector added at each position, from a table for sequences of any length up to its "
    "own.",
    infer=_infer_positions,
    emit=_emit_positions,
    module_kind="embedding",
    results=("x",),
    inline=False,
)


class PositionTableArgs(Args):
    """Arguments of `position_table`: how many positions it has, and whether it is for the tokens
    of a decoder, whose positions count on from the cache.
    """

    rows: Size
    cached: bool = False


def _lower_position_table(b, x, args: PositionTableArgs):
    attrs = EmbeddingAttrs(args.rows, x.type.width)
    module = b.module("embedding", attrs, "table", EMBEDDING_MODULE.shapes(attrs))
    positions = token_positions(b.component) if args.cached else None
    return b.node("position_table", {"x": x, "positions": positions}, module=module)


POSITION_TABLE_STEP = StepKind(
    "position_table",
    POSITION_TABLE.doc,
    PositionTableArgs,
    _lower_position_table,
    shorthand="rows",
    roles={"table": ""},
)


@dataclass(frozen=True, slots=True)
class PaddingMaskAttrs:
    """How many keys stand before those of the mask; all of them are seen."""

    before: Dim


def _infer_padding_mask(ops: Operands):
    mask = ops.tensor("mask")
    batch, keys = mask.shape
    one = Dim.const(1)
    shape = (batch, one, one, keys + ops.attrs.before)
    return (TensorType(shape, "bool", nullable=mask.nullable),)


def _emit_padding_mask(node, scope):
    before = node.attrs.before
    more = [] if before == Dim.const(0) else [scope.dim(before)]
    return call(scope.helper("padding_mask"), scope.use(node["mask"]), *more)


PADDING_MASK = Op(
    "padding_mask",
    "Which keys every query may see: those that are not padding, and the ones before them.",
    infer=_infer_padding_mask,
    emit=_emit_padding_mask,
    attrs=PaddingMaskAttrs,
    bears=frozenset({"mask"}),
    results=("mask",),
    inline=False,
)


class PaddingMaskArgs(Args):
    """Arguments of `padding_mask`: a named value, 1 for tokens and 0 for padding, and how many keys
    stand before them."""

    mask: str
    before: Size = Dim.const(0)


PADDING_MASK_STEP = StepKind(
    "padding_mask",
    PADDING_MASK.doc,
    PaddingMaskArgs,
    lambda b, x, args: b.node(
        "padding_mask", {"mask": b.value(args.mask)}, PaddingMaskAttrs(args.before)
    ),
    shorthand="mask",
)
