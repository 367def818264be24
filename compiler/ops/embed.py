"""From ids and pixels to vectors: token embedding, patch embedding, class token, position table."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import Binary, call, method
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.registry import ModuleKind, Op, Operands, ShapeError, StepKind


@dataclass(frozen=True, slots=True)
class EmbeddingAttrs:
    """Rows and width of a table, and the row of padding, which gets no gradient."""

    rows: Dim
    width: Dim
    padding: Dim | None = None


def _construct_embedding(module, scope):
    attrs = module.attrs
    padding = {} if attrs.padding is None else {"padding_idx": scope.dim(attrs.padding)}
    return call("nn.Embedding", scope.dim(attrs.rows), scope.dim(attrs.width), **padding)


EMBEDDING_MODULE = ModuleKind(
    "embedding",
    EmbeddingAttrs,
    lambda attrs: {"weight": (attrs.rows, attrs.width)},
    _construct_embedding,
)


def _infer_embedding(ops: Operands):
    ids = ops.tensor("ids")
    if ids.dtype != "int":
        raise ShapeError(f"an embedding looks up ids, and is given {ids}")
    return (TensorType((*ids.shape, ops.state.attrs.width)),)


EMBEDDING = Op(
    "embedding",
    "Rows of a table, by id.",
    infer=_infer_embedding,
    emit=lambda node, scope: call(scope.module(node), scope.use(node["ids"])),
    module_kind="embedding",
    results=("x",),
    inline=False,
)


class EmbeddingArgs(Args):
    """Arguments of `embedding`; with `tie` it shares the table of the component of that name.

    The row `padding` is not trained.
    """

    rows: Size
    width: Size
    tie: str | None = None
    padding: Size | None = None


def _lower_embedding(b, x, args: EmbeddingArgs):
    attrs = EmbeddingAttrs(args.rows, args.width, args.padding)
    if args.tie is None:
        module = b.module("embedding", attrs, "embedding", EMBEDDING_MODULE.shapes(attrs))
        return b.node("embedding", {"ids": x}, module=module)
    key, tied = b.weights.key("embedding", "weight"), f"{args.tie}.embed.weight"
    param = Param("weight", (args.rows, args.width), (key,), tied=tied)
    b.graph.add_module(Module(b.name, "embedding", attrs, (param,), b.span))
    return b.node("embedding", {"ids": x}, module=b.name)


EMBEDDING_STEP = StepKind(
    "embedding", EMBEDDING.doc, EmbeddingArgs, _lower_embedding, roles={"embedding": ""}
)


@dataclass(frozen=True, slots=True)
class PatchEmbedAttrs:
    """Channels, width and patch size of a patch embedding."""

    channels: Dim
    width: Dim
    patch_size: Dim
    bias: bool


def _patch_shapes(attrs: PatchEmbedAttrs):
    weight = (attrs.width, attrs.channels, attrs.patch_size, attrs.patch_size)
    return {"weight": weight} | ({"bias": (attrs.width,)} if attrs.bias else {})


def _construct_patch(module, scope):
    attrs = module.attrs
    patch = scope.dim(attrs.patch_size)
    options = {"stride": patch} | ({} if attrs.bias else {"bias": "False"})
    return call("nn.Conv2d", scope.dim(attrs.channels), scope.dim(attrs.width), patch, **options)


PATCH_EMBED_MODULE = ModuleKind("patch_embed", PatchEmbedAttrs, _patch_shapes, _construct_patch)


def _infer_patch(ops: Operands):
    x, attrs = ops.tensor("x"), ops.state.attrs
    if len(x.shape) != 4:
        raise ShapeError(f"patch_embed takes images [images, channels, height, width], not {x}")
    ops.require_same(x.shape[1], attrs.channels, "the number of channels differs")
    rows, columns = x.shape[2] // attrs.patch_size, x.shape[3] // attrs.patch_size
    return (x.with_shape(x.shape[0], rows * columns, attrs.width),)


def _emit_patch(node, scope):
    patches = call(scope.module(node), scope.use(node["x"]))
    return method(method(patches, "flatten", "2"), "transpose", "1", "2")


PATCH_EMBED = Op(
    "patch_embed",
    "Non-overlapping patches of an image, each mapped to a vector, in reading order.",
    infer=_infer_patch,
    emit=_emit_patch,
    module_kind="patch_embed",
    results=("x",),
    inline=False,
)


class PatchEmbedArgs(Args):
    """Arguments of `patch_embed`."""

    width: Size
    patch_size: Size
    bias: bool = True


def _lower_patch(b, x, args: PatchEmbedArgs):
    if len(x.type.shape) != 4:
        b.fail("VS305", f"patch_embed takes images [images, channels, height, width], not {x.type}")
    attrs = PatchEmbedAttrs(x.type.shape[1], args.width, args.patch_size, args.bias)
    module = b.module("patch_embed", attrs, "patch", _patch_shapes(attrs))
    return b.node("patch_embed", {"x": x}, module=module)


PATCH_EMBED_STEP = StepKind(
    "patch_embed", PATCH_EMBED.doc, PatchEmbedArgs, _lower_patch, roles={"patch": ""}
)


@dataclass(frozen=True, slots=True)
class ParameterAttrs:
    """Shape of a bare parameter."""

    shape: tuple[Dim, ...]


def _construct_parameter(module, scope):
    shape = ", ".join(scope.dim(d) for d in module.attrs.shape)
    drawn = call("nn.init.normal_", call("torch.empty", shape), std="0.02")
    return call("nn.Parameter", drawn)


PARAMETER_MODULE = ModuleKind(
    "parameter", ParameterAttrs, lambda attrs: {"": attrs.shape}, _construct_parameter
)


def add_parameter(b, shape: tuple[Dim, ...], role: str) -> str:
    """Declare a bare parameter whose checkpoint tensor is the role's key itself."""
    param = Param("", shape, (b.weights.key(role),))
    b.graph.add_module(Module(b.name, "parameter", ParameterAttrs(shape), (param,), b.span))
    return b.name


def ranked(rank: int, *sizes: Dim) -> tuple[Dim, ...]:
    """A shape of `rank` dimensions: ones, then the sizes."""
    return (*[Dim.const(1)] * (rank - len(sizes)), *sizes)


def _infer_prepend(ops: Operands):
    x = ops.require_width("x", ops.state.attrs.shape[-1], "the prepended token")
    *lead, tokens, width = x.shape
    return (x.with_shape(*lead, tokens + 1, width),)


def _emit_prepend(node, scope):
    x = scope.name(node["x"])
    if len(node["x"].type.shape) > 3:
        token = f"{scope.module(node)}.expand(*{x}.shape[:-2], 1, -1)"
        return call("torch.cat", f"[{token}, {x}]", dim="-2")
    token = f"{scope.module(node)}.expand({x}.shape[0], 1, -1)"
    return call("torch.cat", f"[{token}, {x}]", dim="1")


PREPEND_TOKEN = Op(
    "prepend_token",
    "One learned vector in front of each sequence (a class token).",
    infer=_infer_prepend,
    emit=_emit_prepend,
    module_kind="parameter",
    results=("x",),
    inline=False,
)


class PrependArgs(Args):
    """Arguments of `prepend_token`; `rank` counts the dimensions in the checkpoint, leading ones
    included."""

    rank: int = 1


def _lower_prepend(b, x, args: PrependArgs):
    module = add_parameter(b, ranked(args.rank, x.type.width), "token")
    if b.graph is b.component:
        b.component.prefix_tokens += 1
    return b.node("prepend_token", {"x": x}, module=module)


PREPEND_TOKEN_STEP = StepKind(
    "prepend_token", PREPEND_TOKEN.doc, PrependArgs, _lower_prepend, roles={"token": ""}
)


def _infer_position(ops: Operands):
    *extents, width = ops.state.attrs.shape
    x = ops.require_width("x", width, "the position table")
    if "positions" in ops.types:
        positions = ops.tensor("positions")
        ops.require_same(x.shape[-2], positions.width, "tokens and positions differ in number")
        return (x,)
    for rows, length in zip(extents[::-1], x.shape[-2::-1], strict=False):
        if rows != Dim.const(1):
            ops.require_same(length, rows, "the table has another length than the sequence")
    return (x,)


def _emit_position(node, scope):
    table = scope.module(node)
    if node.get("positions") is not None:
        table = f"{table}[{scope.use(node['positions']).flat()}]"
    return Binary("+", scope.use(node["x"]), scope.atom(table))


POSITION_EMBEDDING = Op(
    "position_embedding",
    "A learned vector added at each position.",
    infer=_infer_position,
    emit=_emit_position,
    module_kind="parameter",
    results=("x",),
    inline=False,
)


class PositionArgs(Args):
    """Arguments of `position_embedding`.

    `rank` counts the dimensions in the checkpoint, leading ones included. `columns` is for maps.
    `at` names the positions, which else are counted.
    """

    rows: Size
    columns: Size | None = None
    rank: int = 2
    at: str | None = None


def _lower_position(b, x, args: PositionArgs):
    extents = [args.rows] if args.columns is None else [args.rows, args.columns]
    module = add_parameter(b, ranked(args.rank, *extents, x.type.width), "table")
    positions = None if args.at is None else b.value(args.at)
    return b.node("position_embedding", {"x": x, "positions": positions}, module=module)


POSITION_EMBEDDING_STEP = StepKind(
    "position_embedding",
    POSITION_EMBEDDING.doc,
    PositionArgs,
    _lower_position,
    shorthand="rows",
    roles={"table": ""},
)
