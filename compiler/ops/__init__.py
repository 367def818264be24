"""The vocabulary: every op, module kind and step, listed once."""

from vlmspec.compiler.ops import (
    activation,
    attention,
    embed,
    fusion,
    linear,
    norm,
    packed,
    positions,
    structure,
)
from vlmspec.compiler.ops.registry import ModuleKind, Op, StepKind

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        embed.EMBEDDING,
        embed.PATCH_EMBED,
        embed.PREPEND_TOKEN,
        embed.POSITION_EMBEDDING,
        linear.LINEAR,
        linear.SPLIT,
        norm.LAYER_NORM,
        norm.RMS_NORM,
        norm.ADD_LAYER_NORM,
        norm.ADD_RMS_NORM,
        activation.ACTIVATION,
        activation.ADD,
        activation.MUL,
        activation.SCALE,
        attention.SPLIT_HEADS,
        attention.MERGE_HEADS,
        attention.PAST,
        attention.POSITIONS,
        attention.CAUSAL_MASK,
        attention.ROPE_TABLE,
        attention.ROPE,
        attention.ATTENTION,
        attention.ADVANCE,
        structure.CALL,
        structure.REPEAT,
        structure.SLICE_TOKENS,
        structure.LAST_TOKENS,
        fusion.SPLICE,
        packed.PACKED_PATCH_EMBED,
        packed.IMAGE_GRID,
        packed.PATCH_INDEX,
        packed.PACK,
        packed.SEGMENTS,
        packed.WINDOW_ORDER,
        packed.GRID_POSITIONS,
        packed.REORDER,
        packed.FOLD_TOKENS,
        packed.PACKED_ATTENTION,
        positions.MULTIMODAL_POSITIONS,
        positions.AXIS_POSITIONS,
    )
}

MODULE_KINDS: dict[str, ModuleKind] = {
    kind.name: kind
    for kind in (
        linear.LINEAR_MODULE,
        norm.LAYER_NORM_MODULE,
        norm.RMS_NORM_MODULE,
        embed.EMBEDDING_MODULE,
        embed.PATCH_EMBED_MODULE,
        embed.PARAMETER_MODULE,
        packed.PACKED_PATCH_MODULE,
    )
}

STEPS: dict[str, StepKind] = {
    step.name: step
    for step in (
        embed.EMBEDDING_STEP,
        embed.PATCH_EMBED_STEP,
        embed.PREPEND_TOKEN_STEP,
        embed.POSITION_EMBEDDING_STEP,
        linear.LINEAR_STEP,
        linear.MLP_STEP,
        linear.GLU_STEP,
        norm.LAYER_NORM_STEP,
        norm.RMS_NORM_STEP,
        activation.ACT_STEP,
        activation.SCALE_STEP,
        attention.ATTENTION_STEP,
        structure.RESIDUAL_STEP,
        structure.LAYERS_STEP,
        structure.DROP_TOKENS_STEP,
        fusion.SPLICE_STEP,
        structure.BLOCK_STEP,
        packed.PACKED_PATCH_STEP,
        packed.IMAGE_GRID_STEP,
        packed.PATCH_INDEX_STEP,
        packed.PACK_STEP,
        packed.SEGMENTS_STEP,
        packed.WINDOW_ORDER_STEP,
        packed.GRID_POSITIONS_STEP,
        packed.REORDER_STEP,
        packed.FOLD_TOKENS_STEP,
        positions.MULTIMODAL_POSITIONS_STEP,
    )
}
