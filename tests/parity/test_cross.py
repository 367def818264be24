"""Architectures that attend to images or encoded text: layers of cross-attention, query
transformers, encoder-decoders."""

import itertools
import json

import pytest
import torch
from parity import harness
from parity import test_models as models
from parity.test_models import Architecture, make

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])

TILED = {
    "grouped": {
        "vision": {
            "hidden_size": 40,
            "num_hidden_layers": 4,
            "num_global_layers": 1,
            "attention_heads": 5,
            "intermediate_size": 56,
            "image_size": 30,
            "patch_size": 6,
            "intermediate_layers_indices": [0, 1, 3],
        },
        "text": {
            "hidden_size": 72,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "intermediate_size": 100,
            "cross_attention_layers": [1, 2, 4],
        },
    },
    "one-kv-head": {
        "vision": {"image_size": 21, "patch_size": 7, "intermediate_layers_indices": [1]},
        "text": {"num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6},
    },
}

TOWER = {
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "image_size": 21,
    "patch_size": 7,
}
QUERIES = {
    "hidden_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "layer_norm_eps": 1e-6,
}
QUERIED = {
    "other": {
        "vision": TOWER,
        "qformer": QUERIES,
        "queries": {"num_query_tokens": 3},
        "text": {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5},
    }
}
ENCODED = {
    "other": {
        "vision": TOWER,
        "qformer": QUERIES,
        "queries": {"num_query_tokens": 3},
        "text": {
            "d_model": 40,
            "d_kv": 9,
            "num_heads": 3,
            "num_decoder_layers": 1,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 12,
        },
    },
}
ONE_EACH = ("plain", "padded", "right")

ARCHITECTURES = (
    Architecture(
        "llama-3.2-vision",
        "mllama",
        sizes=TILED,
        parameters={None: 10_670_220_835, "11b-448": 10_642_941_475, "90b": 88_593_355_323},
        options=("vision.tap_when=after",),
    ),
    Architecture(
        "llava-cot",
        "mllama",
        kinds=("padded",),
        parameters={None: 10_670_220_835},
        options=("vision.tap_when=after",),
    ),
    Architecture(
        "instructblip",
        "instructblip_vicuna",
        kinds=ONE_EACH,
        sizes=QUERIED,
        parameters={
            None: 7_913_726_720,
            "vicuna-7b-original": 7_913_210_624,
            "vicuna-13b": 14_191_448_832,
        },
    ),
    Architecture(
        "instructblip-t5",
        "instructblip_t5",
        kinds=ONE_EACH,
        sizes=ENCODED,
        parameters={None: 4_022_969_088, "flan-t5-xxl": 12_310_119_168},
    ),
)

EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.reference)


def batches(*without: str) -> list:
    """Every kind of batch with the builder's own sizes, every size with one kind."""
    rows = []
    for a in ARCHITECTURES:
        rows += [(a, kind, 0, None) for kind in a.kinds if kind not in without]
        kinds = itertools.cycle(["padded", "mixed"])
        rows += [(a, next(kinds), 1, size) for size in a.sizes]
    return [pytest.param(*row, id="-".join(map(str, (row[0].reference, *row[1:])))) for row in rows]


ROWS = ("architecture", "kind", "seed", "size")


@DTYPES
@pytest.mark.parametrize(ROWS, batches())
def test_every_stage_agrees(shared_folder, architecture, kind, seed, size, dtype):
    models.test_every_stage_agrees(shared_folder, architecture, kind, seed, size, dtype)


@DTYPES
@pytest.mark.parametrize("kind", ["plain", "padded"])
@EACH
def test_gradients_of_every_parameter_agree(shared_folder, tmp_path, architecture, kind, dtype):
    models.test_gradients_of_every_parameter_agree(
        shared_folder, tmp_path, architecture, kind, dtype
    )


@pytest.mark.parametrize(ROWS, batches("right"))
def test_greedy_tokens_agree(shared_folder, architecture, kind, seed, size):
    tiny = make(shared_folder, architecture, kind, seed, size)
    want = harness.greedy(harness.reference(tiny), tiny, models.NEW_TOKENS)
    options = {"max_new_tokens": models.NEW_TOKENS, **models.SEARCH}
    got = harness.emitted(tiny).generate(**tiny.inputs, **options)
    assert torch.equal(got[:, -models.NEW_TOKENS :], want)
    prompt = tiny.inputs.get("decoder_input_ids", tiny.inputs["input_ids"])
    assert torch.equal(got[:, : -models.NEW_TOKENS], prompt)


@EACH
def test_tokens_are_those_without_a_cache(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model = harness.emitted(tiny)
    want = model.generate(**tiny.inputs, max_new_tokens=12, **models.SEARCH)
    got = model.generate(**tiny.inputs, max_new_tokens=12, use_cache=False, **models.SEARCH)
    assert torch.equal(got, want)


@pytest.mark.parametrize(ROWS, batches())
def test_checkpoint_is_written_back_byte_for_byte(
    shared_folder, tmp_path, architecture, kind, seed, size
):
    models.test_checkpoint_is_written_back_byte_for_byte(
        shared_folder, tmp_path, architecture, kind, seed, size
    )


@EACH
def test_transformers_loads_what_was_saved(shared_folder, tmp_path, architecture):
    models.test_transformers_loads_what_was_saved(shared_folder, tmp_path, architecture, {})


@EACH
def test_generation_stops_each_row_at_the_end_token(shared_folder, architecture):
    models.test_generation_stops_each_row_at_the_end_token(shared_folder, architecture)


@EACH
def test_logits_to_keep_gives_the_last_ones(shared_folder, architecture):
    models.test_logits_to_keep_gives_the_last_ones(shared_folder, architecture)


@EACH
def test_batch_rows_are_independent(shared_folder, architecture):
    models.test_batch_rows_are_independent(shared_folder, architecture)


@EACH
def test_compiles_in_one_graph(shared_folder, architecture):
    models.test_compiles_in_one_graph(shared_folder, architecture)


@EACH
def test_exports(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    program = torch.export.export(Logits(model), (), dict(tiny.inputs))
    with torch.no_grad():
        got, want = program.module()(**tiny.inputs), model(**tiny.inputs).logits
    assert harness.compare(got, want) <= 1e-6


class Logits(torch.nn.Module):
    """A model that returns the bare logits, as exports want."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs).logits


@pytest.mark.parametrize(
    ("spec", "variant", "count"),
    [
        pytest.param(a.spec, variant, count, id=f"{a.spec}-{variant or 'default'}")
        for a in ARCHITECTURES
        for variant, count in a.parameters.items()
    ],
)
def test_full_size_parameter_count_is_exact(tmp_path, spec, variant, count):
    models.test_full_size_parameter_count_is_exact(tmp_path, spec, variant, count)


TILED_MODEL = ARCHITECTURES[0]


@pytest.mark.parametrize("chunks", [(1,), (3, 2)], ids=["token by token", "in chunks"])
@pytest.mark.parametrize("kind", ["plain", "padded", "mixed"])
def test_tiles_are_attended_to_from_the_cache(shared_folder, kind, chunks):
    tiny = make(shared_folder, TILED_MODEL, kind)
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    ids, seen = given.pop("input_ids"), given.pop("cross_attention_mask")
    follow = torch.randint(5, 120, (len(ids), 9), generator=torch.Generator().manual_seed(1))
    whole = torch.cat([ids, follow], 1)
    mask = torch.cat([given.pop("attention_mask"), torch.ones_like(follow)], 1)
    seen = torch.cat([seen, seen[:, -1:].expand(-1, 9, -1, -1)], 1)
    start = ids.shape[1]
    with torch.no_grad():
        want = model(whole, attention_mask=mask, cross_attention_mask=seen, **given).logits
        cache = harness.new_cache(model, len(ids), whole.shape[1])
        first = {"attention_mask": mask[:, :start], "cross_attention_mask": seen[:, :start]}
        pieces = [model(ids, cache=cache, **first, **given).logits]
        for step in itertools.cycle(chunks):
            end = min(start + step, whole.shape[1])
            rest = {"attention_mask": mask[:, :end], "cross_attention_mask": seen[:, :end]}
            pieces.append(model(whole[:, start:end], cache=cache, **rest).logits)
            start = end
            if start == whole.shape[1]:
                break
    assert harness.compare(torch.cat(pieces, 1), want, mask) <= 1e-12


def test_states_are_tapped_before_the_listed_layers_by_default(shared_folder, tmp_path):
    """The published checkpoints were trained so; transformers takes the states one layer later."""
    early = make(shared_folder, TILED_MODEL, "padded", 1, "one-kv-head")
    for file in early.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((early.folder / "config.json").read_text())
    assert settings["vision_config"]["intermediate_layers_indices"] == [1]
    settings["vision_config"]["intermediate_layers_indices"] = [2]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    package = harness.compiled("llama-3.2-vision", tmp_path).load()
    model = package.Model.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        want = harness.reference(early)(**early.inputs).logits
        assert harness.compare(model(**early.inputs).logits, want, early.mask) <= 1e-5
        late = harness.compiled("llama-3.2-vision", tmp_path, ("vision.tap_when=after",)).load()
        other = late.Model.from_pretrained(tmp_path).eval()(**early.inputs).logits
    assert harness.compare(other, want, early.mask) > 1e-3


def test_tiles_fill_the_memory_that_the_processor_counts(tmp_path):
    """Every image gives num_tiles * ((image / patch) ** 2 + 1) positions, whatever its size."""
    package = harness.vlmspec.compile("llama-3.2-vision", output=tmp_path / "package").load()
    config = package.Config()
    assert config.vision.num_tiles * config.vision.num_positions == 6404


@pytest.mark.parametrize("missing", ["none", "first row", "every row"])
def test_rows_that_see_nothing_agree(shared_folder, missing):
    tiny = make(shared_folder, TILED_MODEL, "padded")
    seen = tiny.inputs["cross_attention_mask"].clone()
    if missing != "none":
        seen[slice(0, 1) if missing == "first row" else slice(None)] = 0
    given = tiny.inputs | {"cross_attention_mask": seen}
    with torch.no_grad():
        want = harness.reference(tiny)(**given).logits
        got = harness.emitted(tiny)(**given).logits
    assert harness.compare(got, want, tiny.mask) <= 1e-5
