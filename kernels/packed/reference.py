"""Images of all sizes packed into one sequence.

A processor cuts every image or video into patches and lists them one after another; its grid says
how many frames, rows and columns of patches each one has. Cells of `merge` x `merge` patches, which
later become one token, lie together: cells in reading order, and the patches of a cell likewise.

Images that come padded to the size of the largest are packed by `patch_index`.

Legend: N packed patches, I images and videos, H heads, E head dimension.
"""

import itertools
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def segment_runs(lengths: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Runs of segments of equal length, as (how many, how long)."""
    return tuple((len(list(run)), length) for length, run in itertools.groupby(lengths))


def frame_runs(grid: Tensor) -> tuple[tuple[int, int], ...]:
    """Segments of one frame each; grid [I, 3] of frames, rows and columns."""
    return segment_runs(h * w for t, h, w in grid.tolist() for _ in range(t))


def clip_runs(grid: Tensor) -> tuple[tuple[int, int], ...]:
    """Segments of one image or video each; grid [I, 3] of frames, rows and columns."""
    return segment_runs(t * h * w for t, h, w in grid.tolist())


def image_grid(pixel_values: Tensor, sizes: Tensor | None, patch: int) -> Tensor:
    """Frames (one), rows and columns of the patches of each image [I, 3].

    Args:
        pixel_values: images, padded to the largest [I, channels, height, width].
        sizes: height and width of each without padding [I, 2]; None where there is no padding.
        patch: side of a patch.
    """
    if sizes is None:
        sizes = torch.tensor([pixel_values.shape[-2:]]).expand(len(pixel_values), 2)
    return torch.cat([torch.ones_like(sizes[:, :1]), sizes // patch], 1)


def patch_index(pixel_values: Tensor, grid: Tensor, patch: int) -> Tensor:
    """Which patches are not padding, among those of all images in reading order [N].

    See `image_grid`, which gives the grid, for the other arguments.
    """
    rows, columns = (torch.arange(n // patch) for n in pixel_values.shape[-2:])
    grid = grid.cpu()[:, :, None, None]
    inside = (rows[:, None] < grid[:, 1]) & (columns < grid[:, 2])
    return inside.flatten().nonzero()[:, 0].to(pixel_values.device)


def window_runs(grid: Tensor, merge: int, window: int) -> tuple[tuple[int, int], ...]:
    """Segments of one window each, in the order of `window_order`.

    Args:
        grid: frames, rows and columns of patches [I, 3].
        merge: side of a cell, in patches.
        window: side of a window, in cells; those at the border are smaller.
    """
    lengths = []
    for t, h, w in grid.tolist():
        rows, columns = (
            [min(window, n - start) for start in range(0, n, window)]
            for n in (h // merge, w // merge)
        )
        lengths += [r * c * merge * merge for r in rows for c in columns] * t
    return segment_runs(lengths)


def window_order(grid: Tensor, merge: int, window: int) -> Tensor:
    """Which cell stands at each place when windows come one after another [N / merge ** 2].

    See `window_runs` for the arguments; windows and their cells are in reading order.
    """
    found, start = [], 0
    for t, h, w in grid.tolist():
        h, w = h // merge, w // merge
        cells = torch.arange(start, start + t * h * w, device=grid.device).view(t, h, w)
        for frame in cells:
            for rows in frame.split(window, 0):
                found += [piece.flatten() for piece in rows.split(window, 1)]
        start += t * h * w
    return torch.cat(found)


def grid_positions(grid: Tensor, merge: int | Tensor) -> Tensor:
    """Row and column of every patch, in the order of the patches [N, 2].

    Args:
        grid: frames, rows and columns of patches [I, 3].
        merge: side of a cell, in patches, of all or of each [I]; 1 where the patches are simply
            in reading order.
    """
    found = []
    merges = [merge] * len(grid) if isinstance(merge, int) else merge.tolist()
    for (t, h, w), merge in zip(grid.tolist(), merges, strict=True):
        rows, columns = (torch.arange(n, device=grid.device) for n in (h, w))
        place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        place = place.view(h // merge, merge, w // merge, merge, 2).transpose(1, 2)
        found.append(place.reshape(1, h * w, 2).expand(t, -1, -1).flatten(0, 1))
    return torch.cat(found)


def cell_middles(grid: Tensor, merges: Tensor) -> Tensor:
    """The patches in the middle of each cell, whose mean is the cell in a bilinear reduction.

    These are four where a cell has an even side, and four times the same where it is odd.

    Args:
        grid: frames, rows and columns of patches [I, 3].
        merges: side of a cell in patches, of each image or video [I].

    Returns:
        Places in the packed sequence [cells, 4].
    """
    found, start = [], 0
    for (t, h, w), merge in zip(grid.tolist(), merges.tolist(), strict=True):
        low, high = (merge - 1) // 2, merge // 2
        middle = [row * merge + column for row in (low, high) for column in (low, high)]
        cells = torch.arange(start, start + t * h * w, merge * merge)
        found.append(cells[:, None] + torch.tensor(middle))
        start += t * h * w
    return torch.cat(found).to(grid.device)


def kept_index(mask: Tensor | None) -> Tensor | None:
    """Places of the tokens that a mask [N] keeps; None where there is no mask."""
    return None if mask is None else mask.nonzero()[:, 0]


def select_tokens(x: Tensor, index: Tensor | None) -> Tensor:
    """The tokens of a packed sequence [N, D] at the places `index`; all where that is None."""
    return x if index is None else x[index]


def reorder(x: Tensor, order: Tensor, group: int) -> Tensor:
    """Rows in another order, `group` of them staying together.

    Args:
        x: rows [N, ...].
        order: which group stands at each place [N / group].
    """
    return x.unflatten(0, (-1, group))[order].flatten(0, 1)


def segment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: tuple[tuple[int, int], ...],
    scale: float | None = None,
) -> Tensor:
    """Attend within the segments of a packed sequence; segments of equal length are one batch.

    Args:
        q, k, v: queries, keys and values [N, H, E].
        segments: how many segments of which length follow each other; see `segment_runs`.
        scale: factor on the scores; E ** -0.5 if not given.

    Returns:
        Mixed values [N, H, E].
    """
    sizes = [count * length for count, length in segments]
    mixed = []
    for (count, _), *pieces in zip(segments, *(x.split(sizes) for x in (q, k, v)), strict=True):
        batch = [x.unflatten(0, (count, -1)).transpose(1, 2) for x in pieces]
        h = F.scaled_dot_product_attention(*batch, scale=scale)
        mixed.append(h.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)
