"""Generation against itself without a cache, against single rows, and against transformers."""

from functools import partial

import pytest
import torch
from torch import Tensor
from toy_model import Toy, ToyConfig
from transformers import LlamaConfig, LlamaForCausalLM

from vlmspec.compiler.emit.runtime import generation
from vlmspec.compiler.emit.runtime.generation import Cache, GenerationMixin, KVCache, Output


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(0)
    return Toy(ToyConfig(tied=False)).double().eval()


def prompts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 40, (1, length), generator=generator) for length in lengths]


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    width = max(row.shape[1] for row in rows)
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        place = slice(width - row.shape[1], None) if side == "left" else slice(row.shape[1])
        ids[i, place], mask[i, place] = row[0], 1
    return ids, mask


def spy(model: Toy) -> list[dict]:
    calls = []
    forward = model.forward

    def wrapped(input_ids: Tensor, **inputs):
        calls.append({"input_ids": input_ids.clone(), **inputs})
        return forward(input_ids, **inputs)

    model.forward = wrapped
    return calls


def test_cache_changes_nothing(model):
    ids = torch.cat(prompts(9, 9))
    with_cache = model.generate(ids, max_new_tokens=20)
    assert with_cache.shape == (2, 29)
    assert torch.equal(with_cache[:, :9], ids)
    assert torch.equal(with_cache, model.generate(ids, max_new_tokens=20, use_cache=False))
    assert len(with_cache[0, 9:].unique()) > 3, "a toy that repeats itself proves little"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_batched_rows_equal_single_rows(model, side, use_cache):
    rows = prompts(3, 40, 21)
    ids, mask = padded(rows, side)
    out = model.generate(ids, mask, max_new_tokens=12, use_cache=use_cache)
    for row, got in zip(rows, out, strict=True):
        alone = model.generate(row, max_new_tokens=12)[0]
        assert torch.equal(got[40 - row.shape[1] :], alone)


def test_inputs_of_each_token_move_with_right_padding(model):
    rows = prompts(3, 6)
    types = [torch.arange(row.shape[1], dtype=torch.float64)[None] for row in rows]
    ids, mask = padded(rows, "right")
    together = torch.zeros(2, 6, dtype=torch.float64)
    together[0, :3], together[1] = types[0], types[1]
    out = model.generate(ids, mask, max_new_tokens=8, token_type_ids=together)
    for row, kind, got in zip(rows, types, out, strict=True):
        alone = model.generate(row, max_new_tokens=8, token_type_ids=kind)[0]
        assert torch.equal(got[6 - row.shape[1] :], alone)


def test_calls_of_forward(model):
    (ids,) = prompts(5)
    calls = spy(model)
    bias = torch.ones(1, 16, dtype=torch.float64)
    model.generate(ids, torch.ones_like(ids), max_new_tokens=3, bias=bias)
    assert [call["input_ids"].shape[1] for call in calls] == [5, 1, 1]
    assert ["bias" in call for call in calls] == [True, False, False]
    assert not any("attention_mask" in call or "position_ids" in call for call in calls)
    assert all(call["logits_to_keep"] == 1 for call in calls)


def test_calls_of_forward_with_padding(model):
    ids, mask = padded(prompts(2, 4), "left")
    calls = spy(model)
    model.generate(ids, mask, max_new_tokens=3)
    assert [call["attention_mask"].shape[1] for call in calls] == [4, 5, 6]
    assert calls[0]["position_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert calls[2]["position_ids"].tolist() == [[3], [5]]


def test_stopping_and_padding(model):
    ids = torch.cat(prompts(6, 6))
    free = model.generate(ids, max_new_tokens=16)
    stop = int(free[0, 9])
    first = [row.index(stop) if stop in row else 15 for row in free[:, 6:].tolist()]
    assert first[0] < 15
    seen = []
    out = model.generate(
        ids, max_new_tokens=16, eos_token_id=[39, stop], pad_token_id=38, streamer=seen.append
    )
    allowed = [
        min([r.index(t) for t in (39, stop) if t in r] or [15]) for r in free[:, 6:].tolist()
    ]
    assert out.shape[1] == 6 + max(allowed) + 1
    for row, want, end in zip(out, free, allowed, strict=True):
        assert torch.equal(row[: 7 + end], want[: 7 + end])
        assert (row[7 + end :] == 38).all()
    assert torch.equal(torch.stack(seen, 1), out[:, 6:])


def test_stop_tokens_come_from_the_checkpoint(model):
    (ids,) = prompts(6)
    free = model.generate(ids, max_new_tokens=16)
    model.generation_defaults = {"eos_token_id": int(free[0, 6])}
    assert model.generate(ids, max_new_tokens=16).shape[1] == 7
    assert torch.equal(model.generate(ids, max_new_tokens=16, eos_token_id=[]), free)


class Fixed(torch.nn.Module, GenerationMixin):
    """Gives the same logits at every step."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, *, cache=None, logits_to_keep=0):
        return Output(self.logits.expand(len(input_ids), 1, -1))

    def new_cache(self, batch_size, max_length, dtype=None, device=None):
        return Cache([])


def slow_distribution(logits: Tensor, temperature: float, top_k: int, top_p: float) -> list[float]:
    """The definition, token by token: the probability of each token."""
    weights = [2.718281828459045 ** (x / temperature) for x in logits.tolist()]
    if top_k:
        least = sorted(weights, reverse=True)[: min(top_k, len(weights))][-1]
        weights = [w if w >= least else 0.0 for w in weights]
    total, kept = sum(weights), 0.0
    result = [0.0] * len(weights)
    for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
        if kept / total >= top_p:
            break
        result[i] = weights[i]
        kept += weights[i]
    return [w / kept for w in result]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 4, 100])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.9, 1.0])
def test_sampling_follows_the_definition(temperature, top_k, top_p):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(5))
    logits[3] = logits[7]  # a tie
    want = torch.tensor(slow_distribution(logits, temperature, top_k, top_p))
    draws = torch.Generator().manual_seed(0)
    tokens = generation._sample(temperature, top_k, top_p, draws, logits.expand(20000, -1))
    got = tokens.bincount(minlength=12) / 20000
    tied = (want[3] > 0) != (want[7] > 0)  # either of two equal tokens may be the last one kept
    if tied:
        want[3] = want[7] = want[3] + want[7]
        got[3] = got[7] = got[3] + got[7]
    assert ((got > 0) == (want > 0)).all() or (want[got == 0] < 1e-3).all()
    assert (got[want == 0] == 0).all()
    assert (got - want).abs().max() < 0.015


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    for top_p, kept in [(0.49, {0}), (0.5, {0}), (0.51, {0, 1}), (0.75, {0, 1}), (1e-9, {0})]:
        draws = torch.Generator().manual_seed(0)
        tokens = generation._sample(1.0, 0, top_p, draws, logits.expand(2000, -1))
        assert set(tokens.tolist()) == kept, top_p


def test_seeds(model):
    (ids,) = prompts(4)
    draw = partial(model.generate, ids, do_sample=True, temperature=2.0, max_new_tokens=24)
    assert torch.equal(draw(seed=1), draw(seed=1))
    assert not torch.equal(draw(seed=1), draw(seed=2))
    assert torch.equal(draw(seed=1, top_k=1), model.generate(ids, max_new_tokens=24))
    before = torch.get_rng_state()
    draw(seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_sampling_reaches_generate():
    fixed = Fixed(torch.tensor([0.5, 0.3, 0.2]).log())
    ids = torch.zeros(4000, 1, dtype=torch.int64)
    out = fixed.generate(ids, do_sample=True, top_k=2, seed=0, max_new_tokens=1)[:, 1]
    assert out.bincount(minlength=3)[0] / 4000 == pytest.approx(0.625, abs=0.03)
    assert (out < 2).all()


def test_result_may_be_used_in_training(model):
    (ids,) = prompts(4)
    out = model.generate(ids, max_new_tokens=2)
    model(out).logits.sum().backward()
    assert model.embed.weight.grad is not None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be above 0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature must be above 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.int64)}, "at least one token"),
        ({"input_ids": torch.zeros(3, dtype=torch.int64)}, "must be [B, T]"),
        ({"input_ids": torch.zeros(1, 3)}, "must be integers"),
        ({"attention_mask": torch.ones(1, 4)}, "[1, 4], but input_ids is [1, 3]"),
        ({"attention_mask": torch.zeros(1, 3)}, "no token in row 0"),
        ({"attention_mask": torch.tensor([[0, 1, 2]])}, "0 and 1 only"),
    ],
    ids=lambda value: value[:20].replace(" ", "_") if isinstance(value, str) else None,
)
def test_nonsense_is_refused(model, inputs, message):
    calls = spy(model)
    with pytest.raises(ValueError) as error:
        model.generate(**({"input_ids": torch.ones(1, 3, dtype=torch.int64)} | inputs))
    assert message in str(error.value)
    assert not calls


def test_kv_cache():
    cache = KVCache(2, 3, 5, 4, value_dim=6)
    k, v = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 6)
    cache.append(k[:, :, :3], v[:, :, :3])
    keys, values = cache.append(k[:, :, 3:], v[:, :, 3:])
    assert torch.equal(keys, k)
    assert torch.equal(values, v)
    assert keys.data_ptr() == cache.keys.data_ptr()
    with pytest.raises(ValueError, match="room for 2 rows of 5 tokens; 2 rows of 4 [+] 4"):
        cache.append(k, v)
    assert cache.length == 4
    with pytest.raises(ValueError, match="1 rows of 4 [+] 1 do not fit"):
        cache.append(k[:1, :, :1], v[:1, :, :1])


def test_cache_and_output():
    cache = Cache("ab")
    cache.advance(3)
    cache.advance(1)
    assert (len(cache), cache[1], list(cache), cache.length) == (2, "b", ["a", "b"], 4)
    logits = torch.ones(1)
    out = Output(logits)
    assert out[0] is out["logits"] is out.logits is logits
    assert out.keys() == ("logits",)
    assert out.to_tuple() == (logits,)
    with pytest.raises(KeyError):
        out["to_tuple"]


class Llama(torch.nn.Module, GenerationMixin):
    """Lets a reference model generate through our loop, without a cache."""

    def __init__(self, reference: LlamaForCausalLM):
        super().__init__()
        self.reference = reference

    def forward(
        self, input_ids, *, attention_mask=None, position_ids=None, cache=None, logits_to_keep=0
    ):
        out = self.reference(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return Output(out.logits[:, -logits_to_keep:])


def test_loop_equals_the_one_of_transformers():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=40, num_attention_heads=4, initializer_range=0.5, **sizes)
    reference = LlamaForCausalLM(config).double().eval()
    ids, mask = padded(prompts(3, 7, 5), "left")
    free = Llama(reference).generate(ids, mask, max_new_tokens=12, use_cache=False)
    for stop in free[:, 9].tolist():
        kind = {"max_new_tokens": 12, "eos_token_id": stop, "pad_token_id": 0}
        want = reference.generate(ids, attention_mask=mask, do_sample=False, **kind)
        got = Llama(reference).generate(ids, mask, use_cache=False, **kind)
        assert torch.equal(got, want)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.7), (5, 1.0), (9, 0.8)])
def test_warpers_equal_those_of_transformers(top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(64, 40, generator=torch.Generator().manual_seed(2)) * 3
    want = TemperatureLogitsWarper(0.7)(None, logits)
    if top_k:
        want = TopKLogitsWarper(top_k)(None, want)
    want = TopPLogitsWarper(top_p)(None, want)
    seen = torch.zeros(64, 40, dtype=torch.bool)
    draws = torch.Generator().manual_seed(0)
    for _ in range(1500):
        tokens = generation._sample(0.7, top_k, top_p, draws, logits)
        seen[torch.arange(64), tokens] = True
    likely = want.softmax(-1) > 0.01
    assert (seen <= want.isfinite()).all()
    assert (seen >= likely).all()
