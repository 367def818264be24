"""A system in the layout that it was published in, against its conversion to that of transformers.

The public model gives the numbers; its weights are put back under the names, and into the fused
projections, of the code that lies beside the published checkpoints.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import references
import torch
from parity import harness
from parity.harness import Tiny
from parity.test_models import DTYPES, NEW_TOKENS, SEARCH, Logits
from safetensors.torch import save_file

NAMES = (
    ("vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    ("vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    (
        "vision_tower.embeddings.patch_embeddings.projection",
        "vision_model.embeddings.patch_embedding",
    ),
    (r"vision_tower.encoder.layer\.(\d+)", r"vision_model.encoder.layers.\1"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("lambda_", "ls"),
    ("attention.projection_layer", "attn.proj"),
    (r"attention\.([qkv])_", r"attn.\1_"),
    ("multi_modal_projector.layer_norm", "mlp1.0"),
    ("multi_modal_projector.linear_1", "mlp1.1"),
    ("multi_modal_projector.linear_2", "mlp1.3"),
)
DECODER_NAMES = (
    ("model.embed_tokens", "model.tok_embeddings"),
    ("lm_head", "output"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("mlp.down_proj", "feed_forward.w2"),
)
CONTEXT = references.VOCAB - 7
KINDS = ("plain", "padded", "mixed", "text")


def renamed(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for old, new in names:
        key = re.sub(old, new, key)
    return key


def side_by_side(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of each key head: its queries', then its own, then its value's."""
    groups = [piece.unflatten(0, (heads, -1)) for piece in (q, k, v)]
    return torch.cat(groups, 1).flatten(0, 1)


def first_layout(tensors: dict, decoder: str, heads: int) -> dict:
    """The tensors of a converted checkpoint as they were before."""
    names = NAMES + (DECODER_NAMES if decoder == "internlm2" else ())
    found = {renamed(key, names): value for key, value in tensors.items()}
    # The image token has another id here.
    table = next(k for k in found if "tok_embeddings" in k or "embed_tokens" in k)
    rows = torch.arange(references.VOCAB)
    rows[[references.IMG, CONTEXT]] = rows[[CONTEXT, references.IMG]]
    found[table] = found[table][rows]
    for key in [k for k in found if ".attn.q_proj." in k]:
        pieces = [found.pop(key.replace("q_proj", f"{r}_proj")) for r in "qkv"]
        found[key.replace("q_proj", "qkv")] = torch.cat(pieces)
    if decoder == "internlm2":
        for key in [k for k in found if ".self_attn.q_proj." in k]:
            pieces = [found.pop(key.replace("q_proj", f"{r}_proj")) for r in "qkv"]
            fused = key.replace("self_attn.q_proj", "attention.wqkv")
            found[fused] = side_by_side(*pieces, heads)
    return {key: value.contiguous() for key, value in found.items()}


def settings(config: dict, decoder: str) -> dict:
    """The config.json of the first layout."""
    vision, text = dict(config["vision_config"]), dict(config["text_config"])
    text |= {"model_type": decoder, "bias": False}
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    vision |= {
        "model_type": "intern_vit_6b",
        "qkv_bias": vision.pop("attention_bias"),
        "qk_normalization": vision.pop("use_qk_norm"),
        "image_size": vision["image_size"][0],
        "patch_size": vision["patch_size"][0],
    }
    whole = {"model_type": "internvl_chat", "select_layer": -1, "ps_version": "v2"}
    whole |= {"downsample_ratio": 0.5, "tie_word_embeddings": False}
    return whole | {"vision_config": vision, "llm_config": text}


def first(tiny: Tiny, decoder: str) -> Tiny:
    """A checkpoint in the first layout, with the inputs that it takes."""
    folder = tiny.folder.with_name(f"{tiny.folder.name}-first")
    folder.mkdir(exist_ok=True)
    config = json.loads((tiny.folder / "config.json").read_text())
    heads = config["text_config"]["num_key_value_heads"]
    save_file(
        first_layout(harness.tensors_of(tiny.folder), decoder, heads), folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(settings(config, decoder)))
    ids = tiny.inputs["input_ids"]
    swapped = torch.where(ids == references.IMG, CONTEXT, ids)
    swapped = torch.where(ids == CONTEXT, references.IMG, swapped)
    return Tiny("internvl-2.5-chat", tiny.reference, folder, {**tiny.inputs, "input_ids": swapped})


def pair(root: Path, reference: str, decoder: str, kind: str) -> tuple[Tiny, Tiny]:
    tiny = harness.tiny_checkpoint(root, "internvl-2.5", reference, kind, 0)
    return tiny, first(tiny, decoder)


EACH = pytest.mark.parametrize(
    ("reference", "decoder"),
    [("internvl_llama", "internlm2"), ("internvl", "qwen2"), ("internvl_26b", "internlm2")],
)


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@EACH
def test_logits_agree(shared_folder, reference, decoder, kind, dtype):
    tiny, ours = pair(shared_folder, reference, decoder, kind)
    public = harness.reference(tiny, dtype)  # loaded before float32 means float64
    with harness.precision(dtype), torch.no_grad():
        want = public(**tiny.given(dtype)).logits
    with torch.no_grad():
        got = harness.emitted(ours, dtype)(**ours.given(dtype)).logits
    assert harness.compare(got, want, tiny.mask) <= harness.TOLERANCES[dtype]


@EACH
def test_greedy_tokens_agree(shared_folder, reference, decoder):
    tiny, ours = pair(shared_folder, reference, decoder, "padded")
    start = tiny.mask.shape[1]
    model = harness.reference(tiny)
    config = model.generation_config
    config.eos_token_id, config.pad_token_id = None, references.PAD
    want = model.generate(**tiny.inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[:, start:]
    got = harness.emitted(ours).generate(**ours.inputs, max_new_tokens=NEW_TOKENS, **SEARCH)
    # A token that is an image token to one of the two is read by them as different text.
    same = ~torch.isin(want, torch.tensor([references.IMG, CONTEXT])).cummax(1).values
    assert same.sum() > NEW_TOKENS
    assert torch.equal(got[:, start:][same], want[same])


@EACH
def test_checkpoint_is_written_back_byte_for_byte(shared_folder, tmp_path, reference, decoder):
    _, ours = pair(shared_folder, reference, decoder, "plain")
    harness.emitted(ours).save_pretrained(tmp_path)
    got, want = harness.tensors_of(tmp_path), harness.tensors_of(ours.folder)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_cells_go_down_the_columns_in_an_early_release(shared_folder, tmp_path):
    _, ours = pair(shared_folder, "internvl_llama", "internlm2", "plain")
    config = json.loads((ours.folder / "config.json").read_text()) | {"ps_version": "v1"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(ours.folder / "model.safetensors", tmp_path)
    early = Tiny(ours.spec, ours.reference, tmp_path, ours.inputs)
    pixels = ours.inputs["pixel_values"]
    with torch.no_grad():
        models = harness.emitted(ours), harness.emitted(early)
        late, first = (model.project(model.vision(pixels)) for model in models)
    side = int(late.shape[1] ** 0.5)
    assert torch.equal(first, late.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2))
    assert not torch.equal(first, late)


@pytest.mark.parametrize(
    ("variant", "count"),
    [("8b", 8_075_365_376), ("26b", 25_514_186_112), ("78b", 78_408_318_336)],
)
def test_full_size_parameter_count_is_exact(tmp_path, variant, count):
    options = {"output": tmp_path / "package", "variant": variant}
    compiled = harness.vlmspec.compile("internvl-2.5-chat", **options)
    package, sizes = compiled.load(), compiled.program.sizes
    with torch.device("meta"):
        assert package.Model(package.Config()).num_parameters() == count
    # The ids of <IMG_CONTEXT> in the two vocabularies.
    assert sizes["image_token_id"] == {92553: 92546, 151674: 151667}[sizes["text.vocab_size"]]


@EACH
def test_compiles_in_one_graph_and_exports(shared_folder, reference, decoder):
    torch._dynamo.reset()
    _, ours = pair(shared_folder, reference, decoder, "padded")
    model = harness.emitted(ours)
    whole = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        want = model(**ours.inputs).logits
        assert harness.compare(whole(**ours.inputs).logits, want) <= 1e-6
    given = dict(ours.inputs)
    program = torch.export.export(Logits(model), (given.pop("input_ids"),), given)
    with torch.no_grad():
        got = program.module()(ours.inputs["input_ids"], **given)
    assert harness.compare(got, want) <= 1e-6
