"""Visual tokens into the text sequence.

Legend: B batch, T tokens, D model width, N visual tokens of all images.
"""

import torch
from torch import Tensor


def splice(
    text: Tensor,
    visual: Tensor,
    placeholders: Tensor,
    counts: Tensor | None = None,
    *,
    source: str = "visual",
) -> Tensor:
    """Put the visual tokens, in order, where the placeholders stand.

    Args:
        text: token embeddings [B, T, D].
        visual: connector output, all images in order [images, tokens, D] or [N, D].
        placeholders: which tokens of the text stand for a visual token, bool [B, T].
        counts: visual tokens of each image [images], where they differ.
        source: what gives the visual tokens, for the message.

    Returns:
        Fused embeddings [B, T, D].

    Raises:
        ValueError: when the two counts differ, naming the first image that does not fit.
    """
    if not torch.compiler.is_compiling():
        each = [visual.shape[-2]] * (len(visual) if visual.ndim > 2 else 1)
        check_visual_tokens(placeholders, each if counts is None else counts.tolist(), source)
    visual = visual.flatten(0, -2)
    if visual.shape[0] == 0:
        return text
    # Row r of the text takes visual token number (placeholders up to r) - 1.
    index = placeholders.flatten().cumsum(0).sub(1).clamp(min=0).view(placeholders.shape)
    return torch.where(placeholders[..., None], visual[index].to(text.dtype), text)


def check_visual_tokens(placeholders: Tensor, counts: list[int], source: str) -> None:
    """Refuse a prompt whose placeholders do not match the images.

    Args:
        placeholders: which tokens of the text stand for a visual token, bool [B, T].
        counts: visual tokens of each image.
        source: what gives them.
    """
    given, wanted = int(placeholders.sum()), sum(counts)
    if given != wanted:
        rows = placeholders.sum(-1).tolist()
        raise ValueError(
            f"{misfit(placeholder_runs(placeholders), counts, source)}; in all, the prompt holds "
            f"{given} visual placeholders (per row: {rows}), but the images give {wanted} visual "
            f"tokens; repeat the placeholder once per visual token"
        )


def misfit(runs: list[tuple[int, int]], counts: list[int], source: str) -> str:
    """Say which image is the first that does not fit its placeholders.

    An image has a run of placeholders of its own, or follows the one before it in the same run.
    """
    waiting = runs.copy()
    row, left = 0, 0
    for i, count in enumerate(counts):
        if not left and waiting:
            row, left = waiting.pop(0)
        found = left if left < count or len(runs) == len(counts) else count
        if found != count:
            return (
                f"image {i} has {count} visual tokens from `{source}`, but {found} placeholders "
                f"in row {row}"
            )
        left -= count
    row, left = (row, left) if left else waiting[0]
    return f"after the {len(counts)} images of `{source}`, row {row} has {left} more placeholders"


def placeholder_runs(placeholders: Tensor) -> list[tuple[int, int]]:
    """Row and length of every unbroken run of placeholders, in order."""
    runs = []
    for row, flags in enumerate(placeholders.tolist()):
        length = 0
        for flag in [*flags, False]:
            if length and not flag:
                runs.append((row, length))
            length = length + 1 if flag else 0
    return runs
