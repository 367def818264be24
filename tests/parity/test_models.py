"""Emitted models are the public ones: stages, gradients, tokens and checkpoints.

A new architecture is one line of ARCHITECTURES (and a builder in `references`, if it has none).
"""

import copy
import filecmp
import io
import itertools
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parity import harness
from parity.harness import Tiny

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
NEW_TOKENS = 64
SEARCH = {"do_sample": False, "eos_token_id": [], "pad_token_id": 0}


@dataclass(frozen=True)
class Architecture:
    """What is tested of one spec.

    Attributes:
        spec: name of the spec.
        reference: name of the builder in `references`.
        kinds: the batches that the model takes; see `references.Case`.
        sizes: sizes other than the builder's own, by name.
        parameters: exact count of each variant at full size.
        options: settings of the spec under which it is the reference.
        choices: what a package compiled without a checkpoint has to be told.
    """

    spec: str
    reference: str
    kinds: tuple[str, ...] = ("plain", "padded", "right", "mixed", "text")
    sizes: dict[str, dict] = field(default_factory=dict)
    parameters: dict[str | None, int] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    choices: tuple[str, ...] | dict[str, Any] = ()


def tower(width: int, inner: int, layers: int, heads: int, image: int, patch: int) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
    }


def text(width: int, inner: int, layers: int, heads: int, kv_heads: int, theta: float) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    }


TOWER_AND_DECODER = {
    "grouped": {"vision": tower(40, 56, 4, 5, 30, 6), "text": text(72, 100, 3, 6, 2, 5e4)},
    "one-kv-head": {"vision": tower(32, 52, 2, 2, 21, 7), "text": text(48, 60, 1, 4, 1, 1e6)},
    "prime": {
        "vision": tower(26, 31, 3, 1, 15, 5),
        "text": {**text(58, 61, 2, 1, 1, 1e4), "rms_norm_eps": 1e-6, "vocab_size": 163},
    },
    "wide-heads": {
        "vision": tower(64, 72, 5, 8, 16, 8),
        "text": {**text(40, 96, 4, 5, 5, 1e4), "head_dim": 12},
    },
}

ARCHITECTURES = (
    Architecture(
        "llava",
        "llava",
        sizes=TOWER_AND_DECODER,
        parameters={None: 7_063_427_072, "13b": 13_351_494_656},
    ),
)

EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.reference)


def batches(architectures=ARCHITECTURES) -> list:
    """Every kind of batch with the builder's own sizes, every size with one kind, two seeds."""
    rows = []
    for a in architectures:
        rows += [(a, kind, 0, None) for kind in a.kinds]
        kinds = itertools.cycle(["padded", "mixed", "plain"])
        rows += [(a, next(kinds), 1, size) for size in a.sizes]
    return [pytest.param(*row, id="-".join(map(str, (row[0].reference, *row[1:])))) for row in rows]


EACH_BATCH = pytest.mark.parametrize(("architecture", "kind", "seed", "size"), batches())


def make(root: Path, a: Architecture, kind: str = "padded", seed: int = 0, size=None) -> Tiny:
    sizes = a.sizes[size] if size else None
    return harness.tiny_checkpoint(root, a.spec, a.reference, kind, seed, sizes, a.options)


@DTYPES
@EACH_BATCH
def test_every_stage_agrees(shared_folder, architecture, kind, seed, size, dtype):
    tiny = make(shared_folder, architecture, kind, seed, size)
    errors = harness.stage_errors(tiny, harness.emitted(tiny, dtype), dtype)
    skipped = {name for name, error in errors.items() if error is None}
    assert skipped <= harness.dead_stages(tiny)
    assert "logits" in errors and len(errors) >= 2
    wrong = {n: e for n, e in errors.items() if e is not None and e > harness.TOLERANCES[dtype]}
    assert not wrong


@DTYPES
@pytest.mark.parametrize("kind", ["plain", "padded"])
@EACH
def test_gradients_of_every_parameter_agree(shared_folder, tmp_path, architecture, kind, dtype):
    tiny = make(shared_folder, architecture, kind)
    ours, theirs = harness.emitted(tiny, dtype), harness.reference(tiny, dtype)
    harness.backward(ours, tiny, dtype)
    with harness.precision(dtype):
        harness.backward(theirs, tiny, dtype)
    got = harness.public_gradients(ours, tmp_path / "ours")
    want = harness.public_gradients(theirs, tmp_path / "theirs")
    assert got.keys() == want.keys()
    assert sum(bool(g.any()) for g in want.values()) > len(want) // 2
    limit = harness.GRADIENT_TOLERANCES[dtype]
    errors = harness.gradient_errors(got, want, dtype)
    assert not {key: error for key, error in errors.items() if error > limit}


# Generation continues rows at their end, so their padding stands on the left.
@pytest.mark.parametrize(
    ("architecture", "kind", "seed", "size"), [b for b in batches() if "right" not in b.values]
)
def test_greedy_tokens_agree(shared_folder, architecture, kind, seed, size):
    tiny = make(shared_folder, architecture, kind, seed, size)
    want = harness.greedy(harness.reference(tiny), tiny, NEW_TOKENS)
    got = harness.emitted(tiny).generate(**tiny.inputs, max_new_tokens=NEW_TOKENS, **SEARCH)
    assert torch.equal(got[:, : tiny.mask.shape[1]], tiny.inputs["input_ids"])
    assert torch.equal(got[:, tiny.mask.shape[1] :], want)


@EACH
def test_generation_stops_each_row_at_the_end_token(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model, start = harness.emitted(tiny), tiny.mask.shape[1]
    free = model.generate(**tiny.inputs, max_new_tokens=12, **SEARCH)[:, start:]
    end = int(free[0, 3])
    reference = harness.reference(tiny)
    config = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    want = reference.generate(**tiny.inputs, **config)
    assert torch.equal(model.generate(**tiny.inputs, **config), want)


@EACH
def test_sampling_repeats_with_its_seed(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    options = {"do_sample": True, "temperature": 1.5, "top_k": 40, "top_p": 0.9}
    options |= {"max_new_tokens": 16, "eos_token_id": [], "pad_token_id": 0}
    one, two, other = (model.generate(**tiny.inputs, **options, seed=s) for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@EACH_BATCH
def test_checkpoint_is_written_back_byte_for_byte(
    shared_folder, tmp_path, architecture, kind, seed, size
):
    tiny = make(shared_folder, architecture, kind, seed, size)
    harness.emitted(tiny).save_pretrained(tmp_path)
    assert_same_tensors(harness.tensors_of(tmp_path), harness.tensors_of(tiny.folder))
    settings = (tiny.folder / "config.json").read_bytes()
    assert (tmp_path / "config.json").read_bytes() == settings


def assert_same_tensors(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for key, tensor in want.items():
        assert (got[key].dtype, got[key].shape) == (tensor.dtype, tensor.shape), key
        got_bytes, want_bytes = (t.reshape(-1).view(torch.uint8) for t in (got[key], tensor))
        assert torch.equal(got_bytes, want_bytes), key


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": 100_000}], ids=["one file", "sharded"])
@EACH
def test_transformers_loads_what_was_saved(shared_folder, tmp_path, architecture, shards):
    tiny = make(shared_folder, architecture)
    harness.emitted(tiny).save_pretrained(tmp_path, **shards)
    files = list(tmp_path.glob("*.safetensors"))
    assert (tmp_path / "model.safetensors.index.json").is_file() == bool(shards)
    assert (len(files) > 1) == bool(shards)
    reference = harness.reference(tiny)
    again, report = type(reference).from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        want = reference(**tiny.inputs).logits
        assert torch.equal(again.eval()(**tiny.inputs).logits, want)


@EACH
def test_reads_a_sharded_checkpoint_of_transformers(shared_folder, tmp_path, architecture):
    tiny = make(shared_folder, architecture)
    harness.reference(tiny).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = type(harness.emitted(tiny)).from_pretrained(tmp_path)
    assert_same_tensors(dict(model.state_dict()), dict(harness.emitted(tiny).state_dict()))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["as stored", "bfloat16"])
@EACH
def test_save_load_save_is_identical(shared_folder, tmp_path, architecture, dtype):
    tiny = make(shared_folder, architecture)
    first = type(harness.emitted(tiny)).from_pretrained(tiny.folder, dtype=dtype)
    first.save_pretrained(tmp_path / "one")
    type(first).from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "two").iterdir())
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)[0] == names


@EACH
def test_package_compiled_without_sizes_loads_any_checkpoint(shared_folder, tmp_path, architecture):
    options = {"output": tmp_path / "package", "set": architecture.choices}
    package = harness.vlmspec.compile(architecture.spec, **options).load()
    for size in (None, *architecture.sizes):
        tiny = make(shared_folder, architecture, "padded", 1 if size else 0, size)
        with torch.no_grad():
            got = package.Model.from_pretrained(tiny.folder).eval()(**tiny.inputs).logits
            want = harness.reference(tiny)(**tiny.inputs).logits
        assert harness.compare(got, want, tiny.mask) <= 1e-5


@pytest.mark.parametrize("chunks", [(1,), (3, 2)], ids=["token by token", "in chunks"])
@pytest.mark.parametrize("kind", ["plain", "padded"])
@EACH
def test_prefill_equals_steps_through_the_cache(shared_folder, architecture, kind, chunks):
    tiny = make(shared_folder, architecture, kind)
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    ids = given.pop("input_ids")
    follow = torch.randint(5, 120, (len(ids), 9), generator=torch.Generator().manual_seed(1))
    whole = torch.cat([ids, follow], 1)
    mask = torch.cat([given.pop("attention_mask"), torch.ones_like(follow)], 1)
    with torch.no_grad():
        want = model(whole, attention_mask=mask, **given).logits
        cache = harness.new_cache(model, len(ids), whole.shape[1])
        pieces = [model(ids, attention_mask=mask[:, : ids.shape[1]], cache=cache, **given).logits]
        start = ids.shape[1]
        for step in itertools.cycle(chunks):
            end = min(start + step, whole.shape[1])
            piece = model(whole[:, start:end], attention_mask=mask[:, :end], cache=cache)
            pieces.append(piece.logits)
            start = end
            if start == whole.shape[1]:
                break
    assert harness.compare(torch.cat(pieces, 1), want, mask) <= 1e-12


@EACH
def test_logits_to_keep_gives_the_last_ones(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    with torch.no_grad():
        whole = model(**tiny.inputs).logits
        last = model(**tiny.inputs, logits_to_keep=2).logits
    assert last.shape[1] == 2
    assert harness.compare(last, whole[:, -2:]) <= 1e-6


@EACH
def test_batch_rows_are_independent(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny, torch.float64)
    given = tiny.given(torch.float64)
    first = {k: v.clone() for k, v in given.items()}
    last = (tiny.inputs["input_ids"][-1] >= 5) & (tiny.inputs["input_ids"][-1] < 120)
    first["input_ids"][-1][last] = 7
    first["pixel_values"][-1] += 1.0
    with torch.no_grad():
        one, two = model(**given).logits, model(**first).logits
    assert not torch.equal(one[-1], two[-1])
    assert torch.equal(one[:-1][tiny.mask[:-1].bool()], two[:-1][tiny.mask[:-1].bool()])


@EACH
def test_padding_does_not_matter(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    keep = tiny.mask[1].bool()
    alone = {k: v[2:] for k, v in given.items() if k not in ("input_ids", "attention_mask")}
    alone["input_ids"] = given["input_ids"][1:, keep]
    with torch.no_grad():
        got, want = model(**alone).logits[0], model(**given).logits[1][keep]
    assert harness.compare(got, want) <= 1e-12


@EACH
def test_two_models_live_in_one_process(shared_folder, architecture):
    tinies = [make(shared_folder, architecture, "plain", seed) for seed in (0, 1)]
    tinies += [make(shared_folder, architecture, "plain", 1, size) for size in architecture.sizes]
    models = [harness.emitted(tiny) for tiny in tinies]
    for tiny, model in [*zip(tinies, models, strict=True)] * 2:
        with torch.no_grad():
            got = model(**tiny.inputs).logits
            want = harness.reference(tiny)(**tiny.inputs).logits
        assert harness.compare(got, want) <= 1e-5


def pickled(model):
    buffer = io.BytesIO()
    pickle.dump(model, buffer)
    buffer.seek(0)
    return pickle.load(buffer)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@EACH
def test_copies_compute_the_same_and_share_nothing(shared_folder, architecture, duplicate):
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    twin = duplicate(model)
    with torch.no_grad():
        want = model(**tiny.inputs).logits
        assert torch.equal(twin(**tiny.inputs).logits, want)
        for p in model.parameters():
            p.zero_()
        assert torch.equal(twin(**tiny.inputs).logits, want)


@EACH
def test_compiles_in_one_graph(shared_folder, architecture):
    torch._dynamo.reset()
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    given = harness.planned(model, tiny.inputs)
    with torch.no_grad():
        assert harness.compare(whole(**given).logits, model(**tiny.inputs).logits) <= 1e-6
    whole(**given).logits.sum().backward()


@EACH
def test_exports(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    given = harness.planned(model, tiny.inputs)
    ids = given.pop("input_ids")
    program = torch.export.export(Logits(model), (ids,), given)
    with torch.no_grad():
        got, want = program.module()(ids, **given), model(ids, **given).logits
    assert harness.compare(got, want) <= 1e-6


class Logits(torch.nn.Module):
    """A model that returns the bare logits, as exports want."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, **inputs):
        return self.model(input_ids, **inputs).logits


def full_size_counts(architectures=ARCHITECTURES) -> list:
    return [
        pytest.param(a.spec, variant, count, id=f"{a.spec}-{variant or 'default'}")
        for a in architectures
        for variant, count in a.parameters.items()
    ]


@pytest.mark.parametrize(("spec", "variant", "count"), full_size_counts())
def test_full_size_parameter_count_is_exact(tmp_path, spec, variant, count):
    options = {"variant": variant} if variant else {}
    package = harness.vlmspec.compile(spec, output=tmp_path / "package", **options).load()
    with torch.device("meta"):
        model = package.Model(package.Config())
    assert model.num_parameters() == count
    assert sum(p.numel() for p in model.parameters()) == count


def test_reference_is_the_version_that_the_specs_were_checked_with():
    assert transformers.__version__ == "5.23.0"
