"""Text generation: key-value caches, the decoding loop, and sampling.

Shapes: `B` batch, `T` new tokens, `S` tokens seen, `G` key/value heads, `E` head dimension,
`V` vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .outputs import OutputMixin  # noqa: TID251, TID252

# How the names of inputs end that have an entry for each token [B, T, ...] and move with it.
PER_TOKEN = ("token_type_ids", "cross_attention_mask", "position_mask")
# Inputs that say what of a memory each token may attend to [B, T, ...].
MEMORY_MASKS = ("cross_attention_mask",)


@dataclass
class Output(OutputMixin):
    """What a model returns: by attribute, by name, or by position among the fields that are set."""

    logits: Tensor


class KVCache:
    """Keys and values of one attention layer, in memory that is allocated once."""

    def __init__(
        self,
        batch_size: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        value_dim: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        shape = (batch_size, num_kv_heads, capacity)
        width = head_dim if value_dim is None else value_dim
        self.keys = torch.empty(*shape, head_dim, dtype=dtype, device=device)
        self.values = torch.empty(*shape, width, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0
        self.memory: tuple[Tensor, Tensor] | None = None

    def recall(self, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of a memory beside the text, or give back those that are kept.

        Args:
            k, v: keys and values of a memory [B, S, G, E]; None for those of an earlier call.

        Raises:
            ValueError: if there are none of an earlier call.
        """
        if k is not None and v is not None:
            self.memory = k, v
        if self.memory is None:
            raise ValueError("the first call with a cache needs the inputs that are attended to")
        return self.memory

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens.

        Args:
            k: new keys [B, G, T, E].
            v: new values [B, G, T, E].

        Returns:
            All keys and values so far, as views [B, G, S, E].

        Raises:
            ValueError: if they do not fit.
        """
        start, end = self.length, self.length + k.shape[2]
        if end > self.capacity or k.shape[0] != self.keys.shape[0]:
            raise ValueError(
                f"the cache has room for {self.keys.shape[0]} rows of {self.capacity} tokens; "
                f"{k.shape[0]} rows of {start} + {k.shape[2]} do not fit"
            )
        self.keys.narrow(2, start, end - start).copy_(k)
        self.values.narrow(2, start, end - start).copy_(v)
        self.length = end
        return self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)


class RecurrentState:
    """What is left of the tokens so far in one layer of linear attention, in at least float32."""

    def __init__(
        self,
        batch_size: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        exact = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        shape = (batch_size, num_heads, key_dim, value_dim)
        self.state = torch.zeros(*shape, dtype=exact, device=device)

    def read(self, rows: int) -> Tensor:
        """Return the state [B, H, E, E].

        Raises:
            ValueError: if it is of another number of rows.
        """
        if rows != self.state.shape[0]:
            raise ValueError(f"the cache is for {self.state.shape[0]} rows, not for {rows}")
        return self.state

    def write(self, state: Tensor) -> None:
        """Keep the state [B, H, E, E] after new tokens."""
        self.state = state


class Cache:
    """The state of every layer, and how many tokens the model has seen.

    The model's `forward` advances it, once all layers have appended. A model whose positions do not
    count tokens keeps in `ahead` [B, 1] by how much the next position of each row exceeds the
    number of its tokens.
    """

    def __init__(self, layers: Sequence[Any]):
        self.layers = list(layers)
        self.length = 0
        self.ahead: Tensor | None = None

    def advance(self, count: int) -> None:
        """Count `count` more tokens as seen."""
        self.length += count

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)


class GenerationMixin:
    """Generation for a model class with `forward` and `new_cache`.

    `forward(input_ids, *, attention_mask, position_ids, cache, logits_to_keep, ...)` returns an
    output with `logits` [B, T, V]; `new_cache(batch_size, max_length, dtype, device)` a `Cache`.
    Where `own_positions` is set, `forward` works out positions from the mask and the cache, and
    gets no `position_ids`.
    """

    own_positions: bool = False
    generates: str = "input_ids"
    generation_defaults: Mapping[str, Any] = MappingProxyType({})

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        streamer: Callable[[Tensor], None] | None = None,
        use_cache: bool = True,
        **inputs: Any,
    ) -> Tensor:
        """Continue each prompt until its row stops or `max_new_tokens` are made.

        Prompts of different lengths are padded, and `attention_mask` says where. Padding on the
        right is moved to the left, and the result has it there.

        Args:
            input_ids: prompts [B, T].
            attention_mask: 1 for tokens and 0 for padding [B, T].
            max_new_tokens: how many tokens to make at most.
            do_sample: draw tokens at random; otherwise the likeliest one is taken.
            temperature: divides the logits; below 1 favours likely tokens.
            top_k: draw from the `k` likeliest tokens; 0 for all.
            top_p: draw from the fewest tokens that together are at least this likely.
            seed: makes the draws repeatable.
            eos_token_id: tokens that stop a row; the checkpoint's if not given, `[]` for none.
            pad_token_id: fills rows that have stopped; the checkpoint's, or the first that stops.
            streamer: called with every new token [B].
            use_cache: keep keys and values; otherwise the whole text is computed for each token.
            inputs: further inputs of `forward`, such as images.

        Returns:
            Prompts and continuations [B, T + new], where `new` ends with the longest row.
        """
        _check_sampling(max_new_tokens, do_sample, temperature, top_k, top_p)
        _check_prompts(input_ids, attention_mask)
        stops, pad = self._stop_tokens(eos_token_id, pad_token_id, input_ids.device)
        if self.generates != "input_ids":
            input_ids, inputs = self._start(input_ids, attention_mask, inputs)
            attention_mask = None
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None  # plain causal attention is faster
        if attention_mask is not None:
            input_ids, attention_mask, inputs = _pad_left(input_ids, attention_mask, inputs)
        choose = partial(torch.argmax, dim=-1)
        if do_sample:
            device = input_ids.device
            draws = None if seed is None else torch.Generator(device).manual_seed(seed)
            choose = partial(_sample, temperature, top_k, top_p, draws)
        with torch.inference_mode():
            ids = torch.cat(
                [input_ids, input_ids.new_full((len(input_ids), max_new_tokens), pad)], 1
            )
            length = self._decode(
                ids, input_ids.shape[1], attention_mask, choose, stops, streamer, use_cache, inputs
            )
        return ids[:, :length].clone()  # outside of inference mode, so that autograd may use it

    def _start(
        self, prompts: Tensor, mask: Tensor | None, inputs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return what a decoder starts with [B, T], where an encoder reads the prompts, and all
        other inputs."""
        inputs = {"input_ids": prompts, "attention_mask": mask, **inputs}
        given = inputs.pop(self.generates, None)
        if given is None:
            names = ("decoder_start_token_id", "bos_token_id")
            known = [self.generation_defaults[n] for n in names if n in self.generation_defaults]
            if not known:
                raise ValueError(f"the checkpoint has no {names[0]}; give {self.generates}")
            given = prompts.new_full((len(prompts), 1), known[0])
        return given, inputs

    def _stop_tokens(
        self, eos: int | Sequence[int] | None, pad: int | None, device: torch.device
    ) -> tuple[Tensor | None, int]:
        """Return the tokens that stop a row, and the one that fills it."""
        eos = self.generation_defaults.get("eos_token_id") if eos is None else eos
        pad = self.generation_defaults.get("pad_token_id") if pad is None else pad
        stops = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        if pad is None:
            pad = stops[0] if stops else 0
        return torch.tensor(stops, device=device) if stops else None, pad

    def _decode(
        self,
        ids: Tensor,
        prompt_length: int,
        mask: Tensor | None,
        choose: Callable[[Tensor], Tensor],
        stops: Tensor | None,
        streamer: Callable[[Tensor], None] | None,
        use_cache: bool,
        inputs: dict[str, Any],
    ) -> int:
        """Fill `ids` [B, T + new], which starts with the prompts; return how far it got."""
        batch_size, total = ids.shape
        cache = self.new_cache(batch_size, total, device=ids.device) if use_cache else None
        padding = {}
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(batch_size, total - prompt_length)], 1)
            positions = (mask.cumsum(1) - 1).clamp_(min=0)
        done = torch.zeros(batch_size, dtype=torch.bool, device=ids.device)
        start = 0
        for end in range(prompt_length, total):
            if mask is not None:
                padding["attention_mask"] = mask[:, :end]
                if not self.own_positions:
                    padding["position_ids"] = positions[:, start:end]
            step = ids[:, start:end]
            given = _continued(inputs, prompt_length, start, end)
            output = self(step, cache=cache, logits_to_keep=1, **padding, **given)
            token = choose(output.logits[:, -1])
            if stops is not None:
                token = torch.where(done, ids[:, end], token)
                done |= (token[:, None] == stops).any(1)
            ids[:, end] = token
            if streamer is not None:
                streamer(token)
            if stops is not None and done.all():
                return end + 1
            if use_cache:
                start = end
                # The cache holds what came of the images.
                kept = ("attention_mask", *MEMORY_MASKS)
                inputs = {name: value for name, value in inputs.items() if name in kept}
            else:
                inputs = _extended(inputs, end)
        return total


def _is_mask(name: str, value: Any, length: int) -> bool:
    """Whether an input says what each of the prompt's tokens may attend to [B, T, ...]."""
    return isinstance(value, Tensor) and name in MEMORY_MASKS and value.shape[1] == length


def _continued(inputs: dict[str, Any], length: int, start: int, end: int) -> dict[str, Any]:
    """Give masks a row for each of the tokens from `start` to `end`; new tokens see what the
    prompt's last one does."""
    found = dict(inputs)
    for name, value in inputs.items():
        if _is_mask(name, value, length):
            rows = torch.arange(start, end, device=value.device).clamp(max=length - 1)
            found[name] = value[:, rows]
    return found


def _extended(inputs: dict[str, Any], length: int) -> dict[str, Any]:
    """Add an entry for a new token of text to the inputs that have one for each of `length`."""
    return {
        name: F.pad(value, (0, 1))
        if isinstance(value, Tensor)
        and name.endswith(PER_TOKEN)
        and value.ndim == 2
        and value.shape[1] == length
        else value
        for name, value in inputs.items()
    }


def _sample(
    temperature: float, top_k: int, top_p: float, draws: torch.Generator | None, logits: Tensor
) -> Tensor:
    """Draw a token for each row [B] of `logits` [B, V], by temperature, then `top_k`, then `top_p`.

    Tokens that are as likely as the last of the `top_k` likeliest are kept as well.
    """
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p == 1:
        return torch.multinomial(logits.softmax(-1), 1, generator=draws)[:, 0]
    logits, ids = logits.sort(descending=True)
    likely = logits.softmax(-1)
    before = likely.cumsum(-1) - likely  # 0 for the first, which is therefore always kept
    likely = likely.masked_fill(before >= top_p, 0)
    return ids.gather(1, torch.multinomial(likely, 1, generator=draws))[:, 0]


def _pad_left(
    ids: Tensor, mask: Tensor, inputs: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Move padding to the left in `ids` [B, T], `mask` [B, T] and the inputs that go with them."""
    if bool((mask[:, 1:] >= mask[:, :-1]).all()):
        return ids, mask, inputs
    order = mask.argsort(dim=1, stable=True)
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    moved = {
        name: value[rows, order]
        for name, value in inputs.items()
        if isinstance(value, Tensor) and name.endswith(PER_TOKEN) and value.shape[:2] == ids.shape
    }
    return ids[rows, order], mask[rows, order], inputs | moved


def _check_sampling(
    max_new_tokens: int, do_sample: bool, temperature: float, top_k: int, top_p: float
) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if do_sample and not temperature > 0:
        raise ValueError(
            f"temperature must be above 0, not {temperature}; do_sample=False is greedy"
        )
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or more, not {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")


def _check_prompts(ids: Tensor, mask: Tensor | None) -> None:
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(f"input_ids must be [B, T] with at least one token, not {list(ids.shape)}")
    if ids.is_floating_point():
        raise ValueError(f"input_ids must be integers, not {ids.dtype}")
    if mask is None:
        return
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask is {list(mask.shape)}, but input_ids is {list(ids.shape)}"
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask must hold 0 and 1 only")
    if not bool(mask.any(1).all()):
        empty = mask.any(1).logical_not().nonzero().flatten().tolist()
        raise ValueError(f"attention_mask leaves no token in row {', '.join(map(str, empty))}")
