"""Reading public checkpoints: `config.json` and the headers of safetensors files.

Only sizes and names are read here, without torch. A checkpoint is data from strangers: nothing in
it is run, and no path that it gives is followed out of its folder.
"""

import os
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from vlmspec import strict_json
from vlmspec.diagnostics.model import Diagnostics, Source, Span, SpecError
from vlmspec.diagnostics.text import quote

CONFIG_LIMIT = 4 << 20
INDEX_LIMIT = 64 << 20
HEADER_LIMIT = 100_000_000
TENSOR_LIMIT = 1_000_000

Shape = tuple[int, ...]
Tensors = dict[str, tuple[str, Shape]]

# Bits of one element.
DTYPES = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_POINTER = b"version https://git-lfs"
_NO_DEFAULT: Any = object()


def read_config(path: Path) -> dict[str, Any]:
    """Read a `config.json`, or the one of a checkpoint's folder.

    Raises:
        SpecError: VS401 to VS404, with the place in the file.
    """
    value = strict_json.parse(source := _read_source(_config_path(path), CONFIG_LIMIT))
    if not isinstance(value, dict):
        _fail("VS402", "the config is not a JSON object", source.span(0, 1))
    return value


def lookup(config: dict[str, Any], key: str, default: Any = _NO_DEFAULT) -> Any:
    """Return the value at a dotted key such as `vision_config.hidden_size`.

    A number in the key picks an element of a list.

    Raises:
        KeyError: if there is no such key and no default.
    """
    value: Any = config
    for step in key.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        elif default is _NO_DEFAULT:
            raise KeyError(key)
        else:
            return default
    return value


def config_span(path: Path, key: str) -> Span | None:
    """Find where a config gives the value of a dotted key, for messages about that value.

    Returns:
        The value if it is a plain one, the key if it is an object or array, None if it is absent.
    """
    source = _read_source(_config_path(path), CONFIG_LIMIT)
    strict_json.parse(source)
    found = None
    for item in strict_json.items(source.text):
        if ".".join(map(str, item.path)) == key:
            found = source.span(item.start, item.end)
    return found


def read_safetensors_header(path: Path) -> Tensors:
    """Read the data type and shape of every tensor of a safetensors file, and check the header.

    Raises:
        SpecError: VS401 if there is no such file, VS407 or VS408 if it is not what it claims to be.
    """
    if path.suffix in _PICKLED:
        _fail("VS407", "pickled weights are not read", _whole(path), help=_convert_help(path))
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            _damaged(path, "the file is shorter than its header says")
        if length > HEADER_LIMIT:
            _damaged(path, f"the header is larger than {HEADER_LIMIT // 1_000_000} MB")
        data = file.read(length)
    if data[:1] != b"{":
        _damaged(path, "the header does not start with an object")
    try:
        header = strict_json.parse(Source(str(path), data.decode()), max_depth=None)
    except UnicodeDecodeError:
        _damaged(path, "the header is not UTF-8")
    except SpecError as error:
        _damaged(path, error.diagnostics[0].message)
    return _check_header(path, header, size - 8 - length)


def checkpoint_tensors(folder: Path) -> Tensors:
    """Read the data type and shape of every tensor of a checkpoint's folder.

    Reads `model.safetensors`, or what `model.safetensors.index.json` names; another name will do if
    there is only one.

    Raises:
        SpecError: VS401, VS402 to VS404, VS407, VS408, VS409, VS412 or VS413; all shards that are
            missing are reported at once.
    """
    if not folder.is_dir():
        _fail("VS401", "there is no such folder", _whole(folder))
    if single := _only(folder, ".safetensors"):
        return read_safetensors_header(single)
    if index := _only(folder, ".safetensors.index.json"):
        return _read_shards(folder, index)
    if any(folder.glob("*.safetensors")):
        mend = "add `model.safetensors.index.json`, which says what lies in which"
        message = "the folder has several safetensors files and no index"
        _fail("VS401", message, _whole(folder), mend)
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLED:
            _fail("VS407", "the folder has pickled weights only", _whole(path), _convert_help(path))
    _fail("VS401", "the folder has no safetensors file", _whole(folder))


def _only(folder: Path, suffix: str) -> Path | None:
    """Return the file called `model` with this suffix, else the only file with it."""
    preferred = folder / f"model{suffix}"
    if preferred.is_file():
        return preferred
    # A folder that has an index has shards: a lone shard is not the whole.
    if suffix == ".safetensors" and any(folder.glob("*.safetensors.index.json")):
        return None
    found = sorted(folder.glob(f"*{suffix}"))
    return found[0] if len(found) == 1 else None


def _read_shards(folder: Path, index: Path) -> Tensors:
    source = _read_source(index, INDEX_LIMIT)
    value = strict_json.parse(source)
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places:
        _fail("VS402", "the index has no table `weight_map`", source.span(0, 1))
    _check_shards(folder, source, places)
    headers = {
        shard: read_safetensors_header(folder / shard) for shard in sorted(set(places.values()))
    }
    absent = [name for name, shard in places.items() if name not in headers[shard]]
    if absent:
        name = absent[0]
        message = (
            f"{quote(places[name])} does not hold the tensor {quote(name)} that the index names"
        )
        more = [f"{len(absent) - 1} more tensors are missing"] if len(absent) > 1 else []
        _fail("VS409", message, _find(source, name), notes=more)
    tensors = {name: headers[shard][name] for name, shard in places.items()}
    for header in headers.values():
        for name, entry in header.items():
            tensors.setdefault(name, entry)
    return tensors


def _check_shards(folder: Path, source: Source, places: dict[str, Any]) -> None:
    found = Diagnostics()
    seen: set[str] = set()
    for name, shard in places.items():
        if not isinstance(shard, str) or not _is_bare(shard):
            message = f"the shard {quote(str(shard))} is not the name of a file in the folder"
            found.error("VS412", message, _find(source, name), "only a bare file name is allowed")
        elif shard not in seen and not (folder / shard).is_file():
            mend = "the copy or download is not complete; get the file"
            message = f"the shard {quote(shard)} is missing"
            found.error("VS413", message, _find(source, name), help=mend)
        if isinstance(shard, str):
            seen.add(shard)
        if len(found) >= 20:
            break
    found.raise_if_errors()


def _is_bare(name: str) -> bool:
    # Names are compared with what they must look like, not searched for what is known to be bad.
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    return plain.isascii() and plain.isalnum() and name.endswith(".safetensors") and name[0] != "."


def _find(source: Source, name: str) -> Span:
    for item in strict_json.items(source.text):
        if item.path == ("weight_map", name) and item.kind != "key":
            return source.span(item.start, item.end)
    return source.span(0, 1)


def _check_header(path: Path, header: dict[str, Any], room: int) -> Tensors:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _damaged(path, "`__metadata__` is not a table of strings")
    if len(header) > TENSOR_LIMIT:
        _damaged(path, f"the file has more than {TENSOR_LIMIT} tensors")
    tensors: Tensors = {}
    ranges = []
    for name, entry in header.items():
        dtype, shape, begin, end = _check_entry(path, name, entry)
        tensors[name] = (dtype, shape)
        ranges.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(ranges):
        if begin != position:
            fault = "overlaps the one before it" if begin < position else "leaves a gap before it"
            _damaged(path, f"the tensor {quote(name)} {fault}")
        position = end
    if position != room:
        _damaged(path, f"the tensors take {position} bytes, the file has {room} for them")
    return tensors


def _check_entry(path: Path, name: str, entry: Any) -> tuple[str, Shape, int, int]:
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or set(entry) != keys:
        _damaged(path, f"the entry of {quote(name)} is not a dtype, a shape and offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _damaged(path, f"the tensor {quote(name)} has the unknown dtype {quote(str(dtype))}")
    if not _are_counts(shape) or len(shape) > 64:
        _damaged(path, f"the tensor {quote(name)} has a damaged shape")
    if not _are_counts(offsets) or len(offsets) != 2:
        _damaged(path, f"the tensor {quote(name)} has damaged offsets")
    begin, end = offsets
    if prod(shape) * DTYPES[dtype] != (end - begin) * 8:
        _damaged(path, f"the bytes of {quote(name)} do not fit its shape and dtype")
    return dtype, tuple(shape), begin, end


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 63 for value in values
    )


def _config_path(path: Path) -> Path:
    return path / "config.json" if path.is_dir() else path


def _read_source(path: Path, limit: int) -> Source:
    with _open(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        _fail("VS404", f"the file is larger than {limit >> 20} MiB", _whole(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        source = Source(str(path), data.decode("utf-8", "replace"))
        start = len(data[: error.start].decode())
        _fail("VS402", "the file is not UTF-8", source.span(start, start + 1))
    return Source(str(path), text)


def _open(path: Path) -> BinaryIO:
    # A pipe or a device could block or never end.
    try:
        if not path.is_file():
            kind = "not a file" if path.exists() else "not found"
            _fail("VS401", f"{quote(path.name)} was {kind}", _whole(path))
        return open(path, "rb")
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        _fail("VS401", f"{quote(path.name)} cannot be read: {reason}", _whole(path))


def _convert_help(path: Path) -> str:
    return f"convert {quote(path.name)} to safetensors where you trust its source"


def _damaged(path: Path, fault: str) -> NoReturn:
    mend = "copy or download the file again"
    with suppress(OSError), open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            fault, mend = "it is a pointer of Git LFS, not the file", "fetch it with `git lfs pull`"
    _fail("VS408", f"damaged safetensors file: {fault}", _whole(path), mend)


def _whole(path: Path) -> Span:
    return Source(str(path), "").span(0)


def _fail(
    code: str, message: str, span: Span, help: str | None = None, notes: list[str] | None = None
) -> NoReturn:
    found = Diagnostics()
    found.error(code, message, span, help=help, notes=notes or [])
    raise SpecError(found)
