"""Attention to a memory: encoded images or text that every decoding step sees.

Legend: B batch, T query tokens, S memory tokens, N entries of the memory (images, tiles), H query
    heads, G key/value
heads, E head dimension, D model width.
"""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from vlmspec.kernels.attention.reference import masked_attention

if TYPE_CHECKING:
    from vlmspec.compiler.emit.runtime.generation import KVCache


def memory_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    mask: Tensor | None,
    cache: "KVCache | None",
    scale: float | None = None,
) -> Tensor:
    """Attend to a memory whose keys and values a cache keeps; see `masked_attention`.

    Args:
        k, v: keys and values of the memory [B, S, G, E]; None where the cache has them.
        cache: gets the keys and values when they are given, and gives them back when they are not.
    """
    if cache is not None:
        k, v = cache.recall(k, v)
    return masked_attention(q, k, v, mask, scale)


def newest_rows(x: Tensor, mask: Tensor) -> Tensor:
    """The rows of a mask that are for the tokens `x` [B, T, D], where it has those of cached tokens
    too."""
    return mask[:, -x.shape[1] :]


def expand_memory_mask(x: Tensor, mask: Tensor | None, tokens: int) -> Tensor | None:
    """Which tokens of the memory each token of the text may see.

    A token that may see nothing sees everything instead: its row of the softmax would be empty.

    Args:
        x: embeddings of the text [B, T, D].
        mask: 1 where a token may see an entry of the memory [B, T, ...].
        tokens: how many tokens of the memory an entry has.

    Returns:
        Mask [B, 1, T, S], or None where there is none.
    """
    if mask is None:
        return None
    seen = newest_rows(x, mask).flatten(2).bool()
    seen = seen | ~seen.any(-1, keepdim=True)
    return seen.repeat_interleave(tokens, dim=-1)[:, None]


def seeing_rows(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """Which tokens of the text `x` [B, T, D] see anything of the memory, by `mask` [B, T, ...]; [B,
    T]."""
    return None if mask is None else newest_rows(x, mask).flatten(2).any(-1)


def mask_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Zero vectors [B, T, D] outside of `rows` [B, T]; None leaves all as they are."""
    return x if rows is None else x * rows[..., None]


def padding_mask(mask: Tensor | None, before: int = 0) -> Tensor | None:
    """Which keys every query may see [B, 1, 1, before + S], from 1 for tokens and 0 for padding [B,
    S].

    Args:
        mask: None if nothing is padding.
        before: how many keys stand before the masked ones; all of them are seen.
    """
    if mask is None:
        return None
    return F.pad(mask.bool(), (before, 0), value=True)[:, None, None]
