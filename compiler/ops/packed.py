"""Images of all sizes in one packed sequence: patches that the processor cut, segments, windows,
positions in the grid."""

from dataclasses import dataclass
from typing import Literal

from vlmspec.compiler.emit.expr import call, method
from vlmspec.compiler.emit.names import base_name
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param
from vlmspec.compiler.ir.types import StateType, TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.registry import ModuleKind, Op, Operands, ShapeError, StepKind

PATCHES = Dim.sym("patches")


@dataclass(frozen=True, slots=True)
class PackedPatchAttrs:
    """Width of the result, and shape of one patch: channels, frames where it has several, rows,
    columns."""

    width: Dim
    patch: tuple[Dim, ...]
    bias: bool = False

    @property
    def numbers(self) -> Dim:
        total = Dim.const(1)
        for size in self.patch:
            total = total * size
        return total


def _packed_patch_shapes(attrs: PackedPatchAttrs):
    return {"weight": (attrs.width, *attrs.patch)} | (
        {"bias": (attrs.width,)} if attrs.bias else {}
    )


def _construct_packed_patch(module, scope):
    channels, *extent = (scope.dim(d) for d in module.attrs.patch)
    options = {} if module.attrs.bias else {"bias": "False"}
    kernel = f"({', '.join(extent)})"
    width = scope.dim(module.attrs.width)
    return call(f"nn.Conv{len(extent)}d", channels, width, kernel, **options)


PACKED_PATCH_MODULE = ModuleKind(
    "packed_patch_embed", PackedPatchAttrs, _packed_patch_shapes, _construct_packed_patch
)


def _infer_packed_patch(ops: Operands):
    x = ops.require_width("x", ops.state.attrs.numbers, f"`{ops.state.name}`")
    return (x.with_width(ops.state.attrs.width),)


def _emit_packed_patch(node, scope):
    module = scope.module(node)
    bias = [f"{module}.bias"] if scope.graph.module(node.module).attrs.bias else []
    scope.comment("each row is a patch")
    return call("F.linear", scope.use(node["x"]), f"{module}.weight.flatten(1)", *bias)


PACKED_PATCH_EMBED = Op(
    "packed_patch_embed",
    "Patches that the processor has cut out and flattened, each mapped to a vector.",
    infer=_infer_packed_patch,
    emit=_emit_packed_patch,
    module_kind="packed_patch_embed",
    results=("x",),
    inline=False,
)


class PackedPatchArgs(Args):
    """Arguments of `packed_patch_embed`."""

    width: Size
    channels: Size
    patch_size: Size
    frames: Size | None = None
    bias: bool = False


def _lower_packed_patch(b, x, args: PackedPatchArgs):
    frames = () if args.frames is None else (args.frames,)
    patch = (args.channels, *frames, args.patch_size, args.patch_size)
    attrs = PackedPatchAttrs(args.width, patch, args.bias)
    shapes = _packed_patch_shapes(attrs)
    params = tuple(Param(p, s, (b.weights.key("patch", p),)) for p, s in shapes.items())
    b.graph.add_module(Module(b.name, "packed_patch_embed", attrs, params, b.span))
    return b.node("packed_patch_embed", {"x": x}, module=b.name)


PACKED_PATCH_STEP = StepKind(
    "packed_patch_embed",
    PACKED_PATCH_EMBED.doc,
    PackedPatchArgs,
    _lower_packed_patch,
    roles={"patch": ""},
    module="patch_embed",
)


# ------------------------------------------------------------------------------- what the plan says


@dataclass(frozen=True, slots=True)
class GridAttrs:
    """How patches lie together: `merge` to a cell's side, `window` cells to a window's; `rows`
    counts the results."""

    per: str = "frame"
    merge: Dim | None = None
    window: Dim | None = None
    rows: Dim | None = None


def _grid_call(function):
    """Emission of a function of the grid and of those attributes that are set."""

    def emit(node, scope):
        name = function(node.attrs) if callable(function) else function
        given = [scope.dim(d) for d in (node.attrs.merge, node.attrs.window) if d is not None]
        given = [scope.use(v) for v in [node.get("merges")] if v is not None] + given
        return call(scope.helper(name), scope.use(node["grid"]), *given)

    return emit


def _infer_runs(ops: Operands):
    _require_grid(ops)
    return (StateType("runs"),)


def _infer_rows(*rest: int):
    def infer(ops: Operands):
        _require_grid(ops)
        return (TensorType((ops.attrs.rows, *map(Dim.const, rest)), "int"),)

    return infer


def _require_grid(ops: Operands) -> None:
    grid = ops.tensor("grid")
    if grid.dtype != "int" or grid.width.as_int() != 3:
        raise ShapeError(f"a grid is int[images, 3]: frames, rows and columns; this is {grid}")


SEGMENTS = Op(
    "segments",
    "Which patches of a packed sequence belong together, from the grid of each image: runs of "
    "segments of equal length.",
    infer=_infer_runs,
    emit=_grid_call(lambda attrs: f"{attrs.per}_runs"),
    attrs=GridAttrs,
    results=("segments",),
    host=True,
    inline=False,
)
WINDOW_ORDER = Op(
    "window_order",
    "The cells of each window after those of the window before.",
    infer=_infer_rows(),
    emit=_grid_call("window_order"),
    attrs=GridAttrs,
    results=("order",),
    host=True,
    inline=False,
)
GRID_POSITIONS = Op(
    "grid_positions",
    "Row and column of every patch of a packed sequence.",
    infer=_infer_rows(2),
    emit=_grid_call("grid_positions"),
    attrs=GridAttrs,
    results=("places",),
    host=True,
    inline=False,
)


@dataclass(frozen=True, slots=True)
class PaddedAttrs:
    """Side of a patch of images that are padded to one size."""

    patch_size: Dim


def _infer_image_grid(ops: Operands):
    return (TensorType((ops.tensor("x").shape[0], Dim.const(3)), "int"),)


IMAGE_GRID = Op(
    "image_grid",
    "Rows and columns of patches of each image, from the sizes of images that are padded to one "
    "size.",
    infer=_infer_image_grid,
    emit=lambda node, scope: call(
        scope.helper("image_grid"),
        scope.use(node["x"]),
        scope.use(node["sizes"]),
        scope.dim(node.attrs.patch_size),
    ),
    attrs=PaddedAttrs,
    results=("grid",),
    host=True,
    inline=False,
)
PATCH_INDEX = Op(
    "patch_index",
    "Which patches of padded images are not padding.",
    infer=lambda ops: (TensorType((PATCHES,), "int"),),
    emit=lambda node, scope: call(
        scope.helper("patch_index"),
        scope.use(node["x"]),
        scope.use(node["grid"]),
        scope.dim(node.attrs.patch_size),
    ),
    attrs=PaddedAttrs,
    results=("index",),
    host=True,
    inline=False,
)


class PaddedArgs(Args):
    """Arguments of `image_grid` and `patch_index`."""

    patch_size: Size


def _lower_image_grid(b, sizes, args: PaddedArgs):
    operands = {"x": b.component.stream, "sizes": sizes}
    return b.plan("image_grid", operands, PaddedAttrs(args.patch_size), b.name)


def _lower_patch_index(b, grid, args: PaddedArgs):
    operands = {"x": b.component.stream, "grid": grid}
    return b.plan("patch_index", operands, PaddedAttrs(args.patch_size), b.name)


IMAGE_GRID_STEP = StepKind(
    "image_grid",
    IMAGE_GRID.doc,
    PaddedArgs,
    _lower_image_grid,
    shorthand="patch_size",
    aside=True,
)
PATCH_INDEX_STEP = StepKind(
    "patch_index",
    PATCH_INDEX.doc,
    PaddedArgs,
    _lower_patch_index,
    shorthand="patch_size",
    aside=True,
)


class SegmentArgs(Args):
    """Arguments of `segments`."""

    per: Literal["frame", "clip", "window"] = "frame"
    merge: Size | None = None
    window: Size | None = None


def _lower_segments(b, grid, args: SegmentArgs):
    windows = args.per == "window"
    if windows and (args.merge is None or args.window is None):
        b.fail("VS102", "segments of one window each need `merge` and `window`")
    sizes = (args.merge, args.window) if windows else (None, None)
    return b.plan("segments", {"grid": grid}, GridAttrs(args.per, *sizes), b.name)


SEGMENTS_STEP = StepKind(
    "segments", SEGMENTS.doc, SegmentArgs, _lower_segments, shorthand="per", aside=True
)


class WindowArgs(Args):
    """Arguments of `window_order`."""

    merge: Size
    window: Size


def _packed_rows(b) -> Dim:
    """The number of packed patches: the rows of the component's stream, if that is packed."""
    shape = b.component.stream.type.shape
    return shape[0] if len(shape) == 2 else PATCHES


def _lower_window_order(b, grid, args: WindowArgs):
    rows = _packed_rows(b) // (args.merge * args.merge)
    attrs = GridAttrs("window", args.merge, args.window, rows)
    return b.plan("window_order", {"grid": grid}, attrs, b.name)


WINDOW_ORDER_STEP = StepKind(
    "window_order", WINDOW_ORDER.doc, WindowArgs, _lower_window_order, aside=True
)


class GridPositionArgs(Args):
    """Arguments of `grid_positions`: the side of a cell, or the name of a value with that of each
    image."""

    merge: Size = Dim.const(1)
    merges: str | None = None


def _lower_grid_positions(b, grid, args: GridPositionArgs):
    rows = _packed_rows(b)
    if args.merges is None:
        attrs = GridAttrs(merge=args.merge, rows=rows)
        return b.plan("grid_positions", {"grid": grid}, attrs, b.name)
    operands = {"grid": grid, "merges": b.value(args.merges)}
    return b.plan("grid_positions", operands, GridAttrs(rows=rows), b.name)


GRID_POSITIONS_STEP = StepKind(
    "grid_positions",
    GRID_POSITIONS.doc,
    GridPositionArgs,
    _lower_grid_positions,
    shorthand="merge",
    aside=True,
)


CELL_MIDDLES = Op(
    "cell_middles",
    "The patches in the middle of each cell of a packed sequence.",
    infer=_infer_rows(4),
    emit=_grid_call("cell_middles"),
    attrs=GridAttrs,
    results=("middles",),
    host=True,
    inline=False,
)
KEPT_INDEX = Op(
    "kept_index",
    "Places of the tokens that a mask keeps; None where the mask is absent.",
    infer=lambda ops: (TensorType((Dim.sym("kept_tokens"),), "int", nullable=True),),
    emit=lambda node, scope: call(scope.helper("kept_index"), scope.use(node["mask"])),
    results=("kept_tokens",),
    bears=frozenset({"mask"}),
    host=True,
    inline=False,
)


# ------------------------------------------------------------------------------- order and
# attention


def _infer_pool_cells(ops: Operands):
    return (ops.tensor("x").with_shape(ops.tensor("middles").shape[0], ops.tensor("x").width),)


POOL_CELLS = Op(
    "pool_cells",
    "Each cell of a packed sequence as one token, as a bilinear reduction gives it.",
    infer=_infer_pool_cells,
    emit=lambda node, scope: method(
        scope.atom(f"{scope.name(node['x'])}[{scope.use(node['middles']).flat()}]"), "mean", "1"
    ),
    results=("x",),
    inline=False,
)


class PoolCellsArgs(Args):
    """Arguments of `pool_cells`: names of the grid, and of the side of a cell of each image."""

    grid: str
    merges: str


def _lower_pool_cells(b, x, args: PoolCellsArgs):
    operands = {"grid": b.value(args.grid), "merges": b.value(args.merges)}
    attrs = GridAttrs(rows=Dim.sym("cells"))
    return b.node("pool_cells", {"x": x, "middles": b.plan("cell_middles", operands, attrs)})


POOL_CELLS_STEP = StepKind("pool_cells", POOL_CELLS.doc, PoolCellsArgs, _lower_pool_cells)


SELECT_TOKENS = Op(
    "select_tokens",
    "Some tokens of a packed sequence; all of them where nothing says which.",
    infer=lambda ops: (ops.tensor("x").with_shape(Dim.sym("kept_tokens"), ops.tensor("x").width),),
    emit=lambda node, scope: call(
        scope.helper("select_tokens"), scope.use(node["x"]), scope.use(node["index"])
    ),
    results=("x",),
    inline=False,
)


class SelectArgs(Args):
    """Arguments of `select_tokens`: the name of a mask, which may be absent."""

    mask: str


def _lower_select(b, x, args: SelectArgs):
    index = b.plan("kept_index", {"mask": b.value(args.mask)})
    return b.node("select_tokens", {"x": x, "index": index})


SELECT_TOKENS_STEP = StepKind(
    "select_tokens", SELECT_TOKENS.doc, SelectArgs, _lower_select, shorthand="mask"
)


@dataclass(frozen=True, slots=True)
class PackAttrs:
    """Nothing: the index says it all."""


def _infer_pack(ops: Operands):
    x = ops.tensor("x")
    return (x.with_shape(ops.tensor("index").shape[0], *x.shape[2:]),)


PACK = Op(
    "pack",
    "The patches of several images in one sequence, without padding.",
    infer=_infer_pack,
    emit=lambda node, scope: scope.atom(
        f"{method(scope.use(node['x']), 'flatten', '0', '1').flat()}"
        f"[{scope.use(node['index']).flat()}]"
    ),
    attrs=PackAttrs,
    results=("x",),
    inline=False,
)


class PackArgs(Args):
    """Arguments of `pack`: the name of the index."""

    index: str


PACK_STEP = StepKind(
    "pack",
    PACK.doc,
    PackArgs,
    lambda b, x, args: b.node("pack", {"x": x, "index": b.value(args.index)}, PackAttrs()),
    shorthand="index",
)


@dataclass(frozen=True, slots=True)
class ReorderAttrs:
    """How many rows move together, and whether they go back to where they came from."""

    group: Dim
    inverse: bool = False


def _emit_reorder(node, scope):
    x, order = scope.use(node["x"]), scope.use(node["order"])
    if node.attrs.inverse:
        order = method(order, "argsort")
    if node.attrs.group == Dim.const(1):
        return scope.atom(f"{scope.name(node['x'])}[{order.flat()}]")
    return call(scope.helper("reorder"), x, order, scope.dim(node.attrs.group))


REORDER = Op(
    "reorder",
    "Rows of a packed sequence in another order, in groups that stay together.",
    infer=lambda ops: (ops.tensor("x"),),
    emit=_emit_reorder,
    attrs=ReorderAttrs,
    results=("x",),
    inline=False,
)


class ReorderArgs(Args):
    """Arguments of `reorder`."""

    order: str
    group: Size = Dim.const(1)
    inverse: bool = False


def _lower_reorder(b, x, args: ReorderArgs):
    operands = {"x": x, "order": b.value(args.order)}
    attrs = ReorderAttrs(args.group, args.inverse)
    return b.node("reorder", operands, attrs, hints=(base_name(x.name),))


REORDER_STEP = StepKind("reorder", REORDER.doc, ReorderArgs, _lower_reorder, shorthand="order")


@dataclass(frozen=True, slots=True)
class FoldAttrs:
    """How many tokens become one."""

    count: Dim


def _infer_fold(ops: Operands):
    x, count = ops.tensor("x"), ops.attrs.count
    return (x.with_shape(*x.shape[:-2], x.shape[-2] // count, x.width * count),)


FOLD_TOKENS = Op(
    "fold_tokens",
    "Tokens that follow each other, side by side in one.",
    infer=_infer_fold,
    emit=lambda node, scope: method(
        method(scope.use(node["x"]), "unflatten", "-2", f"(-1, {scope.dim(node.attrs.count)})"),
        "flatten",
        "-2",
    ),
    attrs=FoldAttrs,
    results=("x",),
)


class FoldArgs(Args):
    """Arguments of `fold_tokens`."""

    count: Size


FOLD_TOKENS_STEP = StepKind(
    "fold_tokens",
    FOLD_TOKENS.doc,
    FoldArgs,
    lambda b, x, args: b.node("fold_tokens", {"x": x}, FoldAttrs(args.count)),
    shorthand="count",
    component=("connector",),
)


def _infer_packed_attention(ops: Operands):
    q, k, v = (ops.tensor(role) for role in "qkv")
    ops.require_same(q.width, k.width, "queries and keys have heads of different widths")
    ops.require_same(q.shape[-2], k.shape[-2], "queries and keys have different numbers of heads")
    return (q.with_shape(*q.shape[:-1], v.width),)


PACKED_ATTENTION = Op(
    "packed_attention",
    "Scaled dot-product attention within the segments of a packed sequence.",
    infer=_infer_packed_attention,
    emit=lambda node, scope: call(
        scope.helper("segment_attention"),
        *(scope.use(node[role]) for role in ("q", "k", "v", "segments")),
    ),
    inline=False,
)
