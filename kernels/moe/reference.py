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


def route_in_groups(
    logits: Tensor, top_k: int, groups: int, top_groups: int, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Choose the likeliest experts of each token out of a few groups of experts.

    Args:
        logits: scores of the experts, those of a group side by side [..., X].
        top_k: how many experts a token gets.
        groups: how many groups there are.
        top_groups: how many a token may choose from: those with the likeliest experts.
        scale: factor on the weights.

    Returns:
        Weights and indices of the chosen experts [..., K].
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.softmax(-1, dtype=exact).unflatten(-1, (groups, -1))
    best = scores.amax(-1).topk(top_groups, dim=-1).indices
    open_groups = torch.zeros_like(scores[..., 0]).scatter(-1, best, 1.0)
    weights, chosen = (scores * open_groups[..., None]).flatten(-2).topk(top_k, dim=-1)
    return weights * scale, chosen


def route_sigmoid(
    logits: Tensor, bias: Tensor, top_k: int, normalize: bool = False, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Choose experts by their own likelihoods and a bias that only the choice sees (DeepSeek-V3).

    Args:
        logits: scores of the experts [..., X].
        bias: of the choice [X].
        top_k: how many experts a token gets.
        normalize: whether the weights of the chosen ones are made to add up to 1.
        scale: factor on the weights.

    Returns:
        Weights and indices of the chosen experts [..., K].
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.to(exact).sigmoid()
    chosen = (scores + bias).topk(top_k, dim=-1).indices
    weights = scores.gather(-1, chosen)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
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
        return F.grouped_mm(x, weight.mT, offs=ends.to(torch.int32))
    pieces, start = [], 0
    for matrix, end in zip(weight.unbind(0), ends.tolist(), strict=True):
        if end > start:
            pieces.append(F.linear(x[start:end], matrix))
            start = end
    return torch.cat(pieces)


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
        rows, picks = x.flatten(0, -2), chosen.flatten(0, -2)
        weights = weights.flatten(0, -2)
        if torch.compiler.is_compiling() and not self._traces_in_groups():
            few = picks.numel() <= len(self.gate_up)
            mixed = (self._gathered if few else self._everywhere)(rows, weights, picks)
        else:
            mixed = self._grouped(rows, weights, picks)
        return mixed.to(x.dtype).view_as(x)

    def _grouped(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Take the pairs in the order of their experts, so that each expert is one product."""
        experts, order = chosen.flatten().sort(stable=True)
        numbers = torch.arange(len(self.gate_up), device=x.device)
        ends = torch.searchsorted(experts, numbers, right=True)
        h = x[order // chosen.shape[-1]]
        gate, up = grouped_linear(h, self.gate_up, ends).chunk(2, dim=-1)
        h = grouped_linear(self.act(gate) * up, self.down, ends)
        h = h[order.argsort()].view(*chosen.shape, -1)
        return (h * weights[..., None]).sum(-2)

    def _traces_in_groups(self) -> bool:
        """Whether torch's grouped product can be traced for these types and strides."""
        whole = all(width % 8 == 0 for width in (*self.gate_up.shape[1:], *self.down.shape[1:]))
        return whole and self.gate_up.dtype == torch.bfloat16

    def _gathered(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Trace a few pairs, such as those of one decoded token: each gets its matrices."""
        gate, up = (self.gate_up[chosen] @ x[:, None, :, None]).chunk(2, dim=-2)
        h = (self.down[chosen] @ (self.act(gate) * up)).squeeze(-1)
        return (h * weights[..., None]).sum(-2)

    def _everywhere(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Trace many pairs: every expert sees every token, and the choice is in the weights."""
        scores = weights.new_zeros(len(x), len(self.gate_up)).scatter(1, chosen, weights)
        mixed = torch.zeros_like(x, dtype=weights.dtype)
        for gate_up, down, score in zip(self.gate_up, self.down, scores.mT, strict=True):
            gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
            mixed = mixed + F.linear(self.act(gate) * up, down) * score[:, None]
        return mixed
