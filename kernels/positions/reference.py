"""Positions of text, images and videos on the axes time, height and width.

They are those of M-RoPE (Wang et al., 2024).

Legend: B batch, T new tokens, S tokens seen, I images, V videos.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlmspec.compiler.emit.runtime.generation import Cache


def grid_cells(grid: list[int], merge: int, step: float) -> Tensor:
    """Time, row and column of every cell of one image or video, frame after frame [t h w, 3].

    Args:
        grid: frames, and rows and columns of patches.
        merge: how many patches a cell spans, on each side.
        step: how far two frames are apart.
    """
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    axes = [(torch.arange(t) * step).long(), torch.arange(h), torch.arange(w)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)


def row_positions(types: list[int], cells: dict[int, Iterator[Tensor]], advance: str) -> Tensor:
    """Positions of the tokens of one row [T, 3]; see `multimodal_positions`.

    Args:
        types: 0 for text, 1 for an image, 2 for a video.
        cells: what is next of each type; images and videos are taken from it in order.
        advance: where text goes on after an image or video.
    """
    pieces, start = [], 0
    for kind, run in itertools.groupby(types):
        if kind == 0:
            count = len(list(run))
            pieces.append(torch.arange(start, start + count)[:, None].expand(-1, 3))
            start += count
        else:
            piece = next(cells[kind])
            pieces.append(piece + start)
            start += int(piece[:, 1:].max() if advance == "side" else piece.max()) + 1
    return torch.cat(pieces)


def multimodal_positions(
    input_ids: Tensor,
    token_types: Tensor | None,
    attention_mask: Tensor | None,
    image_grid: Tensor | None,
    video_grid: Tensor | None,
    seconds: Tensor | None,
    merge: int,
    tokens_per_second: float,
    advance: str,
) -> Tensor | None:
    """Time, row and column of every token, counted from the first; None for text alone.

    A text token stands one further on all axes than the token before. The tokens of an image or
    video stand where their cell is, from the next free position on.

    Args:
        input_ids: token ids [B, T].
        token_types: 0 for text, 1 for an image, 2 for a video [B, T].
        attention_mask: 1 for tokens, 0 for padding, cached ones included [B, S].
        image_grid: frames, rows and columns of patches of each image [I, 3].
        video_grid: the same of each video [V, 3].
        seconds: time between two frames of each video [V]; 1 if not given.
        merge: how many patches a token spans, on each side.
        tokens_per_second: steps of the time axis in a second of video.
        advance: text goes on after the largest position so far (`extent`), or after as many
            positions as the longer side of a frame has tokens (`side`).

    Returns:
        Positions [B, T, 3]; 0 for padding.

    Raises:
        ValueError: when the grids come without token types.
    """
    if image_grid is None and video_grid is None:
        return None
    if token_types is None:
        raise ValueError("images and videos need mm_token_type_ids, which the processor gives")
    images, videos = ([] if g is None else g.tolist() for g in (image_grid, video_grid))
    times = [1.0] * len(videos) if seconds is None else seconds.tolist()
    cells = {
        1: iter([grid_cells(grid, merge, 1) for grid in images]),
        2: iter(
            [
                grid_cells(grid, merge, tokens_per_second * time)
                for grid, time in zip(videos, times, strict=True)
            ]
        ),
    }
    rows, length = input_ids.shape
    positions = torch.zeros(rows, length, 3, dtype=torch.long)
    kept = torch.ones(rows, length, dtype=torch.bool)
    if attention_mask is not None:
        kept = attention_mask[:, -length:].bool().cpu()
    for row, types in enumerate(token_types.cpu()):
        positions[row, kept[row]] = row_positions(types[kept[row]].tolist(), cells, advance)
    return positions.to(input_ids.device)


def axis_positions(
    x: Tensor,
    planned: Tensor | None,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    cache: "Cache | None",
) -> Tensor:
    """Positions of the new tokens on three axes [B or 1, T, 3]: as given, or from the cache on.

    The cache keeps how far the positions of each row are ahead of the number of its tokens.

    Args:
        x: embeddings of the new tokens [B, T, D].
        planned: positions that images and videos give them, counted from the first [B, T, 3].
        position_ids: positions to take instead [B, T] or [3, B, T].
        attention_mask: 1 for tokens, 0 for padding, cached ones included [B, S]; None if all are 1.
        cache: the state of earlier tokens.
    """
    if position_ids is not None:
        if position_ids.ndim == 3:
            return position_ids[-3:].movedim(0, -1)
        return position_ids[..., None].expand(-1, -1, 3)
    length = x.shape[1]
    past = 0 if cache is None else cache.length
    if attention_mask is None:
        count = torch.arange(past + 1, past + 1 + length, device=x.device)[None]
    else:
        count = attention_mask.long().cumsum(1)[:, past:]
    ahead = 0 if cache is None or cache.ahead is None else cache.ahead
    if planned is None:
        return (count - 1 + ahead).clamp(min=0)[..., None].expand(-1, -1, 3)
    before = count[:, :1] - (1 if attention_mask is None else attention_mask[:, past : past + 1])
    positions = planned + (before + ahead)[..., None]
    if cache is not None:
        cache.ahead = positions.amax((1, 2))[:, None] + 1 - count[:, -1:]
    return positions
