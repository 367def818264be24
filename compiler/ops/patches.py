"""Padded batches of images: which are there, which of their patches, and where a patch lies in its
image."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.registry import Op, Operands, ShapeError, StepKind

IMAGES, ONE = Dim.sym("images"), Dim.const(1)


@dataclass(frozen=True, slots=True)
class RealAttrs:
    """Whether an image is kept where there is none but padding."""

    keep_one: bool = False


def _emit_real(node, scope):
    options = {"keep_one": "True"} if node.attrs.keep_one else {}
    return call(scope.helper("real_images"), scope.use(node["x"]), **options)


REAL_IMAGES = Op(
    "real_images",
    "Which images of a padded batch are there; padding is nothing but zeros.",
    infer=lambda ops: (TensorType((IMAGES,), "int"),),
    emit=_emit_real,
    attrs=RealAttrs,
    results=("kept",),
    host=True,
)


class RealArgs(Args):
    """Arguments of `real_images`."""

    keep_one: bool = False


REAL_IMAGES_STEP = StepKind(
    "real_images",
    REAL_IMAGES.doc,
    RealArgs,
    lambda b, x, args: b.plan("real_images", {"x": x}, RealAttrs(args.keep_one)),
    aside=True,
)


def _infer_take(ops: Operands):
    x = ops.tensor("x")
    if len(x.shape) < 3:
        raise ShapeError(f"images are [rows, slots, ...], not {x}")
    return (x.with_shape(*ops.tensor("index").shape, *x.shape[2:]),)


TAKE_IMAGES = Op(
    "take_images",
    "The images that are there, of all rows one after another.",
    infer=_infer_take,
    emit=lambda node, scope: scope.atom(
        f"{scope.name(node['x'])}.flatten(0, 1)[{scope.use(node['index']).flat()}]"
    ),
    results=("x",),
    inline=False,
)


class TakeArgs(Args):
    """Arguments of `take_images`: the name of their index."""

    index: str


TAKE_IMAGES_STEP = StepKind(
    "take_images",
    TAKE_IMAGES.doc,
    TakeArgs,
    lambda b, x, args: b.node("take_images", {"x": x, "index": b.value(args.index)}),
    shorthand="index",
)


@dataclass(frozen=True, slots=True)
class PatchMaskAttrs:
    """Side of a patch in pixels."""

    patch_size: Dim


@dataclass(frozen=True, slots=True)
class PatchPositionAttrs:
    """Side of a patch in pixels, and of the table of positions in patches."""

    patch_size: Dim
    side: Dim


def _patches(ops: Operands) -> Dim:
    *_, height, width = ops.tensor("x").shape
    return (height // ops.attrs.patch_size) * (width // ops.attrs.patch_size)


def _emit_mask(node, scope, helper: str = "seen_patches", *more: str):
    operands = [scope.use(node[role]) for role in ("x", "mask", "kept")]
    return call(scope.helper(helper), *operands, scope.dim(node.attrs.patch_size), *more)


def _emit_positions(node, scope):
    return _emit_mask(node, scope, "spread_positions", scope.dim(node.attrs.side))


def _infer_mask(ops: Operands):
    shape = (*ops.tensor("kept").shape, ONE, ONE, _patches(ops))
    return (TensorType(shape, "bool", nullable=True),)


PATCH_MASK = Op(
    "patch_mask",
    "Which patches of each image are there, or None where all are; the mask has pixels.",
    infer=_infer_mask,
    emit=_emit_mask,
    attrs=PatchMaskAttrs,
    results=("patch_mask",),
    bears=frozenset({"mask"}),
    host=True,
)
PATCH_POSITIONS = Op(
    "patch_positions",
    "Rows of a table of positions for the patches of each image, whatever its size (NaViT): the "
    "table is stretched over it.",
    infer=lambda ops: (TensorType((*ops.tensor("kept").shape, _patches(ops)), "int"),),
    emit=_emit_positions,
    attrs=PatchPositionAttrs,
    results=("patch_positions",),
    bears=frozenset({"mask"}),
    host=True,
)


class PatchMaskArgs(Args):
    """Arguments of `patch_mask`: names of the mask of pixels and of the index of images, and the
    side of a patch."""

    mask: str
    kept: str
    patch_size: Size


class PatchPositionArgs(PatchMaskArgs):
    """Arguments of `patch_positions`: those of `patch_mask`, and the side of the table."""

    side: Size


def _planned(b, x, args: PatchMaskArgs, op: str, attrs):
    operands = {"x": x, "mask": b.value(args.mask), "kept": b.value(args.kept)}
    return b.plan(op, operands, attrs)


PATCH_MASK_STEP = StepKind(
    "patch_mask",
    PATCH_MASK.doc,
    PatchMaskArgs,
    lambda b, x, args: _planned(b, x, args, "patch_mask", PatchMaskAttrs(args.patch_size)),
    aside=True,
)
PATCH_POSITIONS_STEP = StepKind(
    "patch_positions",
    PATCH_POSITIONS.doc,
    PatchPositionArgs,
    lambda b, x, args: _planned(
        b, x, args, "patch_positions", PatchPositionAttrs(args.patch_size, args.side)
    ),
    aside=True,
)
