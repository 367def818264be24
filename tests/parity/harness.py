"""Tiny checkpoints, emitted models and what a comparison of both needs."""

import contextlib
import copy
import functools
import hashlib
import inspect
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import references
import torch
from filelock import FileLock
from safetensors.torch import load_file

import vlmspec
from vlmspec import verification
from vlmspec.verification import relative_error

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
GRADIENT_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}


@dataclass(frozen=True)
class Tiny:
    """A tiny random checkpoint in the public layout, with inputs.

    Attributes:
        spec: name of the spec that compiles it.
        reference: name of its builder in `references`.
        folder: config.json and model.safetensors.
        inputs: what the public processor would give.
        set: sizes and options that the spec is compiled with.
    """

    spec: str
    reference: str
    folder: Path
    inputs: dict[str, torch.Tensor] = field(repr=False)
    set: tuple[str, ...] = ()

    @property
    def mask(self) -> torch.Tensor:
        if (ids := self.inputs.get("decoder_input_ids")) is not None:
            # An encoder reads the prompt; the logits are those of the decoder's tokens.
            return self.inputs.get("decoder_attention_mask", torch.ones_like(ids))
        return self.inputs["attention_mask"]

    def given(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The inputs with floating-point tensors of a dtype."""
        return verification.cast(self.inputs, dtype)


def tiny_checkpoint(
    root: Path,
    spec: str,
    reference: str,
    kind: str,
    seed: int,
    sizes: dict | None = None,
    options: tuple[str, ...] = (),
) -> Tiny:
    """Build a checkpoint, or find the one that another test or process has built."""
    label = json.dumps([reference, seed, sizes], sort_keys=True)
    folder = root / f"{reference}-{hashlib.sha256(label.encode()).hexdigest()[:12]}"
    model, inputs = references.build(reference, seed, kind, sizes)
    with FileLock(f"{folder}.lock"):
        if not (folder / "config.json").is_file():
            model.save_pretrained(folder)
    return Tiny(spec, reference, folder, inputs, options)


@functools.cache
def compiled(spec: str, folder: Path, set: tuple[str, ...] = ()):
    """Compile a spec for a checkpoint, once for each process."""
    name = "-".join((Path(spec).stem if spec.endswith(".yaml") else spec, *set))
    output = folder.with_name(f"{folder.name}.packages") / str(os.getpid()) / name
    output.parent.mkdir(parents=True, exist_ok=True)
    return vlmspec.compile(spec, checkpoint=folder, output=output, dtype="float32", set=set)


def emitted(tiny: Tiny, dtype: torch.dtype = torch.float32):
    """Load the emitted model of a checkpoint, in eval mode."""
    package = compiled(tiny.spec, tiny.folder, tiny.set).load()
    return package.Model.from_pretrained(tiny.folder, dtype=dtype).eval()


@functools.lru_cache(maxsize=8)
def _reference(folder: Path):
    return verification.load_reference(folder)


def reference(tiny: Tiny, dtype: torch.dtype = torch.float32):
    """A copy of the public model in float32, or in float64 for use under `precision`."""
    model = _reference(tiny.folder)
    return verification.widen(model) if dtype == torch.float64 else copy.deepcopy(model)


def precision(dtype: torch.dtype):
    """The context in which the reference computes in a dtype throughout."""
    double = dtype == torch.float64
    return references.float64_math() if double else contextlib.nullcontext()


def planned(model, inputs: dict) -> dict:
    """The inputs, and the plan that a model makes of their values, so that the rest can be
    traced."""
    if not hasattr(model, "plan"):
        return dict(inputs)
    names = inspect.signature(model.plan).parameters
    return {**inputs, "plan": model.plan(**{n: inputs[n] for n in names if n in inputs})}


def stage_paths(tiny: Tiny) -> dict[str, str]:
    """Stage name to module path in the reference, as the spec declares them."""
    return dict(compiled(tiny.spec, tiny.folder, tiny.set).spec.reference)


def stage_errors(tiny: Tiny, model, dtype: torch.dtype) -> dict[str, float | None]:
    """Relative L2 error of every stage of an emitted model; None where a stage is not run."""
    paths = stage_paths(tiny)
    want = verification.run_reference(_reference(tiny.folder), paths, tiny.inputs, dtype)
    got = verification.run_emitted(model, paths, tiny.inputs, dtype)
    rows = verification.compare(got, want, TOLERANCES[dtype], tiny.mask)
    # Stages that the inputs do not reach, such as the tower under a prompt of text, are in neither.
    return {row["name"]: row["error"] for row in rows if want[row["name"]] is not None}


def dead_stages(tiny: Tiny) -> set[str]:
    """Stages whose parameters get no gradient in the reference: nothing reads their result."""
    model = reference(tiny)
    model(**tiny.inputs).logits.sum().backward()
    stages = verification.expanded(model, stage_paths(tiny))
    return {
        name
        for name, module in stages.items()
        if not any(p.grad is not None and p.grad.any() for p in module.parameters())
    }


def backward(model, tiny: Tiny, dtype: torch.dtype) -> None:
    """Back-propagate the logits, weighted at random, at the tokens that are not padding."""
    generator = torch.Generator().manual_seed(7)
    logits = model(**tiny.given(dtype)).logits
    weights = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits.dtype)
    (logits * weights * tiny.mask[..., None].to(logits.dtype)).sum().backward()


def public_gradients(model, folder: Path) -> dict[str, torch.Tensor]:
    """A model's gradients under the public names: written as if they were its weights."""
    shadow = copy.deepcopy(model)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in shadow.named_parameters():
            gradient = gradients[name]
            p.copy_(torch.zeros_like(p) if gradient is None else gradient)
    shadow.save_pretrained(folder)
    return tensors_of(folder)


def gradient_errors(got: dict, want: dict, dtype: torch.dtype) -> dict[str, float]:
    """Relative L2 error of every gradient; 0 where both are nothing but rounding.

    The bias of keys without rotary positions moves all scores of a query alike, which the softmax
    does not see: its gradient is zero, and two implementations round it differently.
    """
    nothing = 100 * torch.finfo(dtype).eps * max(float(g.norm()) for g in want.values())
    errors = {}
    for key, gradient in want.items():
        silent = max(float(gradient.norm()), float(got[key].norm())) <= nothing
        errors[key] = 0.0 if silent else relative_error(got[key], gradient)
    return errors


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, sharded or not."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def greedy(model, tiny: Tiny, tokens: int = 64) -> torch.Tensor:
    """The new tokens that transformers generates greedily, through its cache."""
    for module in model.modules():
        # Some classes hand the work to their language model, which has settings of its own.
        if (config := getattr(module, "generation_config", None)) is not None:
            config.eos_token_id, config.pad_token_id = None, references.PAD
    output = model.generate(
        **tiny.inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=1
    )
    return output[:, -tokens:]


def compare(ours: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Relative L2 distance, without forbidden logits and without padded tokens."""
    return relative_error(ours, theirs, mask)


def new_cache(model, rows: int, tokens: int):
    """An empty cache of an emitted model."""
    return model.new_cache(rows, tokens)
