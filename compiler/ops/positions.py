"""Positions on the axes time, height and width, for text with images and videos (M-RoPE)."""

from dataclasses import dataclass
from typing import Literal

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar, TensorType
from vlmspec.compiler.ops.args import Args, Number, Size
from vlmspec.compiler.ops.attention import cached_tokens, model_input
from vlmspec.compiler.ops.registry import Op, StepKind

AXES = TensorType((Dim.sym("batch"), Dim.sym("tokens"), Dim.const(3)), "int")


@dataclass(frozen=True, slots=True)
class MultimodalAttrs:
    """How many patches a token spans on each side, the speed of the time axis, and where text goes
    on."""

    merge: Dim
    tokens_per_second: Scalar
    advance: str


PLANNED = ("token_types", "attention_mask", "image_grid", "video_grid", "seconds")


def _emit_multimodal(node, scope):
    attrs = node.attrs
    operands = [scope.use(v) if (v := node.get(role)) else "None" for role in PLANNED]
    rest = [scope.dim(attrs.merge), scope.scalar(attrs.tokens_per_second), f'"{attrs.advance}"']
    ids = scope.use(node["ids"])
    return call(scope.helper("multimodal_positions"), ids, *operands, *rest)


MULTIMODAL_POSITIONS = Op(
    "multimodal_positions",
    "Time, row and column of every token of a text with images and videos; None for text alone.",
    infer=lambda ops: (TensorType(AXES.shape, "int", nullable=True),),
    emit=_emit_multimodal,
    attrs=MultimodalAttrs,
    results=("token_places",),
    bears=frozenset(PLANNED),
    host=True,
    inline=False,
)
AXIS_POSITIONS = Op(
    "axis_positions",
    "Positions of the new tokens on three axes: as given, else from the cached tokens on.",
    infer=lambda ops: (AXES,),
    emit=lambda node, scope: call(
        scope.helper("axis_positions"),
        *(
            scope.use(node[role])
            for role in ("x", "planned", "position_ids", "attention_mask", "cache")
        ),
    ),
    results=("positions",),
    inline=False,
)


class MultimodalArgs(Args):
    """Arguments of `multimodal_positions`: names of values, and how the axes run."""

    ids: str
    token_types: str
    image_grid: str
    video_grid: str
    seconds: str | None = None
    merge: Size
    tokens_per_second: Number = Scalar(1.0)
    advance: Literal["extent", "side"] = "extent"


def _lower_multimodal(b, x, args: MultimodalArgs):
    names = {role: getattr(args, role) for role in ("ids", *PLANNED) if hasattr(args, role)}
    operands = {role: b.value(name) for role, name in names.items() if name is not None}
    mask = model_input(b.component, "attention_mask")
    attrs = MultimodalAttrs(args.merge, args.tokens_per_second, args.advance)
    planned = b.plan("multimodal_positions", operands | {"attention_mask": mask}, attrs)
    cached_tokens(b.component)
    operands = {
        "x": b.component.stream,
        "planned": planned,
        "position_ids": model_input(b.component, "position_ids"),
        "attention_mask": mask,
        "cache": model_input(b.component, "cache"),
    }
    return b.node("axis_positions", operands)


MULTIMODAL_POSITIONS_STEP = StepKind(
    "multimodal_positions",
    MULTIMODAL_POSITIONS.doc,
    MultimodalArgs,
    _lower_multimodal,
    aside=True,
)
