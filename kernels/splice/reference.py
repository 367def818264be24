"""Visual tokens into the text sequence.

Legend: B batch, T tokens, D model width, N visual tokens of all images.
"""

import torch
from torch import Tensor


def splice(text: Tensor, visual: Tensor, placeholders: Tensor) -> Tensor:
    """Put the visual tokens, in order, where the placeholders stand.

    Args:
        text: token embeddings [B, T, D].
        visual: connector output, all images in order [images, tokens, D] or [N, D].
        placeholders: which tokens of the text stand for a visual token, bool [B, T].

    Returns:
        Fused embeddings [B, T, D].

    Raises:
        ValueError: when the two counts differ, naming both.
    """
    visual = visual.flatten(0, -2)
    if not torch.compiler.is_compiling():
        check_visual_tokens(placeholders, visual)
    if visual.shape[0] == 0:
        return text
    # Row r of the text takes visual token number (placeholders up to r) - 1.
    index = placeholders.flatten().cumsum(0).sub(1).clamp(min=0).view(placeholders.shape)
    return torch.where(placeholders[..., None], visual[index].to(text.dtype), text)


def check_visual_tokens(placeholders: Tensor, visual: Tensor) -> None:
    """Refuse a prompt whose placeholders do not match the images."""
    expected = int(placeholders.sum())
    if expected != visual.shape[0]:
        rows = placeholders.sum(-1).tolist()
        raise ValueError(
            f"the prompt holds {expected} visual placeholders (per row: {rows}), but the images "
            f"give {visual.shape[0]} visual tokens; repeat the placeholder once per visual token"
        )
