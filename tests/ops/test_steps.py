"""Every step: a minimal body compiles and runs, and faults of its arguments have their place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmspec import api
from vlmspec.compiler.ops import STEPS
from vlmspec.diagnostics.model import SpecError


@dataclass(frozen=True)
class Use:
    """A step in a minimal body.

    Attributes:
        step: its YAML, as an element of a list.
        where: `decoder` (after an embedding of width 8), `encoder` (of images), `fusion`, …
        faults: replacements that make an argument wrong: what, by what, the code, the text shown.
    """

    step: str
    where: str = "decoder"
    faults: tuple[tuple[str, str, str, str], ...] = ()


# An entry for each step of the language; where it says `BAD`, a wrong argument is put in.
USES = {
    "embedding": Use(
        "embedding: {rows: 11, width: 8}",
        "embed",
        (("rows: 11", "rows: many", "VS302", "many"), ("rows: 11, ", "", "VS102", "embedding")),
    ),
    "patch_embed": Use(
        "patch_embed: {width: 8, patch_size: 4}",
        "encoder",
        (
            ("width: 8", "width: [8]", "VS103", "[8]"),
            ("}", ", bias: maybe}", "VS103", "maybe"),
            ("patch_size: 4", "patch_size: 4 // 0", "VS315", ""),
        ),
    ),
    "prepend_token": Use("prepend_token"),
    "position_embedding": Use(
        "position_embedding: 5", "fixed", (("5", "6.5", "VS103", "6.5"), ("5", "6", "VS305", ""))
    ),
    "linear": Use(
        "linear: {out: 3, bias: false}",
        "decoder",
        (("out: 3", "out: size", "VS302", "size"), ("false", "no", "VS103", "no")),
    ),
    "mlp": Use(
        "mlp: {widths: [6, 8], act: relu}",
        "decoder",
        (("relu", "rely", "VS104", "rely"), ("[6, 8]", "6", "VS103", "6")),
    ),
    "glu": Use(
        "glu: {intermediate_size: 6}",
        "decoder",
        (("size: 6", "size: six", "VS302", "six"), ("}", ", order: up}", "VS104", "up")),
    ),
    "layer_norm": Use("layer_norm: 1e-5", "decoder", (("1e-5", "epsilon", "VS302", "epsilon"),)),
    "rms_norm": Use("rms_norm: 1e-5", "decoder", (("1e-5", "[1]", "VS103", "[1]"),)),
    "norm": Use(
        "norm: {kind: rms_norm}", "decoder", (("rms_norm", "batch_norm", "VS104", "batch_norm"),)
    ),
    "layer_scale": Use("layer_scale"),
    "pixel_shuffle": Use(
        "pixel_shuffle: {factor: 1, rows: 5}",
        "decoder",
        (("factor: 1", "factor: 0", "VS303", ""), ("}", ", order: up}", "VS104", "up")),
    ),
    "conv2d": Use(
        "conv2d: {out: 4, kernel: 3, padding: 1}",
        "encoder",
        (("kernel: 3", "kernel: 0", "VS303", ""), ("out: 4", "out: size", "VS302", "size")),
    ),
    "resize": Use(
        "resize: {rows: 3, columns: 5}",
        "encoder",
        (("}", ", mode: linear}", "VS104", "linear"), ("rows: 3, ", "", "VS102", "resize")),
    ),
    "map_attention": Use(
        "map_attention: {num_heads: 2, window: 3}",
        "encoder",
        (("num_heads: 2", "num_heads: 3", "VS304", ""),),
    ),
    "add": Use(
        "scale: 0.5\n    as: lesser\n  - add: lesser",
        "decoder",
        (("add: lesser", "add: halves", "VS203", ""),),
    ),
    "again": Use(
        "block: [{scale: 0.5}]\n    name: lesser\n  - again: lesser",
        "decoder",
        (("again: lesser", "again: halves", "VS203", ""),),
    ),
    "act": Use("act: silu", "decoder", (("silu", "silo", "VS104", "silo"),)),
    "scale": Use("scale: 0.5", "decoder", (("0.5", "half", "VS302", "half"),)),
    "attention": Use(
        "attention: {num_heads: 4, num_kv_heads: 2, mask: none}",
        "decoder",
        (
            ("none", "casual", "VS203", ""),
            ("num_heads: 4", "num_heads: 3", "VS304", ""),
            ("num_kv_heads: 2", "num_kv_heads: 3", "VS306", ""),
            ("mask: none", "rope: {type: yarm}", "VS104", "yarm"),
            ("mask: none", "rope: {type: linear}", "VS102", ""),
        ),
    ),
    "moe": Use(
        "moe: {num_experts: 4, top_k: 2, intermediate_size: 6, shared_size: 5}",
        "decoder",
        (
            ("top_k: 2", "top_k: 5", "VS305", ""),
            ("top_k: 2", "top_k: two", "VS302", "two"),
            ("}", ", layout: piled}", "VS104", "piled"),
            ("}", ", router: {score: random}}", "VS104", "random"),
        ),
    ),
    "latent_attention": Use(
        "latent_attention: {num_heads: 2, own_dim: 4, rope_dim: 2, value_dim: 3, rank: 5}",
        "decoder",
        (
            ("rank: 5", "rank: five", "VS302", "five"),
            ("rank: 5", "query_rank: five", "VS103", "five"),
            ("rank: 5", "rope: {type: yarm}", "VS104", "yarm"),
        ),
    ),
    "lightning_attention": Use(
        "layers: 2\n    body:\n      - lightning_attention: "
        "{num_heads: 2, head_dim: 4, num_layers: 2}",
        "decoder",
        (("head_dim: 4", "head_dim: four", "VS302", "four"), ("}", ", decay: no}", "VS104", "no")),
    ),
    "residual": Use(
        "residual: [act: silu]",
        "decoder",
        (("act: silu", "act: silo", "VS104", "silo"), ("act: silu", "linear: 3", "VS305", "")),
    ),
    "layers": Use(
        "layers: 2\n    body: [scale: 0.5]",
        "decoder",
        (("2", "two", "VS302", "two"), ("0.5", "half", "VS302", "half")),
    ),
    "drop_tokens": Use("drop_tokens: 1", "decoder", (("1", "one", "VS302", "one"),)),
    "splice": Use(
        "fusion: splice\n    placeholder: 9", "fusion", (("9", "nine", "VS302", "nine"),)
    ),
}

TEXT = """\
vlmspec: 1
name: minimal
title: "A minimal architecture"
inputs: {input_ids: text}
graph:
  text: {decoder: one, from: input_ids}
outputs: {logits: text}
"""
IMAGE = """\
vlmspec: 1
name: minimal
title: "A minimal architecture"
inputs: {pixel_values: image}
graph:
  vision: {encoder: one, from: pixel_values}
outputs: {logits: vision}
"""
FUSION = """\
vlmspec: 1
name: minimal
title: "A minimal architecture"
inputs: {input_ids: text, pixel_values: image}
graph:
  vision: {encoder: see, from: pixel_values}
  merged:
    STEP
    from: {text: input_ids, image: vision}
  text: {decoder: one, from: merged}
outputs: {logits: text}
"""
EMBED = "embed:\n  - embedding: {rows: 11, width: 8}\n    weights: embed\n"
HEAD = "head:\n  - act: silu\n"
SEE = "body:\n  - patch_embed: {width: 8, patch_size: 4}\ninput: [images, 2, 8, 8]\n"


def part(name: str, kind: str, body: str) -> str:
    return f"vlmspec: 1\npart: {name}\nkind: {kind}\ntitle: A part\n{body}"


def write(folder: Path, use: Use, step: str) -> Path:
    """Write an architecture around a step."""
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    spec, kind = TEXT, "decoder"
    match use.where:
        case "embed":
            body = f"embed:\n  - {step}\nbody:\n  - scale: 1.0\n{HEAD}"
        case "encoder":
            spec, kind = IMAGE, "encoder"
            body = f"input: [images, 2, 8, 8]\nbody:\n  - {step}\n"
        case "fixed":
            spec, kind = IMAGE, "encoder"
            pixels = "  - patch_embed: {width: 8, patch_size: 4}\n  - prepend_token\n"
            body = f"input: [images, 2, 8, 8]\nbody:\n{pixels}  - {step}\n"
        case "fusion":
            spec = FUSION.replace("STEP", step)
            body = f"{EMBED}body:\n  - scale: 1.0\n{HEAD}"
            (parts / "see.yaml").write_text(part("see", "encoder", SEE), encoding="utf-8")
        case _:
            body = f"{EMBED}body:\n  - {step}\n{HEAD}"
    (parts / "one.yaml").write_text(part("one", kind, body), encoding="utf-8")
    (folder / "minimal.yaml").write_text(spec, encoding="utf-8")
    return folder / "minimal.yaml"


def inputs(use: Use) -> dict[str, Any]:
    """What a minimal architecture is run with."""
    pixels = {"pixel_values": torch.randn(1, 2, 8, 8)}
    ids = {"input_ids": torch.tensor([[9, 1, 9, 9, 9], [3, 1, 4, 1, 5]])}
    return {"encoder": pixels, "fixed": pixels, "fusion": ids | pixels}.get(use.where, ids)


# Used by the parts of tests/parity alone so far.
# A step leaves this list with its first use here.
BY_PARITY = {
    "attention_pool",
    "block",
    "concat",
    "cross_attention",
    "flatten",
    "fold_tokens",
    "gate",
    "grid_positions",
    "image_grid",
    "join_frames",
    "keep_tokens",
    "learned_tokens",
    "logit_bias",
    "logit_scale",
    "mask_rows",
    "memory_mask",
    "multimodal_positions",
    "normalize",
    "pack",
    "pack_frames",
    "pack_tiles",
    "packed_patch_embed",
    "pad_tokens",
    "padding_mask",
    "patch_index",
    "patch_mask",
    "patch_positions",
    "pool",
    "pool_cells",
    "position_table",
    "prepend_queries",
    "real_images",
    "relative_bias",
    "reorder",
    "resize_tokens",
    "seeing_rows",
    "segments",
    "select_tokens",
    "shift",
    "similarity",
    "sincos_grid",
    "sinusoid_positions",
    "skip_without",
    "take_images",
    "take_tiles",
    "tile_embedding",
    "tile_padding_mask",
    "tile_position_embedding",
    "transpose",
    "unflatten",
    "window_order",
}


def test_every_step_is_used():
    assert set(USES) | BY_PARITY == set(STEPS)


@pytest.mark.parametrize("name", USES)
def test_minimal_body_compiles_and_runs(name: str, tmp_path: Path):
    use = USES[name]
    compiled = api.compile(write(tmp_path, use, use.step), output=tmp_path / "out")
    torch.manual_seed(0)
    model = compiled.load().Model()
    logits = model(**inputs(use)).logits
    assert logits.isfinite().all()
    shape = compiled.program.graphs["model"].outputs[0].type.shape
    env = compiled.program.sizes | {"batch": 2, "images": 1, "tokens": 5, "kept": logits.shape[1]}
    assert tuple(logits.shape) == tuple(dim.value(env) for dim in shape)
    if logits.requires_grad:
        logits.sum().backward()


FAULTS = [(name, *fault) for name, use in USES.items() for fault in use.faults]


@pytest.mark.parametrize(("name", "old", "new", "code", "shown"), FAULTS)
def test_wrong_arguments_have_their_place(
    name: str, old: str, new: str, code: str, shown: str, tmp_path: Path
):
    use = USES[name]
    step = use.step.replace(old, new, 1)
    assert step != use.step
    found = faults_of(write(tmp_path, use, step))
    assert code in [d.code for d in found], found
    diagnostic = next(d for d in found if d.code == code)
    assert diagnostic.primary is not None
    span = diagnostic.primary.span
    assert Path(span.source.name).name == ("minimal.yaml" if use.where == "fusion" else "one.yaml")
    if shown:
        assert span.text == shown


@pytest.mark.parametrize("name", USES)
def test_unknown_arguments_are_shown(name: str, tmp_path: Path):
    use = USES[name]
    step = use.step if use.step != name else f"{name}:"
    found = faults_of(write(tmp_path, use, f"{step}\n    bogus_argument: 1"))
    assert [d.code for d in found] == ["VS101"]
    assert found[0].primary is not None
    assert found[0].primary.span.text == "bogus_argument"


def faults_of(spec: Path) -> tuple[Any, ...]:
    """The errors of a spec that has some."""
    with pytest.raises(SpecError) as caught:
        api.check(spec)
    return tuple(d for d in caught.value.diagnostics if d.severity == "error")
