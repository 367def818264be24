"""Passes do not change what a model computes: random small decoders, before and after each pass.

A decoder of random steps is lowered, and emitted as it is and after every pass. Each package gets
the same weights, by their names in the checkpoint, and must give the same logits in float64.
"""

import inspect
import random
from pathlib import Path

import pytest
import torch
from emitting import describe

from vlmspec import api
from vlmspec.compiler.emit.package import emit_package
from vlmspec.compiler.ir.graph import Program
from vlmspec.compiler.pipeline import Context, run_passes
from vlmspec.runtime import import_package

SEEDS = range(16)
WIDTH, TOKENS = 8, 5

SPEC = """\
vlmspec: 1
name: random
title: "Random steps"
inputs: {input_ids: text}
graph:
  text: {decoder: stack, from: input_ids, weights: text}
outputs: {logits: text}
"""
PART = """\
vlmspec: 1
part: stack
kind: decoder
title: Random decoder
sizes:
  width: 8
  heads: 4
  factor: {config: factor, default: 1.5}
embed:
  - embedding: {rows: 11, width: width}
    weights: embed
body:
"""
HEAD = "head:\n  - linear: {out: 11, bias: false}\n    name: head\n    weights: head\n"
ACTS = ["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "squared_relu", "tanh", "sigmoid"]


class Writer:
    """Writes random steps, with a name and a place in the checkpoint for each."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.count = 0
        self.inside = False
        self.causal = False

    def named(self, step: str, indent: int) -> list[str]:
        """A step that has weights."""
        self.count += 1
        pad = " " * indent
        name = f"s{self.count}"
        return [f"{pad}- {step}", f"{pad}  name: {name}", f"{pad}  weights: {name}"]

    def step(self, indent: int, depth: int) -> list[str]:
        """One step, and those inside it."""
        choose = self.random.choice
        pad = " " * indent
        plain = ["act", "scale", "norm", "linear"]
        # Composite steps have classes of their own in layers alone, and layers do not nest.
        plain += ["mlp", "glu", "attention", "attention"] if self.inside else ["layers"]
        kind = choose(plain + ["residual", "residual", "residual"] * (depth < 2))
        match kind:
            case "act":
                return [f"{pad}- act: {choose(ACTS)}"]
            case "scale":
                return [f"{pad}- scale: {choose(['0.5', '2.0', '1.0', 'factor'])}"] * choose([1, 2])
            case "norm":
                return self.named(f"{choose(['rms_norm', 'layer_norm'])}: 1e-5", indent)
            case "linear":
                return self.named(
                    f"linear: {{out: width, bias: {choose(['true', 'false'])}}}", indent
                )
            case "mlp":
                return self.named(f"mlp: {{widths: [12, width], act: {choose(ACTS)}}}", indent)
            case "glu":
                bias = choose(["true", "false"])
                return self.named(f"glu: {{intermediate_size: 6, bias: {bias}}}", indent)
            case "attention":
                return self.named(f"attention: {{{self.attention()}}}", indent)
            case "residual":
                return [f"{pad}- residual:", *self.steps(indent + 4, depth + 1)]
            case _:
                head = self.named(f"layers: {choose([1, 2, 3])}", indent)
                return [*head, f"{pad}  body:", *self.layer(indent + 4, depth)]

    def layer(self, indent: int, depth: int) -> list[str]:
        """The steps of one layer: some, and two residual branches, as real ones have."""
        self.inside = True
        pad = " " * indent
        lines = self.steps(indent, depth + 1)
        for _ in range(2):
            lines += [f"{pad}- residual:", *self.named("rms_norm: 1e-6", indent + 4)]
            lines += self.steps(indent + 4, 2)
        self.inside = False
        return lines

    def attention(self) -> str:
        """Arguments of an attention."""
        choose = self.random.choice
        # A layer's cache is for one attention, and the cache as a whole for one stack of layers.
        given = ["num_heads: heads", f"mask: {'causal' if self.causal else 'none'}"]
        self.causal = False
        given += choose([[], ["bias: true"], ["bias: true", "out_bias: false"]])
        if "mask: causal" in given:
            given += choose([[], ["num_kv_heads: 2"], ["num_kv_heads: 1", "head_dim: 6"]])
        given += choose([[], ["rope: {theta: 100.0}"], ["rope: {theta: 50.0}"]])
        return ", ".join(given + choose([[], ["scale: 0.3"]]))

    def steps(self, indent: int, depth: int) -> list[str]:
        count = self.random.randint(1, 3)
        return [line for _ in range(count) for line in self.step(indent, depth)]

    def body(self) -> str:
        """A body that ends with layers."""
        lines = [*self.steps(2, 0), *self.named("layers: 2", 2), "    body:"]
        self.causal = True
        return "\n".join([*lines, *self.layer(6, 0)]) + "\n"


def write_spec(folder: Path, seed: int) -> Path:
    """Write the spec of one seed."""
    (folder / "parts").mkdir()
    text = PART + Writer(seed).body() + HEAD
    (folder / "parts" / "stack.yaml").write_text(text, encoding="utf-8")
    (folder / "random.yaml").write_text(SPEC, encoding="utf-8")
    return folder / "random.yaml"


def emit(program: Program, folder: Path) -> torch.nn.Module:
    """Emit a program, and make its model with weights that depend on their names alone."""
    folder.mkdir()
    for name, text in emit_package(program, describe(program, {"text": "decoder"})).items():
        (folder / name).write_text(text, encoding="utf-8")
    model = import_package(folder).Model().double()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for entry in model.weight_map(model.config):
        if hasattr(entry, "keys"):
            views = entry.views(parameters[entry.name].data)
            for key, view in zip(entry.keys, views, strict=True):
                generator = torch.Generator().manual_seed(sum(map(ord, key)) * 7919 + len(key))
                view.copy_(torch.randn(view.shape, generator=generator, dtype=torch.float64) / 3)
    return model


def run(model: torch.nn.Module, cached: bool) -> torch.Tensor:
    """Logits for two rows, at once or in two steps with a cache; padding in the second row."""
    ids = torch.arange(2 * TOKENS).view(2, TOKENS) * 3 % 11
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, :2] = 0
    masked = "attention_mask" in inspect.signature(model.forward).parameters
    if not cached:
        return model(ids, **({"attention_mask": mask} if masked else {})).logits
    cache = model.new_cache(2, TOKENS, dtype=torch.float64)
    parts = []
    for start, end in ((0, 3), (3, TOKENS)):
        given = {"attention_mask": mask[:, :end]} if masked else {}
        parts.append(model(ids[:, start:end], cache=cache, **given).logits)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_passes_keep_what_random_decoders_compute(seed: int, tmp_path: Path):
    program = api.build(write_spec(tmp_path, seed)).program
    stages: dict[str, Program] = {}
    run_passes(program, Context(), lambda index, name, found: stages.update({name: found}))
    wanted: dict[bool, torch.Tensor] = {}
    previous = None
    for index, (name, found) in enumerate(stages.items()):
        if found == previous:
            continue
        previous = found
        model = emit(found, tmp_path / f"p{index}")
        modes = [False, True] if hasattr(model, "new_cache") else [False]
        with torch.no_grad():
            for cached in modes:
                logits = run(model, cached)
                assert logits.isfinite().all()
                torch.testing.assert_close(
                    logits,
                    wanted.setdefault(cached, logits),
                    rtol=1e-12,
                    atol=1e-12,
                    msg=lambda text, name=name: f"after {name}: {text}",
                )
    assert len(wanted) >= 1


def test_random_decoders_meet_every_fusion(tmp_path: Path):
    """The seeds must exercise what they are for."""
    taken: set[str] = set()
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        folder.mkdir()
        context = Context()
        run_passes(api.build(write_spec(folder, seed)).program, context)
        taken |= {f.rule for f in context.findings if not f.refused}
    assert taken >= {
        "fold-constants",
        "fuse-sibling-linears",
        "hoist-split-heads",
        "fuse-rope-attention",
        "fuse-norm-residual",
    }
