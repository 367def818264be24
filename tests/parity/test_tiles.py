"""Encoders whose patches are put together before they are spliced in, over tiles of an image."""

import pytest
import references
import torch
from parity import harness
from parity.suite import suite
from parity.test_models import Architecture, make, text, tower

VISION_AND_TEXT = {
    "grouped": {"vision": tower(40, 56, 3, 5, 24, 6), "text": text(72, 100, 3, 6, 2, 5e4)},
    "one-kv-head": {"vision": tower(32, 52, 2, 2, 28, 7), "text": text(48, 60, 1, 4, 1, 1e6)},
}

ARCHITECTURES = (
    Architecture(
        "internvl-2.5",
        "internvl_llama",
        sizes=VISION_AND_TEXT,
        parameters={
            None: 8_075_365_376,
            "1b": 938_193_024,
            "2b": 2_205_754_368,
            "4b": 3_712_637_952,
            "26b": 25_514_186_112,
            "38b": 38_388_164_992,
            "78b": 78_408_318_336,
        },
        choices=("vision.qkv_bias=true",),
    ),
    Architecture(
        "internvl-2.5",
        "internvl",
        sizes=VISION_AND_TEXT,
        choices=("vision.qkv_bias=true", "text.decoder=qwen2"),
    ),
    Architecture(
        "internvl-2.5",
        "internvl_6b",
        choices=(
            "vision.norm=rms_norm",
            "vision.qk_norm=width",
            "text.decoder=qwen3",
            "vision.qkv_bias=false",
        ),
    ),
)
# Images are of several tiles each, so this one is asked below.
globals().update(suite(ARCHITECTURES, ["test_padding_does_not_matter"]))

EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.reference)


@EACH
def test_padding_does_not_matter(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    keep = tiny.mask[1].bool()
    last = given["input_ids"][1] == references.IMG
    count = int(last.sum()) * 4 // model.config.vision.num_patches
    alone = {
        "input_ids": given["input_ids"][1:, keep],
        "pixel_values": given["pixel_values"][-count:],
    }
    with torch.no_grad():
        got, want = model(**alone).logits[0], model(**given).logits[1][keep]
    assert harness.compare(got, want) <= 1e-12
