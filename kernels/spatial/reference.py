"""Maps of vectors. Legend: B images, N vectors of a map in reading order, D their width, F side of
a cell."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def cells(x: Tensor, factor: int, rows: int | None = None, down: bool = False) -> Tensor:
    """The vectors of each cell of `factor` x `factor` neighbours [B, N / F**2, F, F, D].

    Args:
        x: a map's vectors, row after row [B, N, D].
        factor: side of a cell.
        rows: how many rows the map has; as many as columns if not given.
        down: whether the cells follow each other down the columns, not along the rows.
    """
    rows = rows or math.isqrt(x.shape[1])
    x = x.unflatten(1, (rows // factor, factor, -1, factor)).transpose(2, 3)
    return (x.transpose(1, 2) if down else x).flatten(1, 2)


def resize_map(x: Tensor, rows: int, columns: int, mode: str) -> Tensor:
    """Interpolate maps [B, R, C, D] to maps [B, rows, columns, D]."""
    x = F.interpolate(x.permute(0, 3, 1, 2), size=(rows, columns), mode=mode)
    return x.permute(0, 2, 3, 1)


def cut_windows(x: Tensor, side: int) -> Tensor:
    """Cut maps [B, R, C, D] into windows [B * windows, W, W, D].

    Args:
        x: maps; where windows reach beyond them, at the bottom and on the right, are zeros.
        side: W.
    """
    rows, columns = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -columns % side, 0, -rows % side))
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.transpose(2, 3).flatten(0, 2)


def join_windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """Put windows [B * windows, W, W, D] back into maps [B, rows, columns, D]."""
    side = x.shape[1]
    down, across = -(-rows // side), -(-columns // side)
    x = x.unflatten(0, (-1, down, across)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, :rows, :columns]


def axis_bias(q: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What the offset between each query and key of a map adds to their score [B, H, N, N].

    Args:
        q: queries [B, N, H, E], not scaled.
        rows: a vector for each offset along the rows, from the most negative [2 R - 1, E].
        columns: the same along the columns [2 C - 1, E].
    """
    height, width = (len(table) // 2 + 1 for table in (rows, columns))
    q = q.unflatten(1, (height, width))
    down = torch.einsum("brchd,rkd->bhrck", q, rows[offsets(height, q.device)])
    across = torch.einsum("brchd,ckd->bhrck", q, columns[offsets(width, q.device)])
    return (down[..., None] + across[..., None, :]).flatten(4).flatten(2, 3)


def offsets(count: int, device: torch.device) -> Tensor:
    """How far each key lies before each query [count, count], the farthest behind it at 0."""
    places = torch.arange(count, device=device)
    return places[:, None] - places + count - 1
