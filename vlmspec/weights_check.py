"""Compares the tensors of a checkpoint with those that a program expects, without torch."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from vlmspec.compiler.checks import Stored, stored_names, stored_tensors
from vlmspec.compiler.ir.graph import Program
from vlmspec.diagnostics.model import Diagnostics, Source
from vlmspec.hf_config import Shape, checkpoint_tensors

# What public checkpoints hold beside parameters: tables that the emitted code computes.
IGNORED = (".rotary_emb.inv_freq", ".position_ids")
_LISTED = 5
_COMPARED = 1000


def has_weights(folder: Path) -> bool:
    """Whether a folder claims to hold weights, and not only a config.json."""
    endings = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".ckpt")
    return folder.is_dir() and any(p.name.endswith(endings) for p in folder.iterdir())


def check_weights(program: Program, folder: Path, found: Diagnostics) -> None:
    """Report tensors that are missing, unexpected or of another shape.

    Raises:
        SpecError: if the files cannot be read; see `checkpoint_tensors`.
    """
    present = {name: shape for name, (_, shape) in checkpoint_tensors(folder).items()}
    expected = list(stored_tensors(program))
    spelling = _spelling(expected, present, program.alternates)
    named = {_spell(tensor.key, spelling): tensor for tensor in reversed(expected)}
    required = {key: tensor for key, tensor in named.items() if not tensor.param.tied}
    missing = [key for key in reversed(required) if key not in present]
    ignored = (*IGNORED, *(f".{name}" for name in stored_names(program)))
    unexpected = [key for key in present if key not in named and not key.endswith(ignored)]
    _report_missing(missing, unexpected, required, folder, found)
    _report_unexpected(unexpected, missing, folder, found)
    _report_shapes(named, present, folder, found)


def _report_missing(
    missing: list[str],
    unexpected: list[str],
    required: dict[str, Stored],
    folder: Path,
    found: Diagnostics,
) -> None:
    if not missing:
        return
    first = required[missing[0]]
    notes = [_with_nearest(key, unexpected, "the checkpoint has") for key in missing[:_LISTED]]
    message = f"{folder} lacks {len(missing)} of {len(required)} tensors, `{missing[0]}` first"
    mend = "complete the checkpoint, or correct the `weights:` of the spec"
    if len(missing) == len(required):
        mend = "no tensor of this spec is there: choose the spec that the checkpoint belongs to"
    label = f"`{first.path}` is read from it"
    found.error("VS409", message, first.span, label, mend, _cut(notes, len(missing)))


def _report_unexpected(
    unexpected: list[str], missing: list[str], folder: Path, found: Diagnostics
) -> None:
    if not unexpected:
        return
    notes = [_with_nearest(key, missing, "the spec expects") for key in unexpected[:_LISTED]]
    what = "tensor" if len(unexpected) == 1 else "tensors"
    message = f"the checkpoint has {len(unexpected)} {what} that the spec has no place for"
    mend = "leaving them out could change what the model computes; extend the spec, or use another"
    place = Source(str(folder), "").span(0)
    found.error("VS410", message, place, "", mend, _cut(notes, len(unexpected)))


def _report_shapes(
    named: dict[str, Stored], present: dict[str, Shape], folder: Path, found: Diagnostics
) -> None:
    wrong = [
        (key, tensor)
        for key, tensor in reversed(named.items())
        if present.get(key, tensor.shape) != tensor.shape
    ]
    for number, (key, tensor) in enumerate(wrong[:_LISTED], 1):
        given, needed = list(present[key]), list(tensor.shape)
        message = f"the tensor `{key}` has the shape {given}, and the spec makes it {needed}"
        shape = ", ".join(map(str, tensor.param.shape))
        notes = [f"its shape is [{shape}]"]
        if number == _LISTED < len(wrong):
            notes.append(f"{len(wrong) - _LISTED} more tensors have other shapes")
        mend = f"check that config.json and weights of {folder} belong together"
        found.error("VS411", message, tensor.span, f"`{tensor.path}`", mend, notes)


def _cut(notes: list[str], total: int) -> list[str]:
    return [*notes, f"... and {total - len(notes)} more"] if total > len(notes) else notes


def _with_nearest(key: str, others: list[str], words: str) -> str:
    near = difflib.get_close_matches(key, others[:_COMPARED], 1, 0.8)
    if not near:
        tail = key.rpartition(".")[0].rpartition(".")[2] + "." + key.rpartition(".")[2]
        near = [other for other in others[:_COMPARED] if other.endswith(tail)]
    return f"`{key}`; {words} `{near[0]}`" if near else f"`{key}`"


def _spelling(
    expected: Iterable[Stored], present: dict[str, Shape], alternates: tuple[tuple[str, ...], ...]
) -> dict[str, str]:
    """For the first prefix of each group of alternatives, the one that the checkpoint uses."""
    chosen = {}
    keys = [tensor.key for tensor in expected]
    for group in alternates:
        tails = [key[len(group[0]) :] for key in keys if key.startswith(f"{group[0]}.")]
        hits = {prefix: sum(prefix + tail in present for tail in tails) for prefix in group}
        chosen[group[0]] = max(group, key=hits.__getitem__)
    return chosen


def _spell(key: str, spelling: dict[str, str]) -> str:
    fitting = [prefix for prefix in spelling if key.startswith(f"{prefix}.")]
    if not fitting:
        return key
    prefix = max(fitting, key=len)
    return spelling[prefix] + key[len(prefix) :]
