"""Images cut into tiles that suit their form, packed in reading order with newlines."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from parity import harness
from parity.suite import suite
from parity.test_models import DTYPES, TOWER_AND_DECODER, Architecture

from vlmspec.kernels.anyres import reference as anyres

ARCHITECTURES = (
    Architecture(
        "llava-next",
        "llava_next",
        sizes=TOWER_AND_DECODER,
        parameters={
            None: 7_566_747_648,
            "vicuna-7b": 7_063_431_168,
            "vicuna-13b": 13_351_499_776,
        },
        choices=("text.window=null",),
    ),
    Architecture(
        "llava-onevision",
        "llava_onevision",
        sizes=TOWER_AND_DECODER,
        parameters={None: 8_029_890_080, "0.5b": 893_675_552, "72b": 73_180_522_016},
    ),
)
globals().update(suite(ARCHITECTURES))


SIZES = [
    *((h, w) for h in (1, 3, 28, 29, 40, 57, 84, 200) for w in (1, 2, 27, 31, 56, 75, 85, 333)),
    (672, 672),
    (480, 640),
    (1024, 313),
    (97, 1501),
]


def processor(kind: str, checkpoint: dict):
    """What the public processor counts visual tokens with."""
    module = importlib.import_module(f"transformers.models.{kind}.processing_{kind}")
    cls = next(
        c for n, c in vars(module).items() if n.endswith("Processor") and kind in c.__module__
    )
    counter = cls.__new__(cls)
    counter.image_processor = SimpleNamespace(image_grid_pinpoints=checkpoint["pinpoints"])
    counter.patch_size, counter.num_image_tokens = 7, 16
    counter.num_additional_image_tokens = 1
    counter.vision_feature_select_strategy = "default"
    counter.vision_aspect_ratio = checkpoint["aspect"]
    return counter


@pytest.mark.parametrize(
    ("spec", "reference", "kind", "aspect"),
    [
        ("llava-next", "llava_next", "llava_next", ""),
        ("llava-onevision", "llava_onevision", "llava_onevision", "anyres_max_9"),
        ("llava-onevision", "llava_onevision_video", "llava_onevision", "anyres_max_1"),
    ],
    ids=["next", "onevision", "shrunk"],
)
def test_counts_visual_tokens_as_the_processor_does(shared_folder, spec, reference, kind, aspect):
    tiny = harness.tiny_checkpoint(shared_folder, spec, reference, "plain", 0)
    model = harness.emitted(tiny)
    pinpoints = [list(row) for row in model.config.pinpoints]
    counter = processor(kind, {"pinpoints": pinpoints, "aspect": aspect})
    extra = (
        1 if kind == "llava_next" else 0
    )  # its formula counts the class token, and drops it again
    want = [counter._get_number_of_features(h, w, 28, 28) - extra for h, w in SIZES]
    pixels = torch.zeros(len(SIZES), 5, 3, 1, 1)
    plan = model.plan(pixels, torch.tensor(SIZES))
    assert plan.visual_counts.tolist() == want
    assert sum(want) == len(plan[1])


@DTYPES
@pytest.mark.parametrize("reference", ["llava_onevision", "llava_onevision_video"])
@pytest.mark.parametrize("size", [(28, 28), (9, 200), (200, 9), (61, 59), (100, 37)])
def test_images_of_all_forms_are_packed_alike(shared_folder, reference, size, dtype):
    tiny = harness.tiny_checkpoint(shared_folder, "llava-onevision", reference, "plain", 0)
    ours, theirs = harness.emitted(tiny, dtype), harness.reference(tiny, dtype)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(1, 5, 3, 28, 28, generator=generator, dtype=torch.float64).to(dtype)
    given = {"pixel_values": pixels, "image_sizes": torch.tensor([size])}
    ids = torch.tensor([[1, 9, *[150] * int(ours.plan(**given).visual_counts), 8]])
    with torch.no_grad():
        got = ours(ids, **given).logits
        with harness.precision(dtype):
            want = theirs(input_ids=ids, **given).logits
    assert harness.compare(got, want) <= harness.TOLERANCES[dtype]


@pytest.mark.parametrize("row", [0, 1])
def test_a_prompt_with_other_placeholders_names_the_image(shared_folder, row):
    tiny = harness.tiny_checkpoint(shared_folder, "llava-next", "llava_next", "padded", 0)
    model, given = harness.emitted(tiny), dict(tiny.inputs)
    counts = model.plan(given["pixel_values"], given["image_sizes"]).visual_counts.tolist()
    ids = given["input_ids"] = given["input_ids"].clone()
    last = (ids[row] == 150).nonzero()[-1]
    ids[row, last] = 9
    image = 2 * row + (1 - row)
    message = (
        f"image {image} has {counts[image]} visual tokens from `packed`, but "
        rf"{counts[image] - 1} placeholders in row {row}; in all, .* {sum(counts) - 1} visual "
        rf".* give {sum(counts)} visual tokens"
    )
    with pytest.raises(ValueError, match=message):
        model(**given)


def test_borders_may_be_cut_without_rounding():
    tokens = torch.arange(48 * 48).view(48, 48)
    # 55 * (48 / 176) is a little less than 15, so it matters whether it is rounded first.
    assert anyres.cut_border(tokens, 55, 176, 7).shape == (16, 48)
    assert anyres.cut_border(tokens, 55, 176, None).shape == (14, 48)
