"""Images cut into tiles: which tiles are there, and their tokens in reading order with newlines
between rows."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Table, TensorType
from vlmspec.compiler.ops.args import Args, Rows, Size
from vlmspec.compiler.ops.registry import Op, Operands, ShapeError, StepKind

VIEWS, VISUAL, IMAGES = (Dim.sym(name) for name in ("views", "visual", "images"))


@dataclass(frozen=True, slots=True)
class TilesAttrs:
    """The grids that there are, and the side of a tile."""

    resolutions: Table
    tile: Dim


def _grid_operands(node, scope) -> list:
    attrs = node.attrs
    return [scope.use(node["sizes"]), scope.table(attrs.resolutions), scope.dim(attrs.tile)]


def _rows_option(node, scope) -> dict:
    rows = node.get("rows")
    return {} if rows is None else {"images_per_row": scope.use(rows)}


def _emit_tile_index(node, scope):
    slots = f"{scope.use(node['pixels']).flat()}.shape[1]"
    operands = [*_grid_operands(node, scope), slots]
    return call(scope.helper("present_tiles"), *operands, **_rows_option(node, scope))


TILE_INDEX = Op(
    "tile_index",
    "Which tiles of the images are there; the others are padding.",
    infer=lambda ops: (TensorType((VIEWS,), "int"),),
    emit=_emit_tile_index,
    attrs=TilesAttrs,
    results=("tile_index",),
    host=True,
)


def _infer_take(ops: Operands):
    x = ops.tensor("x")
    if len(x.shape) != 5:
        raise ShapeError(f"tiles are [images, tiles, channels, height, width], not {x}")
    return (x.with_shape(*ops.tensor("index").shape, *x.shape[2:]),)


TAKE_TILES = Op(
    "take_tiles",
    "The tiles that are there, of all images one after another.",
    infer=_infer_take,
    emit=lambda node, scope: call(
        scope.helper("take_tiles"), scope.use(node["x"]), scope.use(node["index"])
    ),
    results=("x",),
    inline=False,
)


class TilesArgs(Args):
    """Arguments of `take_tiles`; among its operands are `sizes` and, where batches have it,
    `rows`."""

    resolutions: Rows
    tile: Size


def _sizes(b) -> dict:
    """The operands that say how images are cut."""
    return {
        role: b.value(role) for role in ("sizes", "rows") if role == "sizes" or role in b.values
    }


def _lower_take(b, x, args: TilesArgs):
    attrs = TilesAttrs(args.resolutions, args.tile)
    index = b.plan("tile_index", {**_sizes(b), "pixels": x}, attrs)
    return b.node("take_tiles", {"x": x, "index": index})


TAKE_TILES_STEP = StepKind(
    "take_tiles",
    TAKE_TILES.doc,
    TilesArgs,
    _lower_take,
    component=("connector",),
    reads=("sizes", "rows"),
)


@dataclass(frozen=True, slots=True)
class PackAttrs:
    """The grids, the side of a tile in pixels and in tokens, how borders are rounded, and from
    where maps are shrunk."""

    resolutions: Table
    tile: Dim
    side: Dim
    digits: int | None = None
    most: int | None = None


COUNTS = TensorType((IMAGES,), "int")


def _emit_pack_index(name: str):
    def emit(node, scope):
        attrs = node.attrs
        operands = [*_grid_operands(node, scope), scope.dim(attrs.side), repr(attrs.digits)]
        operands += [] if attrs.most is None else [repr(attrs.most)]
        return call(scope.helper(name), *operands, **_rows_option(node, scope))

    return emit


PACK_INDEX = Op(
    "pack_index",
    "The order of visual tokens: each whole image, then its tiles row by row; and how many each "
    "image has.",
    infer=lambda ops: (TensorType((VISUAL,), "int"), COUNTS),
    emit=_emit_pack_index("pack_index"),
    attrs=PackAttrs,
    results=("token_index", "visual_counts"),
    host=True,
)
PACK_WEIGHTS = Op(
    "pack_weights",
    "The order of visual tokens where large images are shrunk: four sources of each, with their "
    "weights.",
    infer=lambda ops: (
        TensorType((VISUAL, Dim.const(4)), "int"),
        TensorType((VISUAL, Dim.const(4))),
        COUNTS,
    ),
    emit=_emit_pack_index("pack_weights"),
    attrs=PackAttrs,
    results=("token_sources", "token_weights", "visual_counts"),
    host=True,
)


@dataclass(frozen=True, slots=True)
class SideAttrs:
    """Tokens of a tile along each side."""

    side: Dim


def _infer_pack(ops: Operands):
    x = ops.tensor("x")
    ops.require_same(x.shape[-2], ops.attrs.side * ops.attrs.side, "a tile has other tokens")
    ops.require_same(x.width, ops.tensor("newline").width, "tokens and newline differ in width")
    return (x.with_shape(VISUAL, x.width),)


def _emit_pack(node, scope):
    roles = [r for r in ("x", "newline", "index", "weights") if node.get(r) is not None]
    name = "pack_tiles" if node.get("weights") is None else "pack_weighted_tiles"
    return call(scope.helper(name), *(scope.use(node[r]) for r in roles))


PACK_TILES = Op(
    "pack_tiles",
    "Visual tokens of tiled images in reading order, a newline after each row.",
    infer=_infer_pack,
    emit=_emit_pack,
    attrs=SideAttrs,
    results=("x",),
    inline=False,
)


class PackArgs(Args):
    """Arguments of `pack_tiles`.

    Among its operands are `sizes`, `newline` and, where batches have it, `rows`. `digits` are the
    decimals to which the
    extent of an image is rounded where its border is cut, `most` the tiles' worth of tokens above
    which a map is shrunk.
    """

    resolutions: Rows
    tile: Size
    side: Size
    digits: int | None = 7
    most: int | None = None


def _lower_pack(b, x, args: PackArgs):
    attrs = PackAttrs(args.resolutions, args.tile, args.side, args.digits, args.most)
    operands = {"x": x, "newline": b.value("newline")}
    if args.most is None:
        operands["index"], counts = b.plan("pack_index", _sizes(b), attrs)
    else:
        operands["index"], operands["weights"], counts = b.plan("pack_weights", _sizes(b), attrs)
    b.component.visual_counts = counts
    return b.node("pack_tiles", operands, SideAttrs(args.side))


PACK_TILES_STEP = StepKind(
    "pack_tiles",
    PACK_TILES.doc,
    PackArgs,
    _lower_pack,
    component=("connector",),
    reads=("sizes", "rows", "newline"),
)
