"""Pooling by token, and bounded factors. Legend: B batch, T tokens, D model width."""

import math

import torch
from torch import Tensor


def bounded_exp(log: Tensor, most: float) -> Tensor:
    """The exponential of a number, held between 1 and `most`."""
    return log.clamp(0.0, math.log(most)).exp()


def pool_at_token(x: Tensor, ids: Tensor, token: int, largest: int | None = None) -> Tensor:
    """The vector of each row's first token with an id; of its first token where there is none.

    Args:
        x: vectors [B, T, D].
        ids: what they are of [B, T].
        token: the id; where it is `largest`, the largest id of the row is meant instead.

    Returns:
        One vector for each row [B, D].
    """
    at = ids.argmax(-1) if token == largest else (ids == token).int().argmax(-1)
    return x[torch.arange(len(x), device=x.device), at]
