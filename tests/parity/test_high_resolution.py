"""Encoders over large maps beside those of the usual size: windows, offsets, convolutions."""

import pytest
import torch
from parity import harness
from parity.suite import suite
from parity.test_models import DTYPES, Architecture, make, text, tower

TEXT = text(72, 100, 3, 6, 2, 5e4)
ONE_TOWER = {
    "grouped": {"vision": tower(40, 56, 4, 5, 30, 6), "text": TEXT},
    "one-kv-head": {"vision": tower(32, 52, 2, 2, 21, 7), "text": text(48, 60, 1, 4, 1, 1e6)},
}


def large(width: int, layers: int, heads: int, side: int, window: int, neck: int) -> dict:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side * 4,
        "patch_size": 4,
        "window_size": window,
        "output_channels": neck,
        "mlp_ratio": 1.5,
    }


TWO_TOWERS = {
    # Windows that divide the map, that do not, and that are larger than it.
    "even": {**ONE_TOWER["grouped"], "high": large(24, 4, 3, 10, 5, 12)},
    "ragged": {**ONE_TOWER["grouped"], "high": large(40, 3, 2, 11, 4, 6)},
    "larger": {**ONE_TOWER["one-kv-head"], "high": large(16, 2, 1, 5, 7, 4)},
}

ARCHITECTURES = (
    Architecture(
        "deepseek-vl-1.3b",
        "deepseek_vl",
        sizes=ONE_TOWER,
        parameters={None: 1_975_235_584},
        choices=("vision.act=gelu_pytorch_tanh",),
    ),
    Architecture(
        "deepseek-vl",
        "deepseek_vl_hybrid",
        sizes=TWO_TOWERS,
        parameters={None: 7_343_985_921},
        choices={
            "vision.act": "gelu_pytorch_tanh",
            "high.global_layers": [1],
            "high.early_layer": 1,
        },
    ),
)
# That one gives the images alone, without the larger ones; it is asked below instead.
globals().update(suite(ARCHITECTURES, ["test_padding_does_not_matter"]))

EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.reference)


@EACH
def test_padding_does_not_matter(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    keep = tiny.mask[1].bool()
    alone = {name: value[2:] for name, value in given.items() if "pixel" in name}
    alone["input_ids"] = given["input_ids"][1:, keep]
    with torch.no_grad():
        got, want = model(**alone).logits[0], model(**given).logits[1][keep]
    assert harness.compare(got, want) <= 1e-12


@DTYPES
def test_state_of_another_early_layer_is_taken(shared_folder, dtype):
    sizes = {"high": {"num_hidden_layers": 5, "global_attn_indexes": [0, 3]}}
    name = "deepseek_vl_hybrid"
    tiny = harness.tiny_checkpoint(shared_folder, "deepseek-vl", name, "padded", 0, sizes)
    errors = harness.stage_errors(tiny, harness.emitted(tiny, dtype), dtype)
    assert max(e for e in errors.values() if e is not None) <= harness.TOLERANCES[dtype]


def test_both_images_and_both_depths_matter(shared_folder):
    tiny = harness.tiny_checkpoint(shared_folder, "deepseek-vl", "deepseek_vl_hybrid", "plain", 0)
    model = harness.emitted(tiny, torch.float64)
    given = tiny.given(torch.float64)
    with torch.no_grad():
        want = model(**given).logits
        for name in ("pixel_values", "high_res_pixel_values"):
            assert harness.compare(model(**{**given, name: given[name] + 0.5}).logits, want) > 1e-3
        model.high.alpha.zero_()
        assert harness.compare(model(**given).logits, want) > 1e-3


@pytest.mark.parametrize("spec", ["deepseek-vl-1.3b", "deepseek-vl"])
def test_an_image_becomes_576_visual_tokens(tmp_path, spec):
    package = harness.vlmspec.compile(spec, output=tmp_path / "package").load()
    config = package.Config()
    with torch.device("meta"):
        model = package.Model(config)
        pixels = torch.empty(1, 3, config.vision.image_size, config.vision.image_size)
        visual = model.vision(pixels)
        if hasattr(model, "high"):
            large = torch.empty(1, 3, config.high.image_size, config.high.image_size)
            visual = model.project(visual, model.high(large))
    assert visual.shape[1] == 576
