"""Systems that are a tower, a projector and a decoder put together in another way."""

import pytest
import torch
from parity import harness, originals
from parity.suite import suite
from parity.test_models import DTYPES, TOWER_AND_DECODER, Architecture

ARCHITECTURES = (
    Architecture(
        "bakllava",
        "bakllava",
        sizes=TOWER_AND_DECODER,
        parameters={None: 7_566_743_552, "7b-original": 7_566_219_264},
        choices=("text.window=12",),
    ),
    Architecture("mantis", "mantis", sizes=TOWER_AND_DECODER, parameters={None: 8_480_007_232}),
)
globals().update(suite(ARCHITECTURES))

CONVERTED = {
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.image_newline": "image_newline",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
IMAGE = 159


def bakllava(root, dtype):
    """The official model, and how many tokens an image of it is."""
    tower = originals.settings("bakllava", "mm_vision_tower.config.json")
    config = {"model_type": "llava", "image_token_index": IMAGE, "vision_config": tower}
    config["text_config"] = {**originals.settings("bakllava"), "model_type": "mistral"}
    return originals.model(root, "bakllava", "bakllava", config, CONVERTED, dtype), 16


def mantis(root, dtype):
    config = originals.settings("mantis")
    return originals.model(root, "mantis", "mantis", config, {}, dtype), 15


def mantis_clip(root, dtype):
    config = originals.settings("mantis--clip")
    return originals.model(root, "llava", "mantis--clip", config, {}, dtype), 16


OFFICIAL = [
    pytest.param(make, name, marker, token, kind, left, id=f"{name}-{kind}")
    for make, name, marker, token, kinds in (
        (bakllava, "bakllava", -200, IMAGE, {"plain": True, "padded": False}),
        # With padding on the right, this code puts an image behind the padding of its row.
        (mantis, "mantis", 150, 150, {"plain": True, "padded": True}),
        (mantis_clip, "mantis--clip", 150, 150, {"plain": True, "padded": True}),
    )
    for kind, left in kinds.items()
]


@DTYPES
@pytest.mark.parametrize(("make", "name", "marker", "token", "kind", "left"), OFFICIAL)
def test_agrees_with_the_systems_own_code(
    shared_folder, make, name, marker, token, kind, left, dtype
):
    case = originals.case(name, kind)
    model, count = make(shared_folder, dtype)
    blocks = [[token] * count] * len(case.inputs["pixel_values"])
    given = originals.prompt(case.inputs, marker, blocks, left)
    given["pixel_values"] = case.inputs["pixel_values"].to(dtype)
    output = "logits" if dtype == torch.float32 else "logits.float64"
    assert originals.error(model, given, case, output) <= harness.TOLERANCES[dtype]
    if "generated" in case.expected and dtype == torch.float32:
        want = case.expected["generated"]
        assert torch.equal(originals.generated(model, given, want.shape[1]), want)


def test_counts_the_tower_that_another_release_of_mantis_has(tmp_path):
    sizes = {"vocab_size": 128258, "num_kv_heads": 8, "intermediate_size": 14336}
    given = {f"text.{name}": value for name, value in sizes.items()}
    package = harness.vlmspec.compile("llava", output=tmp_path / "package", set=given).load()
    with torch.device("meta"):
        assert package.Model(package.Config()).num_parameters() == 8_354_764_800


def test_a_window_that_the_package_is_not_for_is_refused(shared_folder, tmp_path):
    tiny = harness.tiny_checkpoint(shared_folder, "bakllava", "bakllava", "plain", 0)
    package = harness.vlmspec.compile("bakllava", output=tmp_path / "package").load()
    with pytest.raises(ValueError, match=r"sliding_window` is 12, .* compiled for 4096"):
        package.Model.from_pretrained(tiny.folder)
