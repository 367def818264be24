"""Videos: their frames as images, and the frames' tokens as a video's."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import call, method
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ops.anyres import VIEWS
from vlmspec.compiler.ops.args import Args, NoArgs, Size
from vlmspec.compiler.ops.registry import Op, Operands, ShapeError, StepKind


def _infer_join(ops: Operands):
    x = ops.tensor("x")
    if len(x.shape) != 5:
        raise ShapeError(f"videos are [videos, frames, channels, height, width], not {x}")
    return (x.with_shape(VIEWS, *x.shape[2:]),)


JOIN_FRAMES = Op(
    "join_frames",
    "The frames of all videos as images, one after another.",
    infer=_infer_join,
    emit=lambda node, scope: method(scope.use(node["x"]), "flatten", "0", "1"),
    results=("x",),
    inline=False,
)
JOIN_FRAMES_STEP = StepKind(
    "join_frames",
    JOIN_FRAMES.doc,
    NoArgs,
    lambda b, x, args: b.node("join_frames", {"x": x}),
    component=("connector",),
)


@dataclass(frozen=True, slots=True)
class ResizeAttrs:
    """Tokens along each side of a map, before and after."""

    side: Dim
    to: Dim


def _infer_resize(ops: Operands):
    x, attrs = ops.tensor("x"), ops.attrs
    images, tokens, width = x.shape
    ops.require_same(tokens, attrs.side * attrs.side, "a map has other tokens")
    return (x.with_shape(images, attrs.to * attrs.to, width),)


RESIZE_TOKENS = Op(
    "resize_tokens",
    "Square maps of tokens, resized bilinearly.",
    infer=_infer_resize,
    emit=lambda node, scope: call(
        scope.helper("resize_tokens"),
        scope.use(node["x"]),
        scope.dim(node.attrs.side),
        scope.dim(node.attrs.to),
    ),
    attrs=ResizeAttrs,
)


class ResizeArgs(Args):
    """Arguments of `resize_tokens`: tokens along each side, before and after."""

    side: Size
    to: Size


RESIZE_TOKENS_STEP = StepKind(
    "resize_tokens",
    RESIZE_TOKENS.doc,
    ResizeArgs,
    lambda b, x, args: b.node("resize_tokens", {"x": x}, ResizeAttrs(args.side, args.to)),
    component=("connector",),
)


def _infer_pack(ops: Operands):
    x, videos = ops.tensor("x"), ops.tensor("videos")
    ops.require_same(x.width, ops.tensor("newline").width, "tokens and newline differ in width")
    count, frames = videos.shape[:2]
    return (x.with_shape(count, frames * x.shape[1] + 1, x.width),)


def _emit_pack(node, scope):
    operands = [scope.use(node["x"]), scope.use(node["newline"])]
    count = f"{scope.use(node['videos']).flat()}.shape[0]"
    return call(scope.helper("pack_frames"), *operands, count)


PACK_FRAMES = Op(
    "pack_frames",
    "Visual tokens of videos: those of their frames in order, and a newline at the end of each.",
    infer=_infer_pack,
    emit=_emit_pack,
    results=("x",),
    inline=False,
)


def _lower_pack(b, x, args: NoArgs):
    operands = {"x": x, "newline": b.value("newline"), "videos": b.value("videos")}
    return b.node("pack_frames", operands)


PACK_FRAMES_STEP = StepKind(
    "pack_frames",
    PACK_FRAMES.doc,
    NoArgs,
    _lower_pack,
    component=("connector",),
    reads=("newline", "videos"),
)
