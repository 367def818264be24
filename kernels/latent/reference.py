"""Attention to compressed keys and values in plain torch.

Legend: B batch, T query tokens, S key tokens, H heads, N and R dimensions of a head without and
    with a
position, V dimensions of a value, C width of the latent.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmspec.kernels.rope.reference import apply_rope

if TYPE_CHECKING:
    from vlmspec.compiler.emit.runtime.generation import KVCache


def rotate_tail(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbours of the last dimensions of each head [B, T, H, N + R] by position.

    The rotated pairs end up in two halves; queries and keys are reordered alike.
    """
    width = cos.shape[-1]
    pairs = x[..., -width:].unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return torch.cat([x[..., :-width], apply_rope(pairs, cos, sin)], dim=-1)


def latent_attention(
    q: Tensor,
    k: Tensor,
    latent: Tensor,
    up: Tensor,
    mask: Tensor | None,
    cache: "KVCache | None",
    scale: float | None = None,
) -> Tensor:
    """Attend causally to keys and values that are made of a latent (DeepSeek-V2, 2024).

    Only the latent and the shared part of the keys are cached. A single query goes to the latent
    through the matrix that would make keys of it; several make the keys.

    Args:
        q: queries, the last R dimensions rotated [B, T, H, N + R].
        k: rotated keys that all heads share [B, T, 1, R].
        latent: what makes the other part of the keys, and the values [B, T, C].
        up: the matrix that makes them, N + V rows for each head [H (N + V), C].
        mask: which keys each query may see [B or 1, 1, T, S]; None for plain causality.
        cache: latents and shared keys of earlier tokens; the new ones are appended to it.
        scale: factor on the scores; (N + R) ** -0.5 if not given.

    Returns:
        Mixed values [B, T, H, V].
    """
    heads, own = q.shape[2], q.shape[3] - k.shape[3]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    joined = torch.cat([latent, k.flatten(2)], dim=-1)[:, None]
    if cache is not None:
        joined, _ = cache.append(joined, joined[..., :0])
    latent, shared = joined.split((latent.shape[2], k.shape[3]), dim=-1)
    up_k, up_v = up.unflatten(0, (heads, -1)).tensor_split((own,), dim=1)
    if q.shape[1] == 1:
        # One query: the heads become the rows of a single head over the cache as it is.
        q = q.transpose(1, 2)
        q = torch.cat([q[..., :own] @ up_k, q[..., own:]], dim=-1).transpose(1, 2)
        h = F.scaled_dot_product_attention(q, joined, latent, attn_mask=mask, scale=scale)
        return (h.transpose(1, 2) @ up_v.mT).transpose(1, 2)
    made = F.linear(latent[:, 0], up).unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = made.tensor_split((own,), dim=-1)
    k = torch.cat([k, shared.expand(-1, heads, -1, -1)], dim=-1)
    h = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return h.transpose(1, 2)
