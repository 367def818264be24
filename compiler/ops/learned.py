"""Vectors that do not come from the input: learned ones, and positions as sines and cosines."""

from dataclasses import dataclass
from typing import Literal

from vlmspec.compiler.emit.expr import Binary, call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar
from vlmspec.compiler.ops.args import Args, Number, Size
from vlmspec.compiler.ops.attention import cached_tokens
from vlmspec.compiler.ops.embed import add_parameter, ranked
from vlmspec.compiler.ops.registry import Op, Operands, ShapeError, StepKind, same_as


def _infer_learned(ops: Operands):
    x = ops.tensor("x")
    *_, count, width = ops.state.attrs.shape
    return (x.with_shape(x.shape[0], count, width),)


LEARNED_TOKENS = Op(
    "learned_tokens",
    "Learned vectors, the same for each sequence, in place of it.",
    infer=_infer_learned,
    emit=lambda node, scope: scope.atom(
        f"{scope.module(node)}.expand({scope.name(node['x'])}.shape[0], -1, -1)"
    ),
    module_kind="parameter",
    results=("latents",),
    inline=False,
)


class LearnedTokensArgs(Args):
    """Arguments of `learned_tokens`: how many, and how many dimensions they have in the checkpoint,
    leading ones included."""

    count: Size
    rank: int = 2


def _lower_learned(b, x, args: LearnedTokensArgs):
    module = add_parameter(b, ranked(args.rank, args.count, x.type.width), "tokens")
    return b.node("learned_tokens", {"x": x}, module=module)


LEARNED_TOKENS_STEP = StepKind(
    "learned_tokens",
    LEARNED_TOKENS.doc,
    LearnedTokensArgs,
    _lower_learned,
    shorthand="count",
    roles={"tokens": ""},
)


@dataclass(frozen=True, slots=True)
class SincosGridAttrs:
    """Size of a patch, base of the frequencies, and the axis of the first half of the channels."""

    patch_size: Dim
    theta: Scalar
    first: str


def _infer_sincos_grid(ops: Operands):
    x, image = ops.tensor("x"), ops.tensor("image")
    if len(image.shape) != 4:
        raise ShapeError(f"the grid is that of images [images, channels, height, width]: {image}")
    patch = ops.attrs.patch_size
    patches = (image.shape[2] // patch) * (image.shape[3] // patch)
    ops.require_same(x.shape[1], patches, "the grid has another number of patches")
    return (x,)


def _emit_sincos_grid(node, scope):
    attrs, x, image = node.attrs, scope.name(node["x"]), scope.name(node["image"])
    patch = scope.dim(attrs.patch_size)
    grid = [f"{image}.shape[{axis}] // {patch}" for axis in (2, 3)]
    given = [x, *grid, scope.scalar(attrs.theta)]
    table = call(scope.helper("sincos_grid"), *given, columns_first=str(attrs.first == "columns"))
    return Binary("+", scope.atom(x), table)


SINCOS_GRID = Op(
    "sincos_grid",
    "Sines and cosines of the row and the column of each patch, added; images have any size.",
    infer=_infer_sincos_grid,
    emit=_emit_sincos_grid,
    attrs=SincosGridAttrs,
    results=("x",),
    inline=False,
)


class SincosGridArgs(Args):
    """Arguments of `sincos_grid`; the images are what the component reads."""

    patch_size: Size
    theta: Number = Scalar(10000.0)
    first: Literal["rows", "columns"] = "rows"


def _lower_sincos_grid(b, x, args: SincosGridArgs):
    attrs = SincosGridAttrs(args.patch_size, args.theta, args.first)
    return b.node("sincos_grid", {"x": x, "image": b.component.stream}, attrs)


SINCOS_GRID_STEP = StepKind(
    "sincos_grid", SINCOS_GRID.doc, SincosGridArgs, _lower_sincos_grid, shorthand="patch_size"
)


@dataclass(frozen=True, slots=True)
class SinusoidAttrs:
    """Id of the padding, and base of the wavelengths."""

    padding: Dim
    theta: Scalar


def _emit_sinusoid(node, scope):
    attrs, x = node.attrs, scope.name(node["x"])
    given = [x, scope.use(node["ids"]), scope.use(node["past"])]
    given += [scope.dim(attrs.padding), scope.scalar(attrs.theta)]
    return Binary("+", scope.atom(x), call(scope.helper("sinusoid_positions"), *given))


SINUSOID_POSITIONS = Op(
    "sinusoid_positions",
    "Sines and cosines of each token's position, counted from the id of the padding on.",
    infer=same_as("x"),
    emit=_emit_sinusoid,
    attrs=SinusoidAttrs,
    results=("x",),
    inline=False,
)


class SinusoidArgs(Args):
    """Arguments of `sinusoid_positions`: a named value that has the tokens' ids, the id of padding,
    which has no position, and the base of the wavelengths."""

    ids: str
    padding: Size
    theta: Number = Scalar(10000.0)


def _lower_sinusoid(b, x, args: SinusoidArgs):
    operands = {"x": x, "ids": b.value(args.ids), "past": cached_tokens(b.component)}
    return b.node("sinusoid_positions", operands, SinusoidAttrs(args.padding, args.theta))


SINUSOID_POSITIONS_STEP = StepKind(
    "sinusoid_positions", SINUSOID_POSITIONS.doc, SinusoidArgs, _lower_sinusoid
)
