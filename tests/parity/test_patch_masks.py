"""Encoders that read padded batches: rows with fewer images than others, images smaller than the
batch.

Their forward traces when it is given a plan; see `Model.plan`.
"""

import pytest
import torch
from parity import harness
from parity.suite import suite
from parity.test_models import DTYPES, Architecture, Logits, make, text, tower
from parity.test_packed import plan_of

SIZES = {
    "grouped": {"vision": tower(40, 56, 3, 5, 60, 10), "text": text(72, 100, 3, 6, 2, 5e4)},
    "one-kv-head": {"vision": tower(32, 52, 2, 2, 84, 7), "text": text(48, 60, 1, 4, 1, 1e6)},
}

ARCHITECTURES = (
    Architecture(
        "idefics3",
        "idefics3",
        sizes=SIZES,
        parameters={None: 8_462_086_384},
        choices=("text.rope_type=default",),
    ),
    Architecture(
        "smolvlm",
        "smolvlm",
        sizes=SIZES,
        parameters={None: 2_246_784_880, "500m": 507_482_304, "256m": 256_484_928},
    ),
)
EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.reference)
# Those ask for images without slots, or trace without a plan; they are asked below instead.
INSTEAD = [
    "test_batch_rows_are_independent",
    "test_padding_does_not_matter",
    "test_compiles_in_one_graph",
    "test_exports",
]
globals().update(suite(ARCHITECTURES, INSTEAD))


@EACH
def test_batch_rows_are_independent(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    first = {k: v.clone() for k, v in given.items()}
    first["pixel_values"][-1, 0] += 1.0
    with torch.no_grad():
        one, two = model(**given).logits, model(**first).logits
    assert not torch.equal(one[-1], two[-1])
    assert torch.equal(one[:-1][tiny.mask[:-1].bool()], two[:-1][tiny.mask[:-1].bool()])


@EACH
def test_padding_does_not_matter(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    keep = tiny.mask[1].bool()
    alone = {name: value[1:] for name, value in given.items()}
    alone = {"input_ids": alone["input_ids"][:, keep]} | {
        name: alone[name][:, :1] for name in ("pixel_values", "pixel_attention_mask")
    }
    with torch.no_grad():
        got, want = model(**alone).logits[0], model(**given).logits[1][keep]
    assert harness.compare(got, want) <= 1e-12


@EACH
def test_padded_pixels_do_not_matter_and_real_ones_do(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    patch = model.config.vision.patch_size
    mask = given["pixel_attention_mask"][0, 1]
    rows = -(-int(mask[:, 0].sum()) // patch) * patch
    assert rows < mask.shape[0]
    other = {name: value.clone() for name, value in given.items()}
    other["pixel_values"][0, 1, :, rows:] = 3.0
    with torch.no_grad():
        seen = model(**given).logits
        # Padding inside an image still becomes visual tokens, so only what real patches see is
        # alike.
        plan = plan_of(model, given)
        vision = [
            model.vision(x["pixel_values"], plan.kept, plan.patch_positions, plan.patch_mask)
            for x in (given, other)
        ]
    real = plan.patch_mask[1].flatten()
    assert harness.compare(vision[0][1][real], vision[1][1][real]) <= 1e-14
    assert harness.compare(vision[0][1][~real], vision[1][1][~real]) > 1e-3
    other["pixel_values"][0, 1, :, :rows] = 3.0
    with torch.no_grad():
        assert harness.compare(model(**other).logits[0], seen[0]) > 1e-3


@EACH
@pytest.mark.parametrize("side", [1.0, 0.5], ids=["whole", "half"])
def test_without_a_pixel_mask_images_fill_their_slots(shared_folder, architecture, side):
    tiny = make(shared_folder, architecture, "plain")
    given = {k: v for k, v in tiny.inputs.items() if k != "pixel_attention_mask"}
    size = int(given["pixel_values"].shape[-1] * side)
    given["pixel_values"] = given["pixel_values"][..., :size, :size]
    model = harness.emitted(tiny)
    factor = harness.reference(tiny).config.scale_factor
    tokens = (size // model.config.vision.patch_size // factor) ** 2
    given["input_ids"], given["attention_mask"] = shortened(given, tokens)
    assert plan_of(model, given).patch_mask is None
    with torch.no_grad():
        got, want = model(**given).logits, harness.reference(tiny)(**given).logits
    assert harness.compare(got, want) <= 1e-5


def shortened(given: dict, tokens: int):
    """The prompt with `tokens` placeholders an image, in one row."""
    image, start = 150, 152
    ids: list[int] = []
    for token in given["input_ids"][0].tolist():
        if token != image:
            ids += [token] + [image] * tokens * (token == start)
    return torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)


@DTYPES
def test_agrees_with_the_rotary_scaling_of_the_published_decoder(shared_folder, dtype):
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    sizes = {"text": {"rope_parameters": rope}}
    tiny = harness.tiny_checkpoint(shared_folder, "idefics3", "idefics3", "padded", 0, sizes)
    errors = harness.stage_errors(tiny, harness.emitted(tiny, dtype), dtype)
    assert max(errors.values()) <= harness.TOLERANCES[dtype]


@EACH
def test_compiles_in_one_graph_with_a_plan(shared_folder, architecture):
    torch._dynamo.reset()
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    given = {**tiny.inputs, "plan": plan_of(model, tiny.inputs)}
    whole = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert harness.compare(whole(**given).logits, model(**tiny.inputs).logits) <= 1e-6
    whole(**given).logits.sum().backward()


@EACH
def test_exports_with_a_plan(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    given = {**tiny.inputs, "plan": plan_of(model, tiny.inputs)}
    ids = given.pop("input_ids")
    program = torch.export.export(Logits(model), (ids,), given)
    with torch.no_grad():
        got, want = program.module()(ids, **given), model(ids, **given).logits
    assert harness.compare(got, want) <= 1e-6


@pytest.mark.parametrize(
    ("spec", "variant", "tokens"),
    [("idefics3", None, 169), ("smolvlm", None, 81), ("smolvlm", "500m", 64)],
)
def test_visual_tokens_of_a_tile_are_the_published_number(tmp_path, spec, variant, tokens):
    options = {"variant": variant} if variant else {}
    package = harness.vlmspec.compile(spec, output=tmp_path / "package", **options).load()
    with torch.device("meta"):
        model = package.Model(package.Config())
        vision = torch.empty(1, model.config.vision.num_patches, model.config.vision.hidden_size)
        assert model.project(vision).shape[1] == tokens
