"""Images whose maps of tokens are shrunk, and videos beside them or alone."""

from importlib.resources import files

import pytest
import torch
from parity import harness, originals
from parity.suite import suite
from parity.test_models import DTYPES, TOWER_AND_DECODER, Architecture
from references import VID

specs = files("vlmspec.specs")
ARCHITECTURES = (Architecture("llava-onevision", "llava_onevision_video", sizes=TOWER_AND_DECODER),)
globals().update(
    suite(
        ARCHITECTURES,
        [
            # From how many tiles on maps are shrunk is in the code of a package.
            "test_package_compiled_without_sizes_loads_any_checkpoint",
            # It takes all that a row has to be images.
            "test_padding_does_not_matter",
        ],
    )
)


def checkpoint(root, kind: str = "padded"):
    return harness.tiny_checkpoint(root, "llava-onevision", "llava_onevision_video", kind, 0)


@DTYPES
def test_a_video_without_images(shared_folder, dtype):
    tiny = checkpoint(shared_folder)
    keep = tiny.inputs["input_ids"][1] != 150
    ids = tiny.inputs["input_ids"][1:, keep]
    video = tiny.inputs["pixel_values_videos"][1:].to(dtype)
    ours, theirs = harness.emitted(tiny, dtype), harness.reference(tiny, dtype)
    mask = (ids != 0).long()
    with torch.no_grad():
        got = ours(ids, pixel_values_videos=video, attention_mask=mask).logits
        with harness.precision(dtype):
            want = theirs(input_ids=ids, pixel_values_videos=video, attention_mask=mask).logits
    assert harness.compare(got, want, mask) <= harness.TOLERANCES[dtype]


@DTYPES
def test_several_images_of_a_row_are_not_cut(shared_folder, dtype):
    tiny = harness.tiny_checkpoint(shared_folder, "llava-onevision", "llava_onevision", "padded", 0)
    ours, theirs = harness.emitted(tiny, dtype), harness.reference(tiny, dtype)
    pixels, sizes = (tiny.inputs[n] for n in ("pixel_values", "image_sizes"))
    given = {"pixel_values": pixels.to(dtype), "image_sizes": sizes}
    given["batch_num_images"] = torch.tensor([2, 1])
    counts = ours.plan(**given).visual_counts.tolist()
    assert counts[:2] == [17, 17] and counts[2] > 17
    rows = [[1, *[150] * 17, 9, *[150] * 17, 8, 7], [1, 6, *[150] * counts[2], 5]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = (ids != 0).long()
    with torch.no_grad():
        got = ours(ids, attention_mask=mask, **given).logits
        with harness.precision(dtype):
            want = theirs(input_ids=ids, attention_mask=mask, **given).logits
    assert harness.compare(got, want, mask) <= harness.TOLERANCES[dtype]


def test_rows_with_videos_do_not_see_their_padding(shared_folder):
    tiny = checkpoint(shared_folder)
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    keep = tiny.mask[1].bool()
    alone = {n: given[n][2:] for n in ("pixel_values", "image_sizes")}
    alone["pixel_values_videos"] = given["pixel_values_videos"][1:]
    with torch.no_grad():
        got = model(given["input_ids"][1:, keep], **alone).logits[0]
        want = model(**given).logits[1][keep]
    assert harness.compare(got, want) <= 1e-12


def test_a_video_of_other_length_is_refused(shared_folder):
    tiny = checkpoint(shared_folder)
    model, given = harness.emitted(tiny), dict(tiny.inputs)
    given["pixel_values_videos"] = given["pixel_values_videos"][:, :2]
    held = int((given["input_ids"] == VID).sum()) // 2
    with pytest.raises(ValueError, match=f"image 0 has 9 .* from `clips`, but {held} placeholders"):
        model(**given)


CONVERTED = {
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.image_newline": "image_newline",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def official(root):
    """The official model: it rounds no borders, and says widths before heights."""
    name = "llava-onevision--original"
    text = specs.joinpath("llava-onevision.yaml").read_text()
    spec = root / "llava-onevision.yaml"
    spec.write_text(text.replace("side: side,\n", "side: side, digits: null,\n"))
    settings = originals.settings(name)
    tower = settings["vision_config_of_mm_vision_tower"]
    config = {
        "model_type": "llava_onevision",
        "image_token_index": 158,
        "video_token_index": 159,
        "image_grid_pinpoints": [row[::-1] for row in settings["image_grid_pinpoints"]],
        "vision_aspect_ratio": settings["image_aspect_ratio"],
        "vision_config": {**tower, "num_hidden_layers": 2, "vision_use_head": False},
        "text_config": {**settings, "model_type": "qwen2"},
    }
    return originals.model(root, spec, name, config, CONVERTED, torch.float32)


def pictures(case) -> tuple[dict, str]:
    """The inputs that the pictures or videos of an official case are here, and which of the two."""
    found = [v for k, v in sorted(case.inputs.items()) if k.startswith(("image_0", "image_1"))]
    if not found:
        return {"pixel_values_videos": case.inputs["video_0"][None]}, "video"
    slots = max(map(len, found))
    padded = [torch.nn.functional.pad(v, (0, 0) * 3 + (0, slots - len(v))) for v in found]
    sizes = case.inputs["image_sizes"].flip(-1)
    return {"pixel_values": torch.stack(padded), "image_sizes": sizes}, "image"


@pytest.mark.parametrize("kind", ["plain", "video"])
def test_agrees_with_the_systems_own_code(tmp_path, kind):
    case = originals.case("llava-onevision--original", kind)
    model = official(tmp_path)
    given, what = pictures(case)
    blocks = [[159] * (4 * 2 * 2 + 1)]
    if what == "image":
        blocks = [[158] * n for n in model.plan(**given).visual_counts.tolist()]
    given |= originals.prompt(case.inputs, -200, blocks, left=False)
    assert originals.error(model, given, case) <= 1e-5
    want = case.expected["generated"]
    assert torch.equal(originals.generated(model, given, want.shape[1]), want)
