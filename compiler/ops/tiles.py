"""Images cut into tiles: what the tiles learn of their arrangement, and which positions are only
padding."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.embed import EMBEDDING_MODULE, EmbeddingAttrs, ParameterAttrs
from vlmspec.compiler.ops.registry import Op, Operands, ShapeError, StepKind


def learned(b, name: str, shape: tuple[Dim, ...], role: str):
    """Declare a bare parameter under `name`, whose checkpoint tensor is the role's key, and read
    it."""
    param = Param("", shape, (b.weights.key(role),))
    b.graph.add_module(Module(name, "parameter", ParameterAttrs(shape), (param,), b.span))
    return b.node("parameter", {}, module=name)


def _infer_tile_embedding(ops: Operands):
    x = ops.tensor("x")
    if len(x.shape) != 4:
        raise ShapeError(f"tiles are [images, tiles, tokens, width], not {x}")
    return (x,)


TILE_EMBEDDING = Op(
    "tile_embedding",
    "Gated vectors added to every tile, or to every token of it, by the arrangement of the tiles.",
    infer=_infer_tile_embedding,
    emit=lambda node, scope: call(
        scope.helper("add_tile_embedding"), *(scope.use(v) for _, v in node.inputs)
    ),
    results=("x",),
    inline=False,
)
TILE_POSITION = Op(
    "tile_position_embedding",
    "A position table for all tiles and one by their arrangement, blended by a gate.",
    infer=_infer_tile_embedding,
    emit=lambda node, scope: call(
        scope.helper("add_tile_positions"), *(scope.use(v) for _, v in node.inputs)
    ),
    results=("x",),
    inline=False,
)


class TileArgs(Args):
    """Arguments of a tile embedding: the images' arrangements (a named value of ids), and how many
    there are."""

    arrangement: str
    rows: Size


def _tile_operands(b, x, args: TileArgs, tokens: Dim):
    """The running value, the rows of the table, and the gate."""
    width = x.type.shape[1] * tokens * x.type.width
    attrs = EmbeddingAttrs(args.rows, width)
    table = b.module("embedding", attrs, "tiles", EMBEDDING_MODULE.shapes(attrs))
    ids = b.value(args.arrangement)
    vectors = b.node("embedding", {"ids": ids}, module=table, hints=("vectors",))
    gate = learned(b, f"{b.name}_gate", (Dim.const(1),), "gate")
    return {"x": x, "vectors": vectors, "gate": gate}


def _lower_tile_embedding(b, x, args: TileArgs):
    return b.node("tile_embedding", _tile_operands(b, x, args, Dim.const(1)))


def _lower_tile_positions(b, x, args: TileArgs):
    tokens = x.type.shape[2]
    operands = _tile_operands(b, x, args, tokens)
    table = learned(b, f"{b.name}_shared", (tokens, x.type.width), "shared")
    return b.node("tile_position_embedding", operands | {"shared": table})


TILE_EMBEDDING_STEP = StepKind(
    "tile_embedding",
    TILE_EMBEDDING.doc,
    TileArgs,
    _lower_tile_embedding,
    roles={"tiles": "embedding", "gate": "gate"},
)
TILE_POSITION_STEP = StepKind(
    "tile_position_embedding",
    TILE_POSITION.doc,
    TileArgs,
    _lower_tile_positions,
    roles={"tiles": "tile_embedding", "gate": "gate", "shared": "embedding"},
)


@dataclass(frozen=True, slots=True)
class TilePaddingAttrs:
    """How many tokens of a tile are real, and how many it has with padding."""

    tokens: Dim
    padded: Dim


def _infer_tile_padding(ops: Operands):
    *lead, tiles = ops.tensor("x").shape
    images = Dim.const(1)
    for dim in lead:
        images = images * dim
    length = tiles * ops.attrs.padded
    return (TensorType((images, Dim.const(1), length, length), "bool"),)


TILE_PADDING_MASK = Op(
    "tile_padding_mask",
    "Attention between the tokens of all tiles of an image, except from padding to padding.",
    infer=_infer_tile_padding,
    emit=lambda node, scope: call(
        scope.helper("tile_padding_mask"),
        scope.use(node["x"]),
        scope.dim(node.attrs.tokens),
        scope.dim(node.attrs.padded),
    ),
    attrs=TilePaddingAttrs,
    results=("mask",),
    inline=False,
)


class TilePaddingArgs(Args):
    """Arguments of `tile_padding_mask`: real tokens of a tile, and all of them."""

    tokens: Size
    padded: Size


TILE_PADDING_STEP = StepKind(
    "tile_padding_mask",
    TILE_PADDING_MASK.doc,
    TilePaddingArgs,
    lambda b, x, args: b.node(
        "tile_padding_mask", {"x": x}, TilePaddingAttrs(args.tokens, args.padded)
    ),
)
