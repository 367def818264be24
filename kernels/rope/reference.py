"""Rotary position embedding. Legend: B batch, T tokens, H heads, E head dimension."""

import math

import torch
from torch import Tensor


def rope_frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Inverse frequencies [E / 2] (Su et al., RoFormer, 2021).

    They are rounded to float32 whatever the model's dtype, as the public implementations do.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / theta**exponent


def rope_frequencies_linear(
    head_dim: int, theta: float, factor: float, device: torch.device
) -> Tensor:
    """Inverse frequencies [E / 2] with positions interpolated by `factor` (Chen et al., 2023)."""
    return rope_frequencies(head_dim, theta, device) / factor


def rope_frequencies_llama3(
    head_dim: int,
    theta: float,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position: int,
    device: torch.device,
) -> Tensor:
    """Inverse frequencies [E / 2]: long wavelengths interpolated, short ones kept (Llama 3.1)."""
    frequencies = rope_frequencies(head_dim, theta, device)
    wavelength = 2 * math.pi / frequencies
    low = original_max_position / low_freq_factor
    high = original_max_position / high_freq_factor
    blend = (original_max_position / wavelength - low_freq_factor) / (
        high_freq_factor - low_freq_factor
    )
    between = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = torch.where(wavelength > low, frequencies / factor, frequencies)
    return torch.where((wavelength <= low) & (wavelength >= high), between, scaled)


def rope_table(positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation at each position, computed in at least float32.

    Args:
        positions: token positions [B, T] or [1, T].
        frequencies: inverse frequencies [E / 2].
        dtype: dtype of the result.

    Returns:
        Two tables [B, T, 1, E] that broadcast over the heads: cosines, the same for both halves of
        E, and sines, negative for the first half.
    """
    exact = torch.promote_types(dtype, torch.float32)
    angles = positions[..., None, None].to(exact) * frequencies.to(exact)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def apply_partial_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first dimensions of each head, as many as the tables have [B, T, H, E]."""
    width = cos.shape[-1]
    rotated = apply_rope(x[..., :width], cos, sin)
    return torch.cat([rotated, x[..., width:]], dim=-1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head against each other [B, T, H, E]; see `rope_table`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
