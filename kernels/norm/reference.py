"""A residual addition and the norm that reads it. Legend: B batch, T tokens, D model width."""

import torch.nn.functional as F
from torch import Tensor


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add the branch `y` to the residual `x`, and normalise the sum [B, T, D].

    Returns:
        The sum, and its RMS norm (Zhang and Sennrich, 2019) times `weight`.
    """
    x = x + y
    return x, F.rms_norm(x, weight.shape, weight, eps)


def add_layer_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add the branch `y` to the residual `x`, and normalise the sum [B, T, D].

    Returns:
        The sum, and its layer norm (Ba et al., 2016) with `weight` and `bias`.
    """
    x = x + y
    return x, F.layer_norm(x, weight.shape, weight, bias, eps)
