"""Attention in plain torch.

Legend: B batch, T query tokens, S key tokens, H query heads, G key/value heads, E head dimension.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmspec.kernels.rope.reference import apply_rope

if TYPE_CHECKING:
    from vlmspec.compiler.emit.runtime.generation import KVCache


def token_positions(x: Tensor, position_ids: Tensor | None, past: int) -> Tensor:
    """Positions of the tokens [B, T]: as given, else counted on from the `past` cached ones."""
    if position_ids is not None:
        return position_ids
    return torch.arange(past, past + x.shape[1], device=x.device)[None]


def causal_mask(
    x: Tensor, attention_mask: Tensor | None, past: int, window: int | None = None
) -> Tensor | None:
    """Which keys each query may see, [B or 1, 1, T, S], or None where plain causality says it all.

    Padding queries see themselves, so that no row of the softmax is empty.

    Args:
        x: embeddings of the new tokens [B, T, D].
        attention_mask: 1 for tokens, 0 for padding, cached ones included [B, S]; None if all are 1.
        past: number of cached tokens.
        window: how many keys a query sees, itself included; all before it if not given.
    """
    length = x.shape[1]
    fits = window is None or past + length <= window
    if attention_mask is None and fits and (past == 0 or length == 1):
        return None
    keys = torch.arange(past + length, device=x.device)
    queries = keys[past:, None]
    mask = (keys <= queries)[None, None]
    if window is not None and not fits:
        mask = mask & (keys > queries - window)
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None, :].bool() | (keys == queries)
    return mask


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Attend every query to every key.

    Args:
        q: queries [B, T, H, E].
        k, v: keys and values [B, S, G, E]; query head h reads head h // (H / G).
        scale: factor on the scores; E ** -0.5 if not given.

    Returns:
        Mixed values [B, T, H, E].
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    h = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=grouped)
    return h.transpose(1, 2)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None
) -> Tensor:
    """Attend every query to the keys that a mask lets it see.

    Args:
        q: queries [B, T, H, E].
        k, v: keys and values [B, S, G, E]; query head h reads head h // (H / G).
        mask: which keys each query may see, broadcast to [B, H, T, S]; None for all.
        scale: factor on the scores; E ** -0.5 if not given.

    Returns:
        Mixed values [B, T, H, E].
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return h.transpose(1, 2)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    cache: "KVCache | None",
    scale: float | None = None,
) -> Tensor:
    """Attend each query to the keys before it, those of the cache included.

    Args:
        q: queries [B, T, H, E].
        k, v: keys and values of the new tokens [B, T, G, E]; query head h reads head h // (H / G).
        mask: which keys each query may see [B or 1, 1, T, S]; None for plain causality.
        cache: keys and values of earlier tokens; the new ones are appended to it.
        scale: factor on the scores; E ** -0.5 if not given.

    Returns:
        Mixed values [B, T, H, E].
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if cache is not None:
        k, v = cache.append(k, v)
    length, groups = q.shape[2], q.shape[1] // k.shape[1]
    if length == 1:
        # One query: the heads that share a key head become its rows, and no key is repeated.
        q = q.reshape(q.shape[0], k.shape[1], groups, q.shape[3])
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return h.reshape(h.shape[0], 1, -1, h.shape[3])
    h = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=groups > 1
    )
    return h.transpose(1, 2)


def causal_self_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None
) -> Tensor:
    """Attend each query to the keys up to its own, where the whole text is there at once.

    Args:
        q: queries [B, T, H, E].
        k, v: keys and values [B, T, G, E]; query head h reads head h // (H / G).
        mask: which keys each query may see [B or 1, 1, T, T]; None for plain causality.
        scale: factor on the scores; E ** -0.5 if not given.

    Returns:
        Mixed values [B, T, H, E].
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    h = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
    return h.transpose(1, 2)


def rope_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor | None,
    cache: "KVCache | None",
    scale: float | None = None,
) -> Tensor:
    """Rotate queries and keys by their positions, then attend causally; see `causal_attention`.

    Args:
        cos, sin: the rotation at each token's position [B or 1, T, 1, E].
    """
    return causal_attention(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v, mask, cache, scale)
