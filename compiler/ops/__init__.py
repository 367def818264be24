"""The vocabulary: every op, module kind and step, listed once."""

from vlmspec.compiler.ops import (
    activation,
    attention,
    cross_attention,
    embed,
    fusion,
    gate,
    linear,
    norm,
    shape,
    structure,
    tiles,
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
        shape.FLATTEN,
        shape.UNFLATTEN,
        shape.KEEP_TOKENS,
        shape.PAD_TOKENS,
        shape.CONCAT,
        gate.GATE,
        gate.MASK_ROWS,
        tiles.PARAMETER,
        tiles.TILE_EMBEDDING,
        tiles.TILE_POSITION,
        tiles.TILE_PADDING_MASK,
        cross_attention.GIVEN,
        cross_attention.SKIP_WITHOUT,
        cross_attention.MEMORY_MASK,
        cross_attention.SEEING_ROWS,
        cross_attention.MEMORY_ATTENTION,
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
        shape.FLATTEN_STEP,
        shape.UNFLATTEN_STEP,
        shape.KEEP_TOKENS_STEP,
        shape.PAD_TOKENS_STEP,
        shape.CONCAT_STEP,
        gate.GATE_STEP,
        gate.MASK_ROWS_STEP,
        tiles.TILE_EMBEDDING_STEP,
        tiles.TILE_POSITION_STEP,
        tiles.TILE_PADDING_STEP,
        cross_attention.SKIP_STEP,
        cross_attention.MEMORY_MASK_STEP,
        cross_attention.SEEING_ROWS_STEP,
        cross_attention.CROSS_ATTENTION_STEP,
    )
}
