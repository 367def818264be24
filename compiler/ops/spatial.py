"""Maps of vectors: cells of neighbours put together."""

from dataclasses import dataclass
from typing import Literal

from vlmspec.compiler.emit.expr import call, method
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.registry import Op, Operands, StepKind


@dataclass(frozen=True, slots=True)
class PixelShuffleAttrs:
    """Side of a cell, what runs slowest in the vector of one, and the map's rows where it is not
    square."""

    factor: int
    order: str = "rows"
    rows: Dim | None = None


def _infer_pixel_shuffle(ops: Operands):
    x, area = ops.tensor("x"), Dim.const(ops.attrs.factor**2)
    images, tokens, width = x.shape
    return (x.with_shape(images, tokens // area, width * area),)


def _emit_pixel_shuffle(node, scope):
    attrs = node.attrs
    rows = [] if attrs.rows is None else [scope.dim(attrs.rows)]
    cells = call(scope.helper("cells"), scope.use(node["x"]), str(attrs.factor), *rows)
    if attrs.order == "columns":
        cells = method(cells, "transpose", "2", "3")
    elif attrs.order == "channels":
        cells = method(cells, "movedim", "-1", "2")
    return method(cells, "flatten", "2")


PIXEL_SHUFFLE = Op(
    "pixel_shuffle",
    "Each cell of factor x factor neighbours of a map as one vector (space to depth).",
    infer=_infer_pixel_shuffle,
    emit=_emit_pixel_shuffle,
    attrs=PixelShuffleAttrs,
    results=("x",),
    inline=False,
)


class PixelShuffleArgs(Args):
    """Arguments of `pixel_shuffle`.

    `order` is what runs slowest in a cell's vector: its `rows`, its `columns`, or the `channels` of
    what it is made of. A map
    is square unless `rows` says how many it has.
    """

    factor: int
    order: Literal["rows", "columns", "channels"] = "rows"
    rows: Size | None = None


def _lower_pixel_shuffle(b, x, args: PixelShuffleArgs):
    if args.factor < 1:
        b.fail("VS303", f"a cell of {args.factor} x {args.factor} holds nothing")
    attrs = PixelShuffleAttrs(args.factor, args.order, args.rows)
    return b.node("pixel_shuffle", {"x": x}, attrs)


PIXEL_SHUFFLE_STEP = StepKind(
    "pixel_shuffle",
    PIXEL_SHUFFLE.doc,
    PixelShuffleArgs,
    _lower_pixel_shuffle,
    shorthand="factor",
    component=("connector",),
)
