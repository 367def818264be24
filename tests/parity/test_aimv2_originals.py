"""The authors' own code of AIMv2, whose checkpoints have other names and fuse the projections."""

import json

import pytest
import torch
from parity import harness, originals
from parity.test_models import DTYPES, make
from parity.test_towers import ARCHITECTURES
from safetensors.torch import load_file, save_file

NAMES = (
    ("preprocessor.patchifier.proj.", "embeddings.patch_embed."),
    ("preprocessor.patchifier.norm.", "embeddings.rms_norm."),
    ("preprocessor.pos_embed", "embeddings.position_embedding.weight"),
    ("preprocessor.text_embedding.", "embeddings.token_embedding."),
    ("preprocessor.positional_embedding", "embeddings.position_embedding.weight"),
    ("trunk.blocks.", "encoder.layers."),
    ("trunk.post_trunk_norm.", "rms_norm."),
    ("attn.proj.", "attention.out_proj."),
    (".norm_", ".rms_norm"),
    ("mlp.fc1.", "ffn.gate_proj."),
    ("mlp.fc2.", "ffn.down_proj."),
    ("mlp.fc3.", "ffn.up_proj."),
    ("head.k.", "head.k_proj."),
    ("head.v.", "head.v_proj."),
    ("head.linear.", "head.output_proj."),
    ("image_encoder.", "vision_model."),
    ("text_encoder.", "text_model."),
    ("image_projector.", "visual_projection."),
    ("text_projector.", "text_projection."),
    ("log_logit_scale", "logit_scale"),
)
CASES = [
    ("aimv2", "aimv2--original-lit", ("plain", "single")),
    ("aimv2-vision", "aimv2--original", ("plain", "second")),
    ("aimv2-native", "aimv2--original-native", ("plain", "second")),
]


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for key, tensor in tensors.items():
        for old, new in NAMES:
            key = key.replace(old, new)
        if "attn.qkv." in key:
            for name, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[key.replace("attn.qkv.", f"attention.{name}_proj.")] = piece.contiguous()
        else:
            found[key] = (
                tensor[0]
                if key.endswith("position_embedding.weight") and (tensor.ndim == 3)
                else tensor
            )
    return found


def model(root, spec: str, name: str, dtype):
    """The emitted model with the weights of the original."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    tensors = renamed(load_file(originals.FOLDER / name / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors")
    kind = "aimv2" if spec == "aimv2" else "aimv2_vision_model"
    config = {**originals.settings(name), "model_type": kind}
    (folder / "config.json").write_text(json.dumps(config))
    return harness.emitted(harness.Tiny(spec, name, folder, {}), dtype)


@DTYPES
@pytest.mark.parametrize(
    ("spec", "name", "kind"), [(s, n, kind) for s, n, kinds in CASES for kind in kinds]
)
def test_agrees_with_the_authors_code(shared_folder, spec, name, kind, dtype):
    case = originals.case(name, kind)
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in case.inputs.items()}
    with torch.no_grad():
        got = model(shared_folder, spec, name, dtype)(**given)
    suffix = "" if dtype == torch.float32 else ".float64"
    wanted = [n for n in got.keys() if n + suffix in case.expected]
    assert len(wanted) >= {"aimv2": 3}.get(spec, 1)
    for output in wanted:
        error = harness.compare(got[output], case.expected[output + suffix])
        assert error <= harness.TOLERANCES[dtype], output


def lit():
    return next(a for a in ARCHITECTURES if a.reference == "aimv2")


@pytest.mark.parametrize("value", [-1.0, 9.0], ids=["below", "above"])
def test_the_scale_is_held_between_1_and_its_bound(shared_folder, value):
    tiny = make(shared_folder, lit(), "plain")
    ours, theirs = harness.emitted(tiny), harness.reference(tiny)
    with torch.no_grad():
        ours.similarity.logit_scale.fill_(value)
        theirs.logit_scale.fill_(value)
        got, want = (m(**tiny.inputs).logits_per_text for m in (ours, theirs))
    assert harness.compare(got, want) <= 1e-5


def test_text_that_sees_all_of_itself_is_an_option(shared_folder):
    tiny = make(shared_folder, lit(), "plain")
    free = harness.Tiny(tiny.spec, tiny.reference, tiny.folder, {}, ("text.mask=none",))
    given = {k: v for k, v in tiny.inputs.items() if k != "attention_mask"}
    with torch.no_grad():
        want = harness.reference(tiny)(**given).text_embeds  # without a mask it is not causal
        got = harness.emitted(free)(**given).text_embeds
        causal = harness.emitted(tiny)(**given).text_embeds
    assert harness.compare(got, want) <= 1e-5
    assert harness.compare(causal, want) > 1e-3


@pytest.mark.parametrize("grid", [(1, 1), (1, 6), (7, 2), (5, 5)])
def test_images_of_any_size_have_the_positions_of_their_grid(shared_folder, grid):
    tiny = make(
        shared_folder, next(a for a in ARCHITECTURES if a.reference == "aimv2_native"), "plain"
    )
    pixels = torch.randn(1, 3, 7 * grid[0], 7 * grid[1])
    with torch.no_grad():
        got = harness.emitted(tiny)(pixel_values=pixels).last_hidden_state
        want = harness.reference(tiny)(pixel_values=pixels).last_hidden_state
    assert got.shape == (1, grid[0] * grid[1], 48)
    assert harness.compare(got, want) <= 1e-5
