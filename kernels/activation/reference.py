"""Activations that torch has no name for. Legend: B batch, T tokens, F MLP width."""

import torch
from torch import Tensor


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU (Hendrycks and Gimpel, 2016) [..., F]."""
    return x * torch.sigmoid(1.702 * x)


def squared_relu(x: Tensor) -> Tensor:
    """ReLU squared (So et al., Primer, 2021) [..., F]."""
    return torch.relu(x).square()
