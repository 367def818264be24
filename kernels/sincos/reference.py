"""Positions as sines and cosines. Legend: B batch, T tokens, D model width."""

import math

import torch
from torch import Tensor


def sincos_grid(
    x: Tensor, rows: int, columns: int, theta: float, columns_first: bool = False
) -> Tensor:
    """Sines and cosines of the row and the column of every place of a grid, in reading order.

    They are computed in float64 and rounded once.

    Args:
        x: what they are added to [B, T, D]; it gives width, dtype and device.
        rows, columns: of the grid.
        theta: base of the frequencies.
        columns_first: whether the first half of the channels is the columns' instead of the rows'.

    Returns:
        Positions [T, D], each half of the channels as sines, then cosines.
    """
    quarter = x.shape[-1] // 4
    steps = torch.arange(quarter, dtype=torch.float64, device=x.device)
    frequencies = theta ** -(steps / quarter)
    angles = [
        torch.arange(count, dtype=torch.float64, device=x.device).outer(frequencies)
        for count in (rows, columns)
    ]
    halves = [torch.cat([angle.sin(), angle.cos()], -1) for angle in angles]
    of_row = halves[0][:, None].expand(-1, columns, -1)
    of_column = halves[1][None].expand(rows, -1, -1)
    order = [of_column, of_row] if columns_first else [of_row, of_column]
    return torch.cat(order, -1).flatten(0, 1).to(x.dtype)


def sinusoid_positions(
    x: Tensor, ids: Tensor, past: int, padding: int, theta: float = 10000.0
) -> Tensor:
    """Sines and cosines of each token's position (Vaswani et al., 2017), as fairseq counts them.

    The first token has the position after the id of the padding. Padding has none, and gets zeros;
    among cached tokens it counts. As public tables do, this computes in float32 and casts.

    Args:
        x: embeddings of the new tokens [B, T, D].
        ids: their ids [B, T].
        past: number of cached tokens.
        padding: id of the padding.
        theta: the longest wavelength, in units of 2 pi.

    Returns:
        Positions [B, T, D], the sines in the first half of the channels.
    """
    half = x.shape[-1] // 2
    steps = torch.arange(half, dtype=torch.float32, device=x.device)
    frequencies = torch.exp(steps * -(math.log(theta) / (half - 1)))
    real = ids != padding
    positions = real.cumsum(1) + (past + padding)
    angles = positions[..., None].to(torch.float32) * frequencies
    return (torch.cat([angles.sin(), angles.cos()], -1) * real[..., None]).to(x.dtype)
