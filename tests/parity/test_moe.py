"""Decoders with experts: MiniMax-01 (lightning attention), DeepSeek-V2 (latent attention).

The tests are those of `test_models`, on the architectures of this file.
"""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from parity import harness
from parity import test_models as general
from parity.test_models import DTYPES, Architecture, make
from safetensors.torch import load_file
from torch.nn import functional as F

from vlmspec import verification
from vlmspec.kernels.moe.reference import GluExperts, route_top_softmax

DATA = Path(__file__).parent / "originals"
NEW_TOKENS = 32
TEXT = ("plain", "padded", "right", "mixed")

# The decoder of DeepSeek-VL2, whose public implementation is a model of text alone.
LATENT = str(Path(__file__).parent / "specs" / "deepseek-v2.yaml")
ARCHITECTURES = (
    Architecture("minimax-01", "minimax", kinds=TEXT, parameters={None: 456_089_655_296}),
    Architecture(
        LATENT,
        "deepseek_v2",
        kinds=TEXT,
        parameters={None: 15_706_484_224, "v2": 235_741_434_880},
    ),
    Architecture(LATENT, "deepseek_v2_lite", kinds=TEXT),
)
EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.reference)


def batches() -> list:
    """Every kind of batch, and a second draw of the weights."""
    rows = [(a, kind, 0, None) for a in ARCHITECTURES for kind in a.kinds]
    rows += [(a, "padded", 1, size) for a in ARCHITECTURES for size in (None, *a.sizes)]
    return [pytest.param(*row, id="-".join(map(str, (row[0].reference, *row[1:])))) for row in rows]


EACH_BATCH = pytest.mark.parametrize(("architecture", "kind", "seed", "size"), batches())


@DTYPES
@EACH_BATCH
def test_every_stage_agrees(shared_folder, architecture, kind, seed, size, dtype):
    general.test_every_stage_agrees(shared_folder, architecture, kind, seed, size, dtype)


@DTYPES
@pytest.mark.parametrize("kind", ["plain", "padded"])
@EACH
def test_gradients_of_every_parameter_agree(shared_folder, tmp_path, architecture, kind, dtype):
    general.test_gradients_of_every_parameter_agree(
        shared_folder, tmp_path, architecture, kind, dtype
    )


@pytest.mark.parametrize(
    ("architecture", "kind", "seed", "size"), [b for b in batches() if "right" not in b.values]
)
def test_greedy_tokens_agree(shared_folder, architecture, kind, seed, size):
    tiny = make(shared_folder, architecture, kind, seed, size)
    reference = harness.reference(tiny)
    # The reference's cache asks the first layer how long the text is. Where that layer keeps a
    # state and no keys, the answer is 0, and padding is attended to: it agrees with itself only
    # without the cache.
    reference.generation_config.use_cache = architecture.spec != "minimax-01"
    want = harness.greedy(reference, tiny, NEW_TOKENS)
    model = harness.emitted(tiny)
    for cached in (True, False):
        given = {"max_new_tokens": NEW_TOKENS, "use_cache": cached, **general.SEARCH}
        got = model.generate(**tiny.inputs, **given)
        assert torch.equal(got[:, tiny.mask.shape[1] :], want)


@EACH_BATCH
def test_checkpoint_is_written_back_byte_for_byte(
    shared_folder, tmp_path, architecture, kind, seed, size
):
    general.test_checkpoint_is_written_back_byte_for_byte(
        shared_folder, tmp_path, architecture, kind, seed, size
    )


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": 100_000}], ids=["one file", "sharded"])
@EACH
def test_transformers_loads_what_was_saved(shared_folder, tmp_path, architecture, shards):
    tiny = make(shared_folder, architecture)
    harness.emitted(tiny).save_pretrained(tmp_path, **shards)
    reference = harness.reference(tiny)
    again, report = type(reference).from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert len(list(tmp_path.glob("*.safetensors"))) > (1 if shards else 0)
    general.assert_same_tensors(dict(again.state_dict()), dict(reference.state_dict()))


@EACH
def test_reads_a_sharded_checkpoint_of_transformers(shared_folder, tmp_path, architecture):
    general.test_reads_a_sharded_checkpoint_of_transformers(shared_folder, tmp_path, architecture)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["as stored", "bfloat16"])
@EACH
def test_save_load_save_is_identical(shared_folder, tmp_path, architecture, dtype):
    general.test_save_load_save_is_identical(shared_folder, tmp_path, architecture, dtype)


@EACH
def test_logits_to_keep_gives_the_last_ones(shared_folder, architecture):
    general.test_logits_to_keep_gives_the_last_ones(shared_folder, architecture)


@pytest.mark.parametrize(
    "duplicate", [general.copy.deepcopy, general.pickled], ids=["deepcopy", "pickle"]
)
@EACH
def test_copies_compute_the_same_and_share_nothing(shared_folder, architecture, duplicate):
    general.test_copies_compute_the_same_and_share_nothing(shared_folder, architecture, duplicate)


@pytest.mark.parametrize("kind", ["plain", "padded"])
@EACH
def test_compiles_in_one_graph(shared_folder, architecture, kind):
    torch._dynamo.reset()
    tiny = make(shared_folder, architecture, kind)
    model = harness.emitted(tiny)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        got, want = whole(**tiny.inputs).logits, model(**tiny.inputs).logits
    assert harness.compare(got, want) <= 1e-6
    whole(**tiny.inputs).logits.sum().backward()


@EACH
def test_compiles_in_one_graph_in_double(shared_folder, architecture):
    torch._dynamo.reset()
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny, torch.float64)
    given = tiny.given(torch.float64)
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True, backend="eager")(**given).logits
        assert harness.compare(got, model(**given).logits) <= 1e-14


@EACH
def test_exports(shared_folder, architecture):
    general.test_exports(shared_folder, architecture)


@pytest.mark.parametrize(
    ("spec", "variant", "count"),
    [(a.spec, v, count) for a in ARCHITECTURES for v, count in a.parameters.items()],
    ids=lambda value: str(value).rpartition("/")[2],
)
def test_full_size_parameter_count_is_exact(tmp_path, spec, variant, count):
    general.test_full_size_parameter_count_is_exact(tmp_path, spec, variant, count)


@EACH
def test_rows_of_text_are_independent(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    other = {**given, "input_ids": given["input_ids"].clone()}
    other["input_ids"][1, -1] = 7
    with torch.no_grad():
        want, changed = model(**given).logits, model(**other).logits
    assert torch.equal(changed[0], want[0])
    assert not torch.equal(changed[1], want[1])


# --------------------------------------------------------------------- MiniMax-01, original release


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The checkpoint that the original code computed `originals/minimax-01--text` with, and its
    package."""
    folder = tmp_path_factory.mktemp("original") / "minimax-01--text"
    shutil.copytree(DATA / "minimax-01--text", folder)
    for file in folder.glob("*.*.safetensors"):
        file.unlink()  # inputs and results, no weights
    return folder, harness.compiled("minimax-01", folder).load()


def load(original, dtype: torch.dtype):
    folder, package = original
    return package.Model.from_pretrained(folder, dtype=dtype).eval()


def case(name: str) -> tuple[dict, dict]:
    """Inputs and results of the original code."""
    folder = DATA / "minimax-01--text"
    return tuple(load_file(folder / f"{name}.{p}.safetensors") for p in ("inputs", "expected"))


def stages(model, inputs: dict) -> dict[str, torch.Tensor]:
    """What the stages give that `case` has results of."""
    paths = {}
    for i, block in enumerate(model.text.blocks):
        mixer = "attention" if hasattr(block, "attention") else "lightning_attention"
        paths |= {f"attention.{i}": f"text.blocks.{i}.{mixer}", f"moe.{i}": f"text.blocks.{i}.moe"}
        paths |= {f"layer.{i}": f"text.blocks.{i}"}
    with torch.no_grad(), verification.capture(model, paths | {"norm": "text.norm"}) as seen:
        logits = model(**inputs).logits
    return {**seen, "logits": logits}


def test_original_stages_agree(original):
    inputs, want = case("plain")
    got = stages(load(original, torch.float32), inputs)
    errors = {name: harness.compare(got[name], want[name]) for name in got}
    assert len(errors) == 17
    assert max(errors.values()) <= 1e-5, errors


def test_original_logits_agree_in_double(original):
    inputs, want = case("plain")
    with torch.no_grad():
        got = load(original, torch.float64)(**inputs).logits
    assert harness.compare(got, want["logits.float64"]) <= 1e-10


def test_original_tokens_agree(original):
    inputs, want = case("plain")
    new = want["generated"].shape[1] - inputs["input_ids"].shape[1]
    got = load(original, torch.float32).generate(**inputs, max_new_tokens=new, **general.SEARCH)
    assert torch.equal(got, want["generated"])


@DTYPES
def test_original_padding_is_hidden_from_lightning_attention_alone(original, monkeypatch, dtype):
    """The stored run attends to padding in its softmax layers; this module, like transformers, does
    not.

    With that one difference taken away every number of it is met.
    """
    inputs, want = case("padded")
    model, mask = load(original, dtype), inputs["attention_mask"]
    key = "logits.float64" if dtype == torch.float64 else "logits"
    with torch.no_grad():
        assert harness.compare(model(**inputs).logits, want[key], mask) > 1e-2
        monkeypatch.setattr(original[1].modeling, "causal_mask", lambda x, mask, past: None)
        got = stages(model, inputs)
    assert harness.compare(got["logits"], want[key], mask) <= harness.TOLERANCES[dtype]
    if dtype == torch.float32:
        names = [name for name in got if name in want and name != "logits"]
        assert len(names) == 11
        assert max(harness.compare(got[name], want[name], mask) for name in names) <= 1e-5


def test_original_checkpoint_is_written_back_byte_for_byte(original, tmp_path):
    model = load(original, torch.float32)
    model.save_pretrained(tmp_path)
    general.assert_same_tensors(harness.tensors_of(tmp_path), harness.tensors_of(original[0]))


def test_original_needs_its_own_rotary_width(original):
    """Turning whole heads, as transformers does for every checkpoint, is another model."""
    inputs, want = case("plain")
    model = load(original, torch.float64)
    text = dataclasses.replace(model.text.config, rotary_dim=model.text.config.head_dim)
    for module in (model.text, *model.text.blocks):
        module.config = text
    with torch.no_grad():
        got = model(**inputs).logits
    assert harness.compare(got, want["logits.float64"]) > 1e-3


@pytest.mark.parametrize("chunks", [(1,), (3, 2), (11,)], ids=str)
@pytest.mark.parametrize("name", ["plain", "padded"])
def test_prefill_equals_steps_through_the_states(original, name, chunks):
    model = load(original, torch.float64)
    ids, mask = (case(name)[0][key] for key in ("input_ids", "attention_mask"))
    steps = itertools.cycle(chunks)
    with torch.no_grad():
        want = model(ids, attention_mask=mask).logits
        cache, pieces, start = model.new_cache(len(ids), ids.shape[1]), [], 0
        while start < ids.shape[1]:
            end = min(start + next(steps), ids.shape[1])
            piece = model(ids[:, start:end], attention_mask=mask[:, :end], cache=cache)
            pieces.append(piece.logits)
            start = end
    assert {type(layer).__name__ for layer in cache} == {"KVCache", "RecurrentState"}
    assert harness.compare(torch.cat(pieces, 1), want, mask) <= 1e-12


def test_padding_does_not_matter_to_lightning_attention(original):
    model = load(original, torch.float64)
    inputs, _ = case("padded")
    keep = inputs["attention_mask"][1].bool()
    with torch.no_grad():
        want = model(inputs["input_ids"][1:, keep]).logits[0]
        got = model(**inputs).logits[1][keep]
    assert harness.compare(got, want) <= 1e-12


def test_cache_of_other_rows_is_refused(original):
    model = load(original, torch.float32)
    with pytest.raises(ValueError, match="rows"):
        model(torch.ones(2, 3, dtype=torch.long), cache=model.new_cache(3, 8))


def test_pattern_of_the_layers_is_checked(original):
    folder, package = original
    settings = json.loads((folder / "config.json").read_text())
    settings["attn_type_list"] = [0, 0, 1, 1, 0]
    with pytest.raises(ValueError, match="layer_types"):
        package.Config.from_json(settings)


# ----------------------------------------------------------------------------------------- experts


@pytest.mark.parametrize("tokens", [1, 2, 9], ids=lambda n: f"{n} tokens")
def test_traced_experts_give_what_the_others_give(tokens):
    torch.manual_seed(0)
    experts = GluExperts(7, 24, 10).double()
    x, logits = torch.randn(2, tokens, 24).double(), torch.randn(2, tokens, 7).double()
    weights, chosen = route_top_softmax(logits, 3)
    rows, flat, picks = (t.flatten(0, 1) for t in (x, weights, chosen))
    want = experts(x, weights, chosen).flatten(0, 1)
    for form in (experts._gathered, experts._everywhere):
        assert harness.compare(form(rows, flat, picks), want) <= 1e-14
    plain = sum(
        w[:, None] * (down @ (F.silu(g @ r) * (u @ r)))[None]
        for r, ws, es in zip(rows, flat, picks, strict=True)
        for w, e in zip(ws[:, None], es, strict=True)
        for (g, u), down in [(experts.gate_up[e].chunk(2), experts.down[e])]
    )
    assert harness.compare(want.sum(0), plain[0]) <= 1e-14


def test_bfloat16_experts_trace_as_grouped_products():
    torch._dynamo.reset()
    torch.manual_seed(0)
    experts = GluExperts(4, 32, 16).bfloat16()
    x = torch.randn(1, 40, 32).bfloat16()
    weights, chosen = route_top_softmax(torch.randn(1, 40, 4), 2)
    traced = torch.compile(experts, fullgraph=True, backend="eager")
    with torch.no_grad():
        want = experts(x, weights, chosen)
        assert harness.compare(traced(x, weights, chosen), want) <= 1e-2


# -------------------------------------------------------------------------------- latent attention


@pytest.mark.parametrize("chunks", [(1,), (3, 2)], ids=["token by token", "in chunks"])
@pytest.mark.parametrize("kind", ["plain", "padded"])
@pytest.mark.parametrize("architecture", ARCHITECTURES[1:], ids=lambda a: a.reference)
def test_prefill_equals_steps_through_the_latents(shared_folder, architecture, kind, chunks):
    general.test_prefill_equals_steps_through_the_cache(shared_folder, architecture, kind, chunks)


def test_latents_alone_are_cached(shared_folder):
    tiny = make(shared_folder, ARCHITECTURES[1])
    model = harness.emitted(tiny)
    layer = model.new_cache(2, 10)[1]
    text = model.config.text
    assert tuple(layer.keys.shape) == (2, 1, 10, text.rank + text.rope_dim)
    assert layer.values.numel() == 0
