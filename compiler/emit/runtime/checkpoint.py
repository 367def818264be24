"""Reads and writes checkpoints in their public layout, and refuses what does not fit.

A weight map says where each parameter lives in a checkpoint. Every entry can show its parameter as
the checkpoint stores it (`views`), sharing memory: loading copies into those views, saving copies
out of them, and on the meta device they give the expected shapes before anything is allocated.

A checkpoint is data. Only safetensors files are read, each header is checked before its file is
mapped, and no name inside a checkpoint leads out of its folder.
"""

import ctypes
import difflib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

JSON_LIMIT = 4 * 2**20
JSON_DEPTH = 32
HEADER_LIMIT = 100_000_000
TENSOR_LIMIT = 10**6
LISTED = 20
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
OURS = re.compile(
    r"(generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)

# In the order in which safetensors lays tensors out: wide types first, so that all are aligned.
DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
DTYPE_RANK = {dtype: rank for rank, dtype in enumerate(DTYPE_NAMES)}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message says where and why."""


@dataclass(frozen=True)
class Weight:
    """Parameter `name` is checkpoint tensor `key`, its dimensions permuted if `permute` is given."""

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
class Tied:
    """Parameter `name` is parameter `to` itself; a checkpoint may repeat its bytes under `key`."""

    name: str
    to: str
    key: str


Entry = Weight | Concat | Stack | Tied


@dataclass(frozen=True)
class Origin:
    """What a loaded model remembers of its checkpoint, so that saving gives the same back."""

    config: bytes | None = None
    generation: bytes | None = None
    prefixes: dict[str, str] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, Tensor] = field(default_factory=dict)


class CheckpointMixin:
    """Loading and saving for a model class whose instances have a `config`.

    Parameters are created on the meta device; a buffer that is computed and not stored must name
    its device when it is created, or it would stay there.
    """

    config_class: ClassVar[Any]
    weight_map: ClassVar[Callable[[Any], list[Entry]]]
    alternates: ClassVar[tuple[tuple[str, ...], ...]] = ()
    ignored_suffixes: ClassVar[tuple[str, ...]] = (".rotary_emb.inv_freq", ".position_ids")
    origin = Origin()

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
            CheckpointError: if anything about the checkpoint does not fit; nothing is allocated then.
        """
        path = _find_folder(folder, revision)
        identity = path.stat().st_ino
        raw = None if config is not None else _read_small(path, "config.json")
        settings = config.to_json() if raw is None else _parse_json(raw, path / "config.json")
        if config is None:
            try:
                config = cls.config_class.from_json(settings)
            except ValueError as error:
                raise CheckpointError(f"{path / 'config.json'}: {error}") from error
        generation, defaults = None, {}
        if (path / "generation_config.json").exists():
            generation = _read_small(path, "generation_config.json")
            defaults = _parse_json(generation, path / "generation_config.json")
        tensors = _Tensors(path)
        if path.stat().st_ino != identity:
            raise CheckpointError(f"{path} was replaced while it was being read; load it again")
        with torch.device("meta"):
            model = cls(config)
        prefixes, ignored = model._fill(tensors, _parse_dtype(dtype), device)
        model.origin = Origin(raw, generation, prefixes, tensors.shards, ignored)
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
        shards = _split(tensors, _parse_size(max_shard_size))
        config = self.origin.config or _dump_json(self.config.to_json())
        with _replacing(Path(os.path.realpath(folder))) as new:
            weight_map = {}
            for number, shard in enumerate(shards, 1):
                part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
                _write_shard(new / f"model{part}.safetensors", shard)
                weight_map |= dict.fromkeys(shard, f"model{part}.safetensors")
            if len(shards) > 1:
                total = sum(tensor.nbytes for tensor in tensors.values())
                index = {"metadata": {"total_size": total}, "weight_map": weight_map}
                _write(new / "model.safetensors.index.json", [_dump_json(index)])
            _write(new / "config.json", [config])
            if self.origin.generation is not None:
                _write(new / "generation_config.json", [self.origin.generation])

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
        self, tensors: "_Tensors", dtype: torch.dtype | None, device: torch.device | str | None
    ) -> tuple[dict[str, str], dict[str, Tensor]]:
        """Replace the meta parameters by those of the checkpoint, after checking all of them."""
        entries, slots = self._entries()
        prefixes = _choose_prefixes(entries, tensors.shapes, self.alternates)
        _check(entries, slots, prefixes, tensors, self.ignored_suffixes, dtype is None)
        filled, sources = {}, {}
        with torch.no_grad():
            for entry in entries:
                if isinstance(entry, Tied):
                    continue
                keys = [_spell(key, prefixes) for key in entry.keys]
                stored, slot = tensors.dtypes[keys[0]], slots[entry.name]
                kept = dtype if dtype is not None and stored.is_floating_point else stored
                value = torch.empty(slot.shape, dtype=kept, device=device)
                for key, view in zip(keys, entry.views(value), strict=True):
                    view.copy_(tensors.read(key))
                if isinstance(slot, nn.Parameter):
                    value = nn.Parameter(value, requires_grad=slot.requires_grad)
                filled[entry.name], sources[entry.name] = value, keys[0]
        for entry in entries:
            if isinstance(entry, Tied):
                filled[entry.name] = filled[entry.to]
                key = _spell(entry.key, prefixes)
                if key in tensors.shapes and not tensors.same(key, sources[entry.to]):
                    raise CheckpointError(f"{key} is tied to {sources[entry.to]}, but differs")
        for name, value in filled.items():
            module, _, leaf = name.rpartition(".")
            setattr(self.get_submodule(module), leaf, value)
        if lost := [name for name, buffer in self.named_buffers() if buffer.is_meta]:
            raise CheckpointError(f"buffers without a value: {', '.join(lost)}")
        self.to(device)  # buffers that are computed
        known = {_spell(key, prefixes) for entry in entries for key in _keys(entry)}
        return prefixes, {k: tensors.read(k).clone() for k in tensors.shapes if k not in known}

    def _stored_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, in the order in which it is written, as views."""
        entries, slots = self._entries()
        origin, stored = self.origin, {}
        for entry in entries:
            keys = [_spell(key, origin.prefixes) for key in _keys(entry)]
            if not isinstance(entry, Tied):
                stored |= zip(keys, entry.views(slots[entry.name].detach()), strict=True)
            elif slots[entry.name] is not slots[entry.to]:
                raise CheckpointError(f"{entry.name} and {entry.to} are no longer tied")
            elif keys[0] in origin.shards:
                stored[keys[0]] = slots[entry.to].detach()
        stored |= origin.ignored
        return dict(sorted(stored.items(), key=lambda item: origin.shards.get(item[0], 0)))


class _Tensors:
    """The tensors of a checkpoint folder: headers read and checked, data mapped and not read."""

    def __init__(self, folder: Path):
        from safetensors import safe_open

        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.shards: dict[str, int] = {}
        self._files = []
        names, weight_map = _weight_files(folder)
        for number, name in enumerate(names):
            path = _inside(folder, name)
            for key, (dtype, shape) in _read_header(path).items():
                if key in self.shards:
                    raise CheckpointError(f"{path}: {key} is also in {names[self.shards[key]]}")
                self.dtypes[key], self.shapes[key], self.shards[key] = dtype, shape, number
            self._files.append(safe_open(path, "pt"))
        for key, name in weight_map.items():
            if self.shards.get(key) != names.index(name):
                raise CheckpointError(f"{folder / name}: {key} is not there, as the index says")

    def read(self, key: str) -> Tensor:
        """Return a tensor that is backed by its file, not by memory."""
        return self._files[self.shards[key]].get_tensor(key)

    def same(self, key: str, other: str) -> bool:
        """Return whether two tensors have the same type and bytes."""
        flat = [self.read(k).reshape(-1).view(torch.uint8) for k in (key, other)]
        return self.dtypes[key] == self.dtypes[other] and torch.equal(*flat)


def _weight_files(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the safetensors files of a folder, and its index if it has one."""
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"], {}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _parse_json(_read_small(folder, index.name, HEADER_LIMIT), index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(n, str) for n in weight_map.values()):
            raise CheckpointError(f"{index}: weight_map must give each tensor the name of its file")
        return sorted(set(weight_map.values())), weight_map
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")):
        raise CheckpointError(
            f"{folder} holds only {', '.join(pickles)}, which can run code when opened. Convert it where you "
            "trust it: weights = torch.load(file, weights_only=True); safetensors.torch.save_file({k: v.clone() "
            "for k, v in weights.items()}, 'model.safetensors', metadata={'format': 'pt'})"
        )
    raise CheckpointError(f"{folder} has neither model.safetensors nor {index.name}")


def _find_folder(folder: str | os.PathLike[str], revision: str | None) -> Path:
    """Return the folder of a checkpoint, downloaded from the hub if it is not on this machine."""
    path = Path(os.path.realpath(folder))
    if not path.exists():
        _recover(path)
    if path.is_dir():
        return path
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(folder)):
        raise CheckpointError(f"{folder} is not a folder")
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.json"]
        return Path(snapshot_download(str(folder), revision=revision, allow_patterns=patterns)).resolve()
    except (ImportError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is no folder here, nor could it be downloaded: {error}") from error


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file in `folder`; a link may lead out of it only to the hub cache's blobs."""
    if not re.fullmatch(r"[^/\\:\0~.][^/\\:\0]*", name):
        raise CheckpointError(f"{folder}: {name!r} is not a plain file name")
    path = (folder / name).resolve()
    blobs = (folder.parent.parent / "blobs").resolve()
    if not path.is_relative_to(folder) and not path.is_relative_to(blobs):
        raise CheckpointError(f"{folder / name} is a link out of its folder")
    if not path.is_file():
        raise CheckpointError(f"{folder / name} is missing")
    return path


def _read_small(folder: Path, name: str, limit: int = JSON_LIMIT) -> bytes:
    """Return the bytes of a file of at most `limit` bytes."""
    with open(_inside(folder, name), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{folder / name} is larger than {limit} bytes")
    return data


def _parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """Return a JSON object in which no key appears twice and nothing is nested too deeply."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"key {key!r} appears twice")
            found[key] = value
        return found

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold an object")
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > JSON_DEPTH:
            raise CheckpointError(f"{path} is nested more than {JSON_DEPTH} deep")
        level = [x for item in level for x in (item.values() if isinstance(item, dict) else item)]
    return value


def _read_header(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return type and shape of each tensor of a safetensors file, every number of it checked."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise CheckpointError(f"{path}: a header of {length} bytes in a file of {size}")
        header = _parse_json(file.read(length), path)
    header.pop("__metadata__", None)
    if len(header) > TENSOR_LIMIT:
        raise CheckpointError(f"{path} holds more than {TENSOR_LIMIT} tensors")
    found, spans = {}, []
    for key, info in header.items():
        match info:
            case {"dtype": str(name), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
                name in DTYPES and len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**48 for n in shape)
            ):
                found[key] = DTYPES[name], tuple(shape)
                spans.append((begin, end, math.prod(shape) * DTYPES[name].itemsize, key))
            case _:
                raise CheckpointError(f"{path}: {key} is described by {str(info)[:200]}")
    position = 0
    for begin, end, nbytes, key in sorted(spans):
        if begin != position or end - begin != nbytes:
            raise CheckpointError(f"{path}: {key} should take {nbytes} bytes from {position}, not {begin} to {end}")
        position = end
    if position != size - 8 - length:
        raise CheckpointError(f"{path}: {size - 8 - length} bytes of data, but its tensors take {position}")
    return found


def _keys(entry: Entry) -> tuple[str, ...]:
    return (entry.key,) if isinstance(entry, Tied) else entry.keys


def _spell(key: str, prefixes: dict[str, str]) -> str:
    """Return `key` with its longest canonical prefix replaced by the one that the checkpoint uses."""
    canonical = max((prefix for prefix in prefixes if key.startswith(prefix)), key=len, default="")
    return prefixes.get(canonical, "") + key.removeprefix(canonical)


def _choose_prefixes(
    entries: list[Entry], present: dict[str, Any], alternates: tuple[tuple[str, ...], ...]
) -> dict[str, str]:
    """Return, for each group of alternatives, the one under which most of its tensors are present."""
    same = {group[0]: group[0] for group in alternates}

    def present_under(group: tuple[str, ...], prefix: str) -> tuple[int, int]:
        spelled = [
            (_spell(key, same | {group[0]: prefix}), isinstance(entry, Tied))
            for entry in entries
            for key in _keys(entry)
            ...
        ]
