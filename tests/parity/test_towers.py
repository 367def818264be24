"""Models without a decoder: towers that are compared or used alone, with several outputs."""

import inspect

import pytest
import torch
from parity import harness
from parity.test_models import (
    DTYPES,
    Architecture,
    assert_same_tensors,
    full_size_counts,
    make,
    tower,
)

import vlmspec
from vlmspec import verification


def words(width: int, inner: int, layers: int, heads: int) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


PAIRS = {
    "other": {"vision": tower(40, 56, 3, 5, 30, 6), "text": words(72, 100, 3, 6)},
    "one-head": {"vision": tower(26, 31, 1, 1, 15, 5), "text": words(34, 50, 1, 1)},
}
TOWERS = {
    "other": {"vision": tower(40, 56, 3, 5, 30, 6)},
    "one-head": {"vision": tower(28, 31, 1, 1, 15, 5)},
}

ARCHITECTURES = (
    Architecture(
        "clip",
        "clip",
        ("plain", "padded"),
        sizes=PAIRS,
        parameters={
            None: 427_944_193,
            "vit-l-14": 427_616_513,
            "vit-b-32": 151_277_313,
            "vit-b-16": 149_620_737,
        },
    ),
    Architecture("clip", "clip_legacy", ("plain", "padded"), sizes=PAIRS),
    Architecture(
        "siglip",
        "siglip",
        ("plain", "padded"),
        sizes=PAIRS,
        parameters={None: 203_155_970, "so400m-patch14-384": 877_960_498},
    ),
    Architecture(
        "aimv2", "aimv2", ("plain", "padded"), sizes=PAIRS, parameters={None: 436_680_193}
    ),
    Architecture(
        "aimv2-vision",
        "aimv2_vision",
        ("plain",),
        sizes=TOWERS,
        parameters={
            None: 309_197_824,
            "large-336": 309_525_504,
            "large-448": 309_984_256,
            "huge-224": 680_851_968,
            "1b-224": 1_234_958_336,
            "3b-224": 2_720_658_432,
            "3b-448": 2_723_017_728,
        },
    ),
    Architecture(
        "aimv2-native",
        "aimv2_native",
        ("plain", "padded"),
        sizes=TOWERS,
        parameters={None: 308_935_680},
    ),
)
EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.reference)
PAIRED = [a for a in ARCHITECTURES if a.sizes is PAIRS]
EACH_PAIR = pytest.mark.parametrize("architecture", PAIRED, ids=lambda a: a.reference)


def batches() -> list:
    rows = []
    for a in ARCHITECTURES:
        rows += [(a, kind, seed, None) for seed, kind in enumerate(a.kinds)]
        rows += [(a, a.kinds[-1], 1, size) for size in a.sizes]
    return [pytest.param(*row, id="-".join(map(str, (row[0].reference, *row[1:])))) for row in rows]


EACH_BATCH = pytest.mark.parametrize(("architecture", "kind", "seed", "size"), batches())


def outputs(model, tiny, dtype, names=None) -> dict[str, torch.Tensor]:
    """What a model gives, by name."""
    found = model(**tiny.given(dtype))
    return {name: found[name] for name in names or found.keys()}


def test_batches_differ_from_each_other(shared_folder):
    one, two = (make(shared_folder, ARCHITECTURES[0], kind) for kind in ("plain", "padded"))
    assert not torch.equal(one.mask, two.mask) and one.mask.shape == two.mask.shape


@DTYPES
@EACH_BATCH
def test_every_stage_and_output_agrees(shared_folder, architecture, kind, seed, size, dtype):
    tiny = make(shared_folder, architecture, kind, seed, size)
    ours = harness.emitted(tiny, dtype)
    paths = harness.stage_paths(tiny)
    reference = harness.reference(tiny)
    mask = tiny.inputs.get("attention_mask")
    want = verification.run_reference(reference, paths, tiny.inputs, dtype)
    got = verification.run_emitted(ours, paths, tiny.inputs, dtype)
    rows = verification.compare(got, want, harness.TOLERANCES[dtype], mask)
    assert len(rows) >= 3 and all(row["error"] is not None for row in rows)
    assert not {row["name"]: row["error"] for row in rows if not row["ok"]}
    public = harness.reference(tiny, dtype)  # loaded before float32 means float64
    with torch.no_grad(), harness.precision(dtype):
        theirs = outputs(public, tiny, dtype)
    with torch.no_grad():
        mine = outputs(ours, tiny, dtype)
    for name, tensor in mine.items():
        assert tensor.shape == theirs[name].shape, name
        assert harness.compare(tensor, theirs[name]) <= harness.TOLERANCES[dtype], name


@DTYPES
@EACH_BATCH
def test_gradients_agree(shared_folder, tmp_path, architecture, kind, seed, size, dtype):
    tiny = make(shared_folder, architecture, kind, seed, size)
    ours, theirs = harness.emitted(tiny, dtype), harness.reference(tiny, dtype)
    names = list(outputs(ours, tiny, dtype))
    backward(ours, tiny, dtype, names)
    with harness.precision(dtype):
        backward(theirs, tiny, dtype, names)
    got = harness.public_gradients(ours, tmp_path / "ours")
    want = harness.public_gradients(theirs, tmp_path / "theirs")
    assert got.keys() == want.keys()
    assert sum(bool(g.any()) for g in want.values()) > 0.7 * len(want)
    limit = harness.GRADIENT_TOLERANCES[dtype]
    errors = harness.gradient_errors(got, want, dtype)
    assert not {key: error for key, error in errors.items() if error > limit}


def backward(model, tiny, dtype, names) -> None:
    """Back-propagate every output, weighted at random."""
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=dtype)
    for tensor in outputs(model, tiny, dtype, names).values():
        weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        total = total + (tensor * weights.to(tensor.dtype)).sum()
    total.backward()


@EACH_BATCH
def test_checkpoint_is_written_back_byte_for_byte(
    shared_folder, tmp_path, architecture, kind, seed, size
):
    tiny = make(shared_folder, architecture, kind, seed, size)
    harness.emitted(tiny).save_pretrained(tmp_path)
    assert_same_tensors(harness.tensors_of(tmp_path), harness.tensors_of(tiny.folder))
    settings = (tiny.folder / "config.json").read_bytes()
    assert (tmp_path / "config.json").read_bytes() == settings


@EACH
def test_transformers_loads_what_was_saved(shared_folder, tmp_path, architecture):
    tiny = make(shared_folder, architecture, architecture.kinds[0])
    harness.emitted(tiny).save_pretrained(tmp_path)
    reference = harness.reference(tiny)
    again, report = type(reference).from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    names = list(outputs(harness.emitted(tiny), tiny, torch.float32))
    with torch.no_grad():
        want = outputs(reference, tiny, torch.float32, names)
        got = outputs(again, tiny, torch.float32, names)
    assert all(torch.equal(got[name], want[name]) for name in names)


@EACH
def test_package_compiled_without_sizes_loads_any_checkpoint(shared_folder, tmp_path, architecture):
    options = {"output": tmp_path / "package", "set": architecture.choices}
    package = vlmspec.compile(architecture.spec, **options).load()
    for size in (None, *architecture.sizes):
        tiny = make(shared_folder, architecture, architecture.kinds[-1], 1 if size else 0, size)
        model = package.Model.from_pretrained(tiny.folder).eval()
        with torch.no_grad():
            got = outputs(model, tiny, torch.float32)
            want = outputs(harness.reference(tiny), tiny, torch.float32, got)
        assert all(harness.compare(got[n], want[n]) <= 1e-5 for n in got)


@EACH
def test_has_no_generation(shared_folder, architecture):
    tiny = make(shared_folder, architecture, architecture.kinds[0])
    model = harness.emitted(tiny)
    assert not hasattr(model, "generate") and not hasattr(model, "new_cache")
    names = set(inspect.signature(model.forward).parameters)
    assert names.isdisjoint({"cache", "logits_to_keep", "position_ids"})
    folder = harness.compiled(tiny.spec, tiny.folder, tiny.set).path
    assert not (folder / "generation.py").exists()


@EACH_PAIR
def test_each_tower_works_alone(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model, given = harness.emitted(tiny), tiny.inputs
    with torch.no_grad():
        both = model(**given)
        image = model(pixel_values=given["pixel_values"])
        text = model(**{k: v for k, v in given.items() if k != "pixel_values"})
    assert image.keys() == ("image_embeds",) and text.keys() == ("text_embeds",)
    assert torch.equal(image.image_embeds, both.image_embeds)
    assert torch.equal(text.text_embeds, both.text_embeds)
    assert torch.equal(both.logits_per_text, both.logits_per_image.T)
    assert len(both.to_tuple()) == 4 and model().keys() == ()


@EACH_PAIR
def test_rows_are_independent(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    changed = {k: v.clone() for k, v in given.items()}
    changed["input_ids"][-1][-3] = 7 + (changed["input_ids"][-1][-3] == 7)
    changed["pixel_values"][-1] += 1.0
    with torch.no_grad():
        one, two = model(**given), model(**changed)
    for name in ("text_embeds", "image_embeds"):
        assert torch.equal(one[name][:-1], two[name][:-1])
        assert not torch.equal(one[name][-1], two[name][-1])


@EACH
def test_compiles_in_one_graph(shared_folder, architecture):
    torch._dynamo.reset()
    tiny = make(shared_folder, architecture, architecture.kinds[-1])
    model = harness.emitted(tiny)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        got, want = (outputs(m, tiny, torch.float32) for m in (whole, model))
    assert got.keys() == want.keys()
    assert all(harness.compare(got[name], want[name]) <= 1e-6 for name in want)
    sum(t.sum() for t in outputs(whole, tiny, torch.float32).values()).backward()


@EACH
def test_exports(shared_folder, architecture):
    tiny = make(shared_folder, architecture, architecture.kinds[-1])
    model = harness.emitted(tiny)
    program = torch.export.export(Tensors(model), (), dict(tiny.inputs))
    with torch.no_grad():
        got = program.module()(**tiny.inputs)
        want = model(**tiny.inputs).to_tuple()
    assert len(got) == len(want)
    assert all(harness.compare(a, b) <= 1e-6 for a, b in zip(got, want, strict=True))


class Tensors(torch.nn.Module):
    """A model that returns the bare tensors, as exports want."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs).to_tuple()


@EACH
def test_verifies_itself(shared_folder, architecture):
    tiny = make(shared_folder, architecture, architecture.kinds[0])
    compiled = harness.compiled(tiny.spec, tiny.folder, tiny.set)
    result = vlmspec.verification.verify(compiled, tiny.folder)
    assert result["ok"] and len(result["stages"]) > 3, result["stages"]


@pytest.mark.parametrize(("spec", "variant", "count"), full_size_counts(ARCHITECTURES))
def test_full_size_parameter_count_is_exact(tmp_path, spec, variant, count):
    options = {"variant": variant} if variant else {}
    package = vlmspec.compile(spec, output=tmp_path / "package", **options).load()
    with torch.device("meta"):
        model = package.Model(package.Config())
    assert model.num_parameters() == count


@pytest.mark.parametrize(("name", "reference"), [("eos", "clip"), ("largest", "clip_legacy")])
def test_the_end_of_text_is_what_is_pooled(shared_folder, name, reference):
    architecture = next(a for a in ARCHITECTURES if a.reference == reference)
    tiny = make(shared_folder, architecture, "plain")
    model, ids = harness.emitted(tiny, torch.float64), tiny.inputs["input_ids"].clone()
    ids[:, 1] = 140 if name == "largest" else model.config.text.eos_token_id
    changed = ids.clone()
    changed[:, 2] = 9 + (changed[:, 2] == 9)  # after what is pooled, so no embedding sees it
    with torch.no_grad():
        one, two = (model(input_ids=given).text_embeds for given in (ids, changed))
    assert torch.equal(one, two)
