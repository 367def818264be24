"""Reads and writes checkpoints in their public layout, and refuses what does not fit.

A weight map says where each parameter lives in a checkpoint. Every entry can show its parameter as
the checkpoint stores it (`views`), sharing memory: loading copies into those views, saving copies
out of them, and on the meta device they give the expected shapes before anything is allocated.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .storage import (  # noqa: TID251, TID252
    DTYPE_NAMES,
    CheckpointError,
    Tensors,
    dump_json,
    find_folder,
    parse_json,
    read_small,
    replacing,
    split_shards,
    write,
    write_shard,
)

LISTED = 20
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Weight:
    """Parameter `name` is checkpoint tensor `key`, dimensions permuted if `permute` is set."""

    name: str
    key: str
    permute: tuple[int, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The checkpoint tensors that make up the parameter."""
        return (self.key,)

    def views(self, parameter: Tensor) -> Iterable[Tensor]:
        """Return the parameter as each of `keys` stores it."""
        inverse = sorted(range(len(self.permute)), key=self.permute.__getitem__)
        return (parameter.permute(inverse) if self.permute else parameter,)


@dataclass(frozen=True)
class Concat:
    """Parameter `name` is the tensors `keys`, of `sizes` along `dim`, one after the other."""

    name: str
    keys: tuple[str, ...]
    sizes: tuple[int, ...]
    dim: int = 0

    def views(self, parameter: Tensor) -> Iterable[Tensor]:
        """Return the part of the parameter that each of `keys` stores."""
        return parameter.split(self.sizes, self.dim)


@dataclass(frozen=True)
class Stack:
    """Parameter `name` is the tensors `keys` stacked along a new first dimension."""

    name: str
    keys: tuple[str, ...]

    def views(self, parameter: Tensor) -> Iterable[Tensor]:
        """Return the part of the parameter that each of `keys` stores."""
        return parameter.unbind(0)


@dataclass(frozen=True)
class Numbered:
    """Parameter `name` is `count` sets of tensors, stacked; `*` in `patterns` is a set's number.

    The tensors of a set follow each other along their first dimension.
    """

    name: str
    patterns: tuple[str, ...]
    count: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The checkpoint tensors that make up the parameter."""
        return tuple(p.replace("*", str(i)) for i in range(self.count) for p in self.patterns)

    def views(self, parameter: Tensor) -> Iterable[Tensor]:
        """Return the part of the parameter that each of `keys` stores."""
        rows = parameter.shape[1] // len(self.patterns)
        return parameter.view(-1, rows, *parameter.shape[2:]).unbind(0)


@dataclass(frozen=True)
class Tied:
    """Parameter `name` is parameter `to` itself; a checkpoint may repeat its bytes under `key`."""

    name: str
    to: str
    key: str


Entry = Weight | Concat | Stack | Numbered | Tied


@dataclass(frozen=True)
class Origin:
    """What a loaded model remembers of its checkpoint, so that saving gives the same back."""

    config: bytes | None = None
    generation: bytes | None = None
    prefixes: dict[str, str] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, Tensor] = field(default_factory=dict)


class _Unfilled(TorchFunctionMode):
    """Leaves new parameters as they are: they are about to be replaced."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class CheckpointMixin:
    """Loading and saving for a model class whose instances have a `config`.

    Parameters are created on the meta device; a buffer that is computed and not stored must name
    its device when it is created, or it would stay there.
    """

    config_class: ClassVar[Any]
    weight_map: ClassVar[Callable[[Any], list[Entry]]]
    alternates: ClassVar[tuple[tuple[str, ...], ...]] = ()
    ignored_suffixes: ClassVar[tuple[str, ...]] = (".rotary_emb.inv_freq", ".position_ids")
    _origin = Origin()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        config: Any = None,
        revision: str | None = None,
    ) -> Self:
        """Load a checkpoint folder, or a repository `owner/name` of the hub.

        Args:
            folder: holds `config.json` and `model.safetensors` or its shards and their index.
            dtype: type of the floating-point parameters; each keeps its own if not given.
            device: where the parameters go.
            config: takes the place of `config.json`.
            revision: branch, tag or commit of the repository.

        Raises:
            CheckpointError: if the checkpoint does not fit, before anything is allocated.
        """
        dtype = _parse_dtype(dtype)
        path = find_folder(folder, revision)
        identity = path.stat().st_ino
        raw = None if config is not None else read_small(path, "config.json")
        settings = config.to_json() if raw is None else parse_json(raw, path / "config.json")
        if config is None:
            try:
                config = cls.config_class.from_json(settings)
            except ValueError as error:
                raise CheckpointError(f"{path / 'config.json'}: {error}") from error
        generation, defaults = None, {}
        if (path / "generation_config.json").exists():
            generation = read_small(path, "generation_config.json")
            defaults = parse_json(generation, path / "generation_config.json")
        tensors = Tensors(path)
        if path.stat().st_ino != identity:
            raise CheckpointError(f"{path} was replaced while it was being read; load it again")
        with torch.device("meta"), _Unfilled():
            model = cls(config)
        prefixes, ignored = model._fill(tensors, dtype, device)
        model._origin = Origin(raw, generation, prefixes, tensors.shards, ignored)
        model.generation_defaults = _stop_tokens(defaults, settings)
        return model.eval()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, max_shard_size: int | str = "5GB"
    ) -> None:
        """Write the checkpoint in its public layout, replacing `folder` as a whole.

        Tensors have the names, shapes and types that they were loaded with. Other files of an
        existing folder are kept. Whatever happens on the way, `folder` is the old one or the new.
        """
        tensors = self._stored_tensors()
        shards = split_shards(tensors, _parse_size(max_shard_size))
        config = self._origin.config or dump_json(self.config.to_json())
        with replacing(Path(os.path.realpath(folder))) as new:
            weight_map = {}
            for number, shard in enumerate(shards, 1):
                part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
                write_shard(new / f"model{part}.safetensors", shard)
                weight_map |= dict.fromkeys(shard, f"model{part}.safetensors")
            if len(shards) > 1:
                total = sum(tensor.nbytes for tensor in tensors.values())
                index = {"metadata": {"total_size": total}, "weight_map": weight_map}
                write(new / "model.safetensors.index.json", [dump_json(index)])
            write(new / "config.json", [config])
            if self._origin.generation is not None:
                write(new / "generation_config.json", [self._origin.generation])

    def num_parameters(self) -> int:
        """Return the number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _entries(self) -> tuple[list[Entry], dict[str, Tensor]]:
        """Return the weight map and, by name, the tensors it speaks of."""
        entries, slots = self.weight_map(self.config), self.state_dict(keep_vars=True)
        if odd := {entry.name for entry in entries} ^ set(slots):
            raise CheckpointError(f"module and weight map differ in {', '.join(sorted(odd))}")
        return entries, slots

    def _fill(
        self, tensors: Tensors, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Replace the meta parameters by those of the checkpoint, after checking all of them."""
        entries, slots = self._entries()
        prefixes = _choose_prefixes(entries, tensors.shapes, self.alternates)
        _check(entries, slots, prefixes, tensors, self.ignored_suffixes, dtype is None)
        filled: dict[str, Tensor] = {}
        for entry in entries:
            if not isinstance(entry, Tied):
                filled[entry.name] = _read(
                    entry, slots[entry.name], prefixes, tensors, dtype, device
                )
        for entry in entries:
            if isinstance(entry, Tied):
                filled[entry.name] = filled[entry.to]
        for name, value in filled.items():
            module, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(module), leaf, value)
        if lost := [name for name, buffer in self.named_buffers() if buffer.is_meta]:
            raise CheckpointError(f"buffers without a value: {', '.join(lost)}")
        self.to(device)  # the buffers that are computed
        known = {_spell(key, prefixes) for entry in entries for key in _keys(entry)}
        return prefixes, {k: tensors.read(k) for k in tensors.shapes if k not in known}

    def _stored_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, in the order in which it is written, as views."""
        entries, slots = self._entries()
        origin, stored = self._origin, {}
        first = {entry.name: _spell(_keys(entry)[0], origin.prefixes) for entry in entries}
        for entry in entries:
            if not isinstance(entry, Tied):
                keys = [_spell(key, origin.prefixes) for key in entry.keys]
                stored |= zip(keys, entry.views(slots[entry.name].detach()), strict=True)
        for entry in entries:
            if isinstance(entry, Tied):
                if slots[entry.name] is not slots[entry.to]:
                    raise CheckpointError(f"{entry.name} and {entry.to} are no longer tied")
                if first[entry.name] in origin.shards:
                    stored[first[entry.name]] = stored[first[entry.to]]
        stored |= origin.ignored
        return dict(sorted(stored.items(), key=lambda item: origin.shards.get(item[0], 0)))


def _read(
    entry: Weight | Concat | Stack | Numbered,
    slot: Tensor,
    prefixes: dict[str, str],
    tensors: Tensors,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    """Return the parameter, or buffer, that takes the place of `slot`."""
    keys = [_spell(key, prefixes) for key in entry.keys]
    stored = tensors.dtypes[keys[0]]
    kept = dtype if dtype is not None and stored.is_floating_point else stored
    on_cpu = torch.empty(0, device=device).is_cpu
    if isinstance(entry, Weight) and not entry.permute and kept == stored and on_cpu:
        value = tensors.map(keys[0])
    else:
        value = torch.empty(slot.shape, dtype=kept, device=device)
        for key, view in zip(keys, entry.views(value), strict=True):
            tensors.read_into(key, view)
    if isinstance(slot, nn.Parameter):
        return nn.Parameter(value, requires_grad=slot.requires_grad)
    return value


def _keys(entry: Entry) -> tuple[str, ...]:
    return (entry.key,) if isinstance(entry, Tied) else entry.keys


def _canonical(key: str, prefixes: Iterable[str]) -> str | None:
    return max((prefix for prefix in prefixes if key.startswith(prefix)), key=len, default=None)


def _spell(key: str, prefixes: dict[str, str]) -> str:
    """Return a key of the weight map as the checkpoint at hand spells it."""
    canonical = _canonical(key, prefixes)
    return key if canonical is None else prefixes[canonical] + key.removeprefix(canonical)


def _choose_prefixes(
    entries: list[Entry], present: dict[str, Any], alternates: tuple[tuple[str, ...], ...]
) -> dict[str, str]:
    """Return, for the canonical prefix of each group, the one that the checkpoint uses.

    That is the one under which most tensors are present; the tied copies, which may be absent,
    count only between equals, and then the order of the group does.
    """
    canonical = [group[0] for group in alternates]
    members: dict[str | None, list[tuple[str, bool]]] = {
        prefix: [] for prefix in (*canonical, None)
    }
    for entry in entries:
        for key in _keys(entry):
            members[_canonical(key, canonical)].append((key, isinstance(entry, Tied)))

    def fit(group: tuple[str, ...], prefix: str) -> tuple[int, int]:
        tails = [(key.removeprefix(group[0]), tied) for key, tied in members[group[0]]]
        hits = [tied for tail, tied in tails if prefix + tail in present]
        return hits.count(False), hits.count(True)

    return {group[0]: max(group, key=partial(fit, group)) for group in alternates}


def _check(
    entries: list[Entry],
    slots: dict[str, Tensor],
    prefixes: dict[str, str],
    tensors: Tensors,
    ignored_suffixes: tuple[str, ...],
    keep_dtypes: bool,
) -> None:
    """Raise one error that lists all tensors that do not fit."""
    required, mixed = {}, []
    for entry in entries:
        if isinstance(entry, Tied):
            continue
        keys = [_spell(key, prefixes) for key in entry.keys]
        required |= {k: v.shape for k, v in zip(keys, entry.views(slots[entry.name]), strict=True)}
        types = {key: tensors.dtypes[key] for key in keys if key in tensors.dtypes}
        if keep_dtypes and len(set(types.values())) > 1:
            mixed.append(
                ", ".join(f"{key} is {DTYPE_NAMES[dtype]}" for key, dtype in types.items())
            )
    first = {entry.name: _spell(_keys(entry)[0], prefixes) for entry in entries}
    copies = {first[e.name]: first[e.to] for e in entries if isinstance(e, Tied)}
    expected = required | {copy: required[key] for copy, key in copies.items()}
    missing = [key for key in required if key not in tensors.shapes]
    unexpected = [
        k for k in tensors.shapes if k not in expected and not k.endswith(ignored_suffixes)
    ]
    shapes = [
        f"{key} is {list(tensors.shapes[key])}, expected {list(shape)}"
        for key, shape in expected.items()
        if tensors.shapes.get(key, shape) != shape
    ]
    problems = (
        _listed("missing", _with_nearest(missing, unexpected))
        + _listed("unexpected", _with_nearest(unexpected, missing))
        + _listed("of another shape", shapes)
        + _listed("of several types in one parameter (give a dtype)", mixed)
    )
    differing = [
        f"{copy} differs from {key}, to which it is tied"
        for copy, key in copies.items()
        if not problems and copy in tensors.shapes and not tensors.same(copy, key)
    ]
    if problems := problems + _listed("not tied", differing):
        raise CheckpointError(f"{tensors.folder} does not fit this architecture{problems}")


def _listed(title: str, lines: list[str]) -> str:
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    text = "".join(f"\n    {line}" for line in lines[:LISTED] + more)
    return f"\n  {len(lines)} {title}:{text}" if lines else ""


def _with_nearest(keys: list[str], others: list[str]) -> list[str]:
    """Return `keys`, those that will be printed with the name that was probably meant."""
    pool = others[:1000]  # a file of nothing but strange names must not take minutes
    near = [difflib.get_close_matches(key, pool, 1, 0.8) for key in keys[:LISTED]]
    shown = [f"{k} (is it {n[0]}?)" if n else k for k, n in zip(keys, near, strict=False)]
    return shown + keys[LISTED:]


def _stop_tokens(generation: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the token ids that end and pad a text, from the first place that gives them."""
    text = config.get("text_config")
    found: dict[str, Any] = {}
    for place in (generation, config, text if isinstance(text, dict) else {}):
        for name in ("eos_token_id", "pad_token_id", "decoder_start_token_id"):
            if found.get(name) is None and place.get(name) is not None:
                found[name] = place[name]
    return found


def _parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the floating-point type of that name; `None` and "auto" keep what is stored."""
    if dtype is None or dtype == "auto":
        return None
    parsed = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, not {dtype!r}")
    return parsed


def _parse_size(size: int | str) -> int:
    """Return a size such as "5GB" in bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", str(size).upper())
    if match is None or match[2] not in UNITS or float(match[1]) * UNITS[match[2]] < 1:
        raise ValueError(f"max_shard_size must be a size such as '5GB', not {size!r}")
    return int(float(match[1]) * UNITS[match[2]])
