"""Linear attention with a decaying state in plain torch.

Legend: B batch, T tokens, H heads, E head dimension, C tokens of a block.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlmspec.compiler.emit.runtime.generation import RecurrentState


def token_mask(x: Tensor, attention_mask: Tensor | None) -> Tensor | None:
    """Which of the new tokens are no padding, 1 or 0 [B, T, 1, 1]; None if all are.

    Args:
        x: embeddings of the new tokens [B, T, D].
        attention_mask: 1 for tokens, 0 for padding, cached ones included [B, S]; None if all are 1.
    """
    if attention_mask is None:
        return None
    return attention_mask[:, -x.shape[1] :, None, None].to(x.dtype)


def head_slopes(heads: int) -> list[float]:
    """Slopes 2 ** (-8 h / H) of the heads (Press et al., ALiBi, 2022).

    Where H is no power of two, the slopes of the next lower power are filled up with every second
    one of the next higher.
    """
    whole = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / whole) for h in range(whole)]
    return slopes + [2 ** (-4 * (h + 1) / whole) for h in range(0, 2 * (heads - whole), 2)]


def decay_rates(heads: int, layer: int, layers: int, x: Tensor) -> Tensor:
    """Rates at which the heads of a layer forget [H]: deeper layers forget more slowly.

    They are rounded to float32 whatever the model's dtype, as the public implementations do.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    slopes = torch.tensor(head_slopes(heads), dtype=torch.float32, device=x.device)
    return (slopes * (1 - layer / max(layers - 1, 1) + 1e-5)).to(exact)


def stored_decay_rates(heads: int, layer: int, layers: int, x: Tensor) -> Tensor:
    """Rates at which the heads of a layer forget [H], as transformers stores them with their
    tables.

    They stay float32, so the tables made of them are rounded too; the slopes are powers of one
    base for every number of heads, and the last layer is divided by a trifle more.
    """
    exponents = torch.arange(1, heads + 1, device=x.device)
    slopes = (1 / 2 ** (8 / heads)) ** exponents
    return (slopes * (1 - layer / (layers - 1 + 1e-5) + 1e-5)).to(torch.float32)


def decay_tables(rates: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of a key after the tokens of a block.

    Args:
        rates: rates of the heads [H, 1, 1].
        size: tokens of a block.

    Returns:
        At each query of what came in the block [H, C, C], 0 for later keys; at each query of what
        came before the block [H, C, 1]; at the end of the block of each of its keys [H, C, 1].
    """
    place = torch.arange(1, size + 1, device=rates.device)[:, None]
    distance = rates * (place - place.mT)
    within = torch.where(distance >= 0, -distance, -torch.inf).exp()
    return within, (-rates * place).exp(), (-rates * (size - place)).exp()


def lightning_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rates: Tensor,
    valid: Tensor | None,
    cache: "RecurrentState | None",
    block: int,
) -> Tensor:
    """Mix values by undivided scores that fade with the distance (Qin et al., 2024).

    Within a block the scores are computed; what came before it is one matrix for each head.

    Args:
        q, k, v: queries, keys and values [B, T, H, E].
        rates: how fast each head forgets [H]; the tables of a block have their dtype.
        valid: 1 for tokens, 0 for padding, which leaves no trace [B, T, 1, 1]; None if all are 1.
        cache: what is left of earlier tokens; this call's are added to it.
        block: tokens of a block.

    Returns:
        Mixed values [B, T, H, E].
    """
    dtype, exact = q.dtype, torch.promote_types(q.dtype, torch.float32)
    v = v if valid is None else v * valid
    q, k, v = (t.transpose(1, 2).to(exact) for t in (q, k, v))
    rates = rates[:, None, None]
    tables = decay_tables(rates, min(block, q.shape[2]))
    within, before, after = (table.to(exact) for table in tables)
    rates = rates.to(exact)
    shape = (*q.shape[:2], k.shape[3], v.shape[3])
    state = q.new_zeros(shape) if cache is None else cache.read(len(q)).to(exact)
    pieces = []
    parts = (t.split(block, dim=2) for t in (q, k, v))
    for queries, keys, values in zip(*parts, strict=True):
        size = queries.shape[2]
        scores = (queries @ keys.mT) * within[:, :size, :size]
        pieces.append(scores @ values + (queries * before[:, :size]) @ state)
        added = (keys * after[:, -size:]).mT @ values
        state = state * (-rates * size).exp() + added
    if cache is not None:
        cache.write(state)
    return torch.cat(pieces, dim=2).transpose(1, 2).to(dtype)
