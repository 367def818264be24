"""Patches of any resolution that go straight into a decoder."""

import pytest
import torch
from parity import harness, originals
from parity.suite import suite
from parity.test_models import DTYPES, Architecture


def text(width: int, inner: int, layers: int, heads: int, share: float, theta: float) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": theta,
            "partial_rotary_factor": share,
        },
    }


ARCHITECTURES = (
    Architecture(
        "otterhd",
        "fuyu",
        sizes={
            "one-head": {"text": text(24, 50, 3, 1, 0.5, 1e4), "patch": {"size": 5}},
            "wide": {"text": text(80, 61, 1, 5, 0.5, 5e4), "patch": {"size": 3}},
        },
        parameters={None: 9_408_238_592},
    ),
)
# These two tell images apart by the first dimension; here all patches are one list.
globals().update(
    suite(
        ARCHITECTURES,
        ["test_batch_rows_are_independent", "test_padding_does_not_matter"],
    )
)
SHARES = {
    "plain": {"text": text(64, 112, 2, 4, 0.25, 25000.0)},
    "whole": {"text": text(64, 112, 2, 4, 1.0, 25000.0)},
    "bare": {"text": {"qk_layernorm": False}},
}


@DTYPES
@pytest.mark.parametrize("sizes", SHARES.values(), ids=SHARES)
def test_other_shares_of_a_head_are_rotated(shared_folder, sizes, dtype):
    tiny = harness.tiny_checkpoint(shared_folder, "otterhd", "fuyu", "padded", 0, sizes)
    errors = harness.stage_errors(tiny, harness.emitted(tiny, dtype), dtype)
    assert not {n: e for n, e in errors.items() if e is None or e > harness.TOLERANCES[dtype]}


def rows_of(tiny, row: int, patches: slice, dtype=torch.float64) -> dict:
    """One row of a batch without its padding, and its patches."""
    keep = tiny.mask[row].bool()
    pixels = tiny.inputs["pixel_values"][:, patches].to(dtype)
    return {"input_ids": tiny.inputs["input_ids"][row : row + 1, keep], "pixel_values": pixels}


def test_rows_do_not_see_each_other_or_their_padding(shared_folder):
    tiny = harness.tiny_checkpoint(shared_folder, "otterhd", "fuyu", "padded", 0)
    model = harness.emitted(tiny, torch.float64)
    with torch.no_grad():
        whole = model(**tiny.given(torch.float64)).logits
        for row, patches in enumerate((slice(0, 9), slice(9, 11))):
            alone = model(**rows_of(tiny, row, patches)).logits[0]
            assert harness.compare(whole[row][tiny.mask[row].bool()], alone) <= 1e-12


def test_each_image_is_seen(shared_folder):
    tiny = harness.tiny_checkpoint(shared_folder, "otterhd", "fuyu", "padded", 0)
    model, given = harness.emitted(tiny), dict(tiny.inputs)
    with torch.no_grad():
        before = model(**given).logits
        given["pixel_values"] = given["pixel_values"].clone()
        given["pixel_values"][:, 9:] += 1.0
        after = model(**given).logits
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_a_prompt_for_another_number_of_patches_is_refused(shared_folder):
    tiny = harness.tiny_checkpoint(shared_folder, "otterhd", "fuyu", "plain", 0)
    model, given = harness.emitted(tiny), dict(tiny.inputs)
    given["pixel_values"] = given["pixel_values"][:, :-1]
    message = r"9 visual placeholders \(per row: \[9\]\), but the images give 8 visual tokens"
    with pytest.raises(ValueError, match=message):
        model(**given)


def official(root, dtype):
    settings = originals.settings("otterhd")
    config = {**settings, "image_token_id": 156, "patch_size": 6}
    return originals.model(root, "otterhd", "otterhd", config, {}, dtype)


@DTYPES
@pytest.mark.parametrize("kind", ["plain", "batch"])
def test_agrees_with_the_systems_own_code(shared_folder, kind, dtype):
    case = originals.case("otterhd", kind)
    model = official(shared_folder, dtype)
    patches = [v for k, v in sorted(case.inputs.items()) if k.startswith("image_patches.")]
    ids = case.inputs["input_ids"]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given["pixel_values"] = torch.cat(patches)[None].to(dtype)
    output = "logits" if dtype == torch.float32 else "logits.float64"
    assert originals.error(model, given, case, output) <= harness.TOLERANCES[dtype]
    if "generated" in case.expected and dtype == torch.float32:
        want = case.expected["generated"]
        assert torch.equal(originals.generated(model, given, want.shape[1]), want)
