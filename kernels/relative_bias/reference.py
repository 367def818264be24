"""A bias on the scores by the distance between query and key.

Legend: B batch, T query tokens, S key tokens, H heads, D model width.
"""

import math

import torch
from torch import Tensor


def relative_bias(x: Tensor, table: Tensor, mask: Tensor | None, max_distance: int) -> Tensor:
    """Bias of every token towards every other by their signed distance.

    Args:
        x: the tokens [B, T, D].
        table: a bias for each bucket and head; half of the buckets are for keys after the query
            [buckets, H].
        mask: 1 for tokens, 0 for padding [B, T]; None if all are 1.
        max_distance: the distance from which on all are alike.

    Returns:
        What is added to the scores [B or 1, H, T, T].
    """
    positions = torch.arange(x.shape[1], device=x.device)
    distance = positions - positions[:, None]
    half = table.shape[0] // 2
    buckets = distance_buckets(distance.abs(), half, max_distance, x.dtype)
    bias = table[buckets + half * (distance > 0)].permute(2, 0, 1)[None]
    if mask is None:
        return bias
    return bias.masked_fill(mask[:, None, None, :] == 0, torch.finfo(x.dtype).min)


def causal_relative_bias(
    x: Tensor, table: Tensor, mask: Tensor | None, past: int, max_distance: int
) -> Tensor:
    """Bias of every token towards those before it, the cached ones included; see `relative_bias`.

    Args:
        table: a bias for each bucket and head [buckets, H].
        mask: 1 for tokens, 0 for padding, cached ones included [B, S]; None if all are 1.
        past: number of cached tokens.

    Returns:
        What is added to the scores [B or 1, H, T, S].
    """
    keys = torch.arange(past + x.shape[1], device=x.device)
    distance = keys[past:, None] - keys
    buckets = distance_buckets(distance.clamp(min=0), table.shape[0], max_distance, x.dtype)
    hidden = distance < 0
    if mask is not None:
        hidden = hidden | (mask[:, None, None, :] == 0)
    bias = table[buckets].permute(2, 0, 1)[None]
    return bias.masked_fill(hidden, torch.finfo(x.dtype).min)


def distance_buckets(distance: Tensor, count: int, max_distance: int, dtype: torch.dtype) -> Tensor:
    """Number the distances: the smaller half one by one, the others on a logarithmic scale.

    Args:
        distance: distances, 0 or more.
        count: how many buckets there are.
        max_distance: the distance from which on all are alike.
        dtype: of the model; the logarithm is taken in at least float32.
    """
    exact = count // 2
    ratio = distance.to(torch.promote_types(dtype, torch.float32)) / exact
    scale = math.log(max_distance / exact)
    far = exact + (torch.log(ratio) / scale * (count - exact)).to(torch.long)
    return torch.where(distance < exact, distance, far.clamp(max=count - 1))
