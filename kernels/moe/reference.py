"""Mixtures of experts in plain torch.

Legend: T tokens, D model width, X experts, K experts of a token, F width of an expert,
P = T K pairs of a token and an expert.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def route_softmax(
    logits: Tensor, top_k: int, normalize: bool = False, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Choose the likeliest experts of each token by a softmax over all of them.

    Args:
        logits: scores of the experts [..., X].
        top_k: how many experts a token gets.
        normalize: whether the weights of the chosen ones are made to add up to 1.
        scale: factor on the weights.

    Returns:
        Weights and indices of the chosen experts [..., K].
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    weights, chosen = logits.softmax(-1, dtype=exact).topk(top_k, dim=-1)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale, chosen


def route_top_softmax(logits: Tensor, top_k: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Choose the experts of the highest scores, and weight them by a softmax over these alone.

    Args:
        logits: scores of the experts [..., X].
        top_k: how many experts a token gets.
        scale: factor on the weights.

    Returns:
        Weights and indices of the chosen experts [..., K].
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    best, chosen = logits.topk(top_k, dim=-1)
    return best.softmax(-1, dtype=exact) * scale, chosen


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Map groups of consecutive rows, each by a matrix of its own.

    Args:
        x: rows [P, D].
        weight: one matrix for each group [X, F, D].
        ends: the row after each group's last one [X].

    Returns:
        Mapped rows [P, F].
    """
    if torch.compiler.is_compiling():
        return traced_grouped_linear(x, weight, ends)
    pieces, start = [], 0
    for matrix, end in zip(weight.unbind(0), ends.tolist(), strict=True):
        if end > start:
            pieces.append(F.linear(x[start:end], matrix))
            start = end
    return torch.cat(pieces)


def traced_grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Do the same without looking at the lengths of the groups, for `torch.compile` and exports."""
    aligned = all(width * x.element_size() % 16 == 0 for width in weight.shape[1:])
    if aligned and x.dtype != torch.float64:
        return F.grouped_mm(x, weight.mT, offs=ends.to(torch.int32))
    # torch's grouped product takes neither these strides nor doubles: give each row its matrix.
    group = torch.searchsorted(ends, torch.arange(len(x), device=x.device), right=True)
    return (weight[group] @ x[..., None]).squeeze(-1)


class GluExperts(nn.Module):
    """Gated linear units side by side; a router says which of them each token goes through."""

    def __init__(
        self, experts: int, width: int, inner: int, act: Callable[[Tensor], Tensor] = F.silu
    ):
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * inner, width) * 0.02)
        self.down = nn.Parameter(torch.randn(experts, width, inner) * 0.02)
        self.act = act

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Add up what the chosen experts give, weighted.

        Args:
            x: tokens [..., D].
            weights: of the chosen experts [..., K].
            chosen: indices of the chosen experts [..., K].

        Returns:
            Mixed outputs [..., D].
        """
        top_k = chosen.shape[-1]
        # Pairs in the order of their experts, so that each expert is one matrix product.
        experts, order = chosen.flatten().sort(stable=True)
        numbers = torch.arange(len(self.gate_up), device=x.device)
        ends = torch.searchsorted(experts, numbers, right=True)
        h = x.flatten(0, -2)[order // top_k]
        gate, up = grouped_linear(h, self.gate_up, ends).chunk(2, dim=-1)
        h = grouped_linear(self.act(gate) * up, self.down, ends)
        h = h[order.argsort()].view(*chosen.shape, -1)
        return (h * weights[..., None]).sum(-2).to(x.dtype)
