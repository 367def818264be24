"""Rotary position embedding with positions on several axes. Legend: B batch, T tokens, N packed
patches, E head dimension."""

import torch
from torch import Tensor

from vlmspec.kernels.rope.reference import rope_frequencies


def rope_frequencies_axial(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Inverse frequencies [E / 2] of two axes: each has those of a head of half the width."""
    return rope_frequencies(head_dim // 2, theta, device).repeat(2)


def rope_frequencies_axial_alternate(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Inverse frequencies [E / 2] of two axes, which are dealt to them in turn."""
    frequencies = rope_frequencies(head_dim, theta, device)
    return torch.cat([frequencies[0::2], frequencies[1::2]])


def rope_table_axes(
    positions: Tensor, frequencies: Tensor, sections: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation at each position, computed in at least float32.

    Args:
        positions: positions on each axis [..., axes].
        frequencies: inverse frequencies [E / 2].
        sections: how many of the frequencies turn with each axis, in order.
        dtype: dtype of the result.

    Returns:
        Two tables [..., 1, E] that broadcast over the heads; see `rope_table`.
    """
    exact = torch.promote_types(dtype, torch.float32)
    axes = zip(positions.unbind(-1), frequencies.split(sections), strict=True)
    angles = [axis[..., None, None].to(exact) * part.to(exact) for axis, part in axes]
    angles = torch.cat(angles, dim=-1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
