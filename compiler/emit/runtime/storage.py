"""Checkpoint files: read with nothing taken on trust, written so that a crash leaves no mixture.

Only safetensors files are read. Each header is checked, number by number, before its file is
mapped, and no name inside a checkpoint leads out of its folder. A saved folder is written beside
the one it replaces, waited for until it is on the disk, and then put in its place as a whole.
"""

import ctypes
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

JSON_LIMIT = 4 * 2**20
JSON_DEPTH = 32
HEADER_LIMIT = 100_000_000
TENSOR_LIMIT = 10**6
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


class Tensors:
    """The tensors of a checkpoint folder: headers read and checked, data mapped and not read."""

    def __init__(self, folder: Path):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.shards: dict[str, int] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._mapped: dict[Path, torch.UntypedStorage] = {}
        self.folder = folder
        names, weight_map = _weight_files(folder)
        for number, name in enumerate(names):
            path = _inside(folder, name)
            for key, (dtype, shape, offset) in _read_header(path).items():
                if key in self.shards:
                    raise CheckpointError(f"{path}: {key} is also in {names[self.shards[key]]}")
                self.dtypes[key], self.shapes[key], self.shards[key] = dtype, shape, number
                self._places[key] = path, offset
        for key, name in weight_map.items():
            if self.shards.get(key) != names.index(name):
                raise CheckpointError(f"{folder / name}: {key} is not there, as the index says")

    def map(self, key: str) -> Tensor:
        """Return a tensor backed by its file: pages are read when used, copied when written to."""
        path, offset = self._places[key]
        dtype, shape = self.dtypes[key], self.shapes[key]
        if math.prod(shape) == 0 or offset % dtype.itemsize:
            return self.read(key)
        if path not in self._mapped:
            size = path.stat().st_size
            self._mapped[path] = torch.UntypedStorage.from_file(str(path), False, size)
        empty = torch.empty(0, dtype=dtype)
        strides = torch.empty(shape, device="meta").stride()
        return empty.set_(self._mapped[path], offset // dtype.itemsize, shape, strides)

    def read(self, key: str) -> Tensor:
        """Return a tensor in memory of its own."""
        value = torch.empty(self.shapes[key], dtype=self.dtypes[key])
        self.read_into(key, value)
        return value

    def read_into(self, key: str, target: Tensor) -> None:
        """Read a tensor into `target`, of its shape; straight from the file if memory is alike."""
        if not (target.dtype == self.dtypes[key] and target.is_contiguous() and target.is_cpu):
            target.copy_(self.read(key))
            return
        path, offset = self._places[key]
        if target.nbytes:
            memory = (ctypes.c_char * target.nbytes).from_address(target.data_ptr())
            with open(path, "rb", buffering=0) as file:
                file.seek(offset)
                view, done = memoryview(memory), 0
                while done < target.nbytes and (count := file.readinto(view[done:])):
                    done += count
            if done < target.nbytes:
                raise CheckpointError(f"{path} ends inside of {key}")

    def same(self, key: str, other: str) -> bool:
        """Return whether two tensors have the same type and bytes."""
        flat = [self.map(k).reshape(-1).view(torch.uint8) for k in (key, other)]
        return self.dtypes[key] == self.dtypes[other] and torch.equal(*flat)


def _weight_files(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the safetensors files of a folder, and its index if it has one."""
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"], {}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = parse_json(read_small(folder, index.name, HEADER_LIMIT), index).get(
            "weight_map"
        )
        if not isinstance(weight_map, dict) or not all(
            isinstance(n, str) for n in weight_map.values()
        ):
            raise CheckpointError(f"{index}: weight_map must give each tensor the name of its file")
        return sorted(set(weight_map.values())), weight_map
    if pickles := sorted(
        p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")
    ):
        raise CheckpointError(
            f"{folder} holds only {', '.join(pickles)}, which can run code when opened. "
            "Convert it where you trust it: weights = torch.load(file, weights_only=True); "
            "safetensors.torch.save_file({k: v.clone() for k, v in weights.items()}, "
            "'model.safetensors', metadata={'format': 'pt'})"
        )
    raise CheckpointError(f"{folder} has neither model.safetensors nor {index.name}")


def find_folder(folder: str | os.PathLike[str], revision: str | None) -> Path:
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
        return Path(
            snapshot_download(str(folder), revision=revision, allow_patterns=patterns)
        ).resolve()
    except (ImportError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no folder here, nor could it be downloaded: {error}"
        ) from error


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file; a link may lead out of `folder` only to the hub cache's blobs."""
    if not re.fullmatch(r"[^/\\:\0~.][^/\\:\0]*", name):
        raise CheckpointError(f"{folder}: {name!r} is not a plain file name")
    path = (folder / name).resolve()
    blobs = (folder.parent.parent / "blobs").resolve()
    if not path.is_relative_to(folder) and not path.is_relative_to(blobs):
        raise CheckpointError(f"{folder / name} is a link out of its folder")
    if not path.is_file():
        raise CheckpointError(f"{folder / name} is missing")
    return path


def read_small(folder: Path, name: str, limit: int = JSON_LIMIT) -> bytes:
    """Return the bytes of a file of at most `limit` bytes."""
    with open(_inside(folder, name), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CheckpointError(f"{folder / name} is larger than {limit} bytes")
    return data


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
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


def _read_header(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]]:
    """Return type, shape and place of each tensor of a safetensors file, every number checked."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(HEADER_LIMIT, size - 8):
            raise CheckpointError(f"{path}: a header of {length} bytes in a file of {size}")
        header = parse_json(file.read(length), path)
    header.pop("__metadata__", None)
    if len(header) > TENSOR_LIMIT:
        raise CheckpointError(f"{path} holds more than {TENSOR_LIMIT} tensors")
    found, spans = {}, []
    for key, info in header.items():
        match info:
            case {
                "dtype": str(name),
                "shape": list(shape),
                "data_offsets": [int(begin), int(end)],
            } if (
                name in DTYPES
                and len(shape) <= 64
                and all(type(n) is int and 0 <= n < 2**48 for n in shape)
            ):
                found[key] = DTYPES[name], tuple(shape), 8 + length + begin
                spans.append((begin, end, math.prod(shape) * DTYPES[name].itemsize, key))
            case _:
                raise CheckpointError(f"{path}: {key} is described by {str(info)[:200]}")
    position = 0
    for begin, end, nbytes, key in sorted(spans):
        if begin != position or end - begin != nbytes:
            raise CheckpointError(
                f"{path}: {key} should take {nbytes} bytes from {position}, not {begin} to {end}"
            )
        position = end
    if position != size - 8 - length:
        raise CheckpointError(
            f"{path}: {size - 8 - length} bytes of data, but its tensors take {position}"
        )
    return found


def split_shards(tensors: dict[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Split tensors into shards of at most `limit` bytes; a larger tensor is a shard of its own.

    Greedy and in order, as public checkpoints are: loading and saving one changes no file.
    """
    shards: list[dict[str, Tensor]] = []
    current: dict[str, Tensor] = {}
    filled = 0
    for key, tensor in tensors.items():
        if tensor.nbytes > limit:
            shards.append({key: tensor})
            continue
        if filled + tensor.nbytes > limit:
            shards.append(current)
            current, filled = {}, 0
        current[key] = tensor
        filled += tensor.nbytes
    return [*shards, current] if current else shards


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file as safetensors does, byte for byte, with one tensor in memory at a time."""
    keys = sorted(tensors, key=lambda key: (DTYPE_RANK[tensors[key].dtype], key))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for key in keys:
        tensor, begin = tensors[key], position
        position += tensor.nbytes
        header[key] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, position],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    write(path, [len(text).to_bytes(8, "little"), text], (tensors[key] for key in keys))


def write(path: Path, start: list[bytes], tensors: Iterable[Tensor] = ()) -> None:
    """Write bytes and then tensors to a new file, and wait until they are on the disk."""
    with open(path, "xb") as file:
        for data in start:
            file.write(data)
        for tensor in tensors:
            tensor = tensor.cpu().contiguous()
            if tensor.nbytes:
                file.write((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
        file.flush()
        os.fsync(file.fileno())


def dump_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill; when it is full, put it in the place of `folder`."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    if folder == Path.cwd() or os.path.ismount(folder):
        raise CheckpointError(
            f"{folder} is in use and cannot be replaced; save into a folder in it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    new = folder.with_name(f".{folder.name}.tmp-{token}")
    old = folder.with_name(f".{folder.name}.old-{token}")
    try:
        os.mkdir(new)
        yield new
        if folder.exists():
            _carry_over(folder, new)
        _sync(new)
        _swap(folder, new, old)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        error.add_note(f"while saving {folder}")
        raise


def _swap(folder: Path, new: Path, old: Path) -> None:
    """Put `new` in the place of `folder`, which is deleted."""
    if not folder.exists():
        os.rename(new, folder)
        _sync(folder.parent)
        return
    try:
        os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    _sync(folder.parent)
    os.rename(old, new)  # so that what is called old is always whole
    shutil.rmtree(new, ignore_errors=True)


def _recover(folder: Path) -> None:
    """Put right what killed saves left beside `folder`."""
    if not folder.parent.is_dir():
        return
    name = re.compile(rf"\.{re.escape(folder.name)}\.(old|tmp)-(\d+)-[0-9a-f]{{8}}")
    for left in sorted(folder.parent.iterdir()):  # the old before the new
        match = name.fullmatch(left.name)
        if match is None or _alive(int(match[2])):
            continue
        if match[1] == "old" and not folder.exists():
            os.rename(left, folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    """Return whether another process of that number runs; this one does not save twice at once."""
    if os.name == "nt":
        return True  # asking would end that process
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _carry_over(folder: Path, new: Path) -> None:
    """Take along the files of the old folder that are not part of a checkpoint."""
    shutil.copymode(folder, new)
    for item in folder.iterdir():
        if OURS.fullmatch(item.name):
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.copytree(item, new / item.name, symlinks=True, copy_function=_link)
        else:
            _link(item, new / item.name)


def _link(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Link a file, or copy it where the file system has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
        if not os.path.islink(target):
            _sync(target)


def _sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file, or the list of files of a folder, is on the disk."""
    if os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
