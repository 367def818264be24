"""Maps of vectors. Legend: B images, N vectors of a map in reading order, D their width, F side of
a cell."""

import math

from torch import Tensor


def cells(x: Tensor, factor: int, rows: int | None = None) -> Tensor:
    """The vectors of each cell of `factor` x `factor` neighbours [B, N / F**2, F, F, D].

    Args:
        x: a map's vectors, row after row [B, N, D].
        factor: side of a cell.
        rows: how many rows the map has; as many as columns if not given.
    """
    rows = rows or math.isqrt(x.shape[1])
    x = x.unflatten(1, (rows // factor, factor, -1, factor))
    return x.transpose(2, 3).flatten(1, 2)
