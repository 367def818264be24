import json
import random
from pathlib import Path
from typing import Any

import pytest

from vlmspec.diagnostics.model import SpecError
from vlmspec.hf_config import checkpoint_tensors, read_safetensors_header


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: int = 0, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + bytes(data))
    return path


def code_of(call: Any, *args: Any) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        call(*args)
    first = caught.value.diagnostics[0]
    assert first.primary is not None
    return first.code, first.message


GOOD = {
    "__metadata__": {"format": "pt"},
    "b": entry([2, 3], 8, 20, "BF16"),
    "a": entry([2], 0, 8),
    "empty": entry([0, 5], 20, 20),
    "scalar": entry([], 20, 24),
}


def test_header_gives_dtypes_and_shapes(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", GOOD, 24)
    assert read_safetensors_header(path) == {
        "b": ("BF16", (2, 3)),
        "a": ("F32", (2,)),
        "empty": ("F32", (0, 5)),
        "scalar": ("F32", ()),
    }


def test_header_agrees_with_the_reference_library(tmp_path: Path) -> None:
    import numpy
    from safetensors.numpy import save_file

    tensors = {"w": numpy.zeros((3, 4), "float16"), "n": numpy.zeros((), "int64")}
    save_file(tensors, tmp_path / "x.safetensors")
    expected = {"w": ("F16", (3, 4)), "n": ("I64", ())}
    assert read_safetensors_header(tmp_path / "x.safetensors") == expected


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20, "gap"),
        ({"a": entry([2], 4, 12)}, 12, "gap"),
        ({"a": entry([2], 0, 8)}, 4, "take 8 bytes, the file has 4"),
        ({"a": entry([2], 0, 8)}, 9, "take 8 bytes, the file has 9"),
        ({"a": entry([3], 0, 8)}, 8, "do not fit"),
        ({"a": entry([2], 8, 0)}, 8, "do not fit"),
        ({"a": entry([1 << 62, 1 << 62], 0, 8)}, 8, "do not fit"),
        ({"a": entry([-2], 0, 8)}, 8, "damaged shape"),
        ({"a": entry([True], 0, 4)}, 4, "damaged shape"),
        ({"a": entry([2.0], 0, 8)}, 8, "damaged shape"),  # type: ignore[list-item]
        ({"a": entry([2], 0, 8, "F99")}, 8, "unknown dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "not a dtype"),
        ({"a": {**entry([2], 0, 8), "file": "x"}}, 8, "not a dtype"),
        ({"a": 1}, 0, "not a dtype"),
        ({"__metadata__": {"a": 1}}, 0, "table of strings"),
        (b'{"a": {}, "a": {}}', 0, "occurs twice"),
        (b"[]", 0, "start with an object"),
        (b'{"a": ', 0, "not JSON"),
        (b'{"\xff": 1}', 0, "not UTF-8"),
        (b'{"a":' + b"[" * 200_000, 0, "nested too deep"),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header: Any, data: int, words: str) -> None:
    path = write(tmp_path / "x.safetensors", header, data)
    code, message = code_of(read_safetensors_header, path)
    assert code == "VS408"
    assert words in message


@pytest.mark.parametrize("length", [1 << 63, 1000, 100_000_001])
def test_wrong_header_lengths_are_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.safetensors", {"a": entry([2], 0, 8)}, 8, length)
    assert code_of(read_safetensors_header, path)[0] == "VS408"
    path.write_bytes(b"\0\0\0")
    assert code_of(read_safetensors_header, path)[0] == "VS408"


def test_flipped_bits_give_a_header_or_a_diagnostic(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", GOOD, 24)
    good = path.read_bytes()
    choose = random.Random(8)
    for _ in range(500):
        bad = bytearray(good)
        bad[choose.randrange(len(bad) - 24)] ^= 1 << choose.randrange(8)
        path.write_bytes(bad)
        try:
            read_safetensors_header(path)
        except SpecError as error:
            assert {d.code for d in error.diagnostics} == {"VS408"}


def shards(folder: Path, places: dict[str, Any], total: Any = 16) -> Path:
    write(folder / "one.safetensors", {"a": entry([2], 0, 8)}, 8)
    write(folder / "two.safetensors", {"b": entry([2], 0, 8)}, 8)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def test_checkpoint_is_read_through_its_index(tmp_path: Path) -> None:
    shards(tmp_path, {"b": "two.safetensors", "a": "one.safetensors"})
    assert checkpoint_tensors(tmp_path) == {"b": ("F32", (2,)), "a": ("F32", (2,))}


def test_checkpoint_of_one_file_is_read(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", GOOD, 24)
    assert set(checkpoint_tensors(tmp_path)) == {"a", "b", "empty", "scalar"}


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "C:x.safetensors", "~.safetensors"]
    + [
        "..\\x.safetensors",
        "x.bin",
        "",
        ".",
        "..",
        "a\0.safetensors",
        None,
        3,
        ["one.safetensors"],
    ],
)
def test_index_entries_are_bare_file_names(tmp_path: Path, shard: Any) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "x.safetensors", {"a": entry([2], 0, 8)}, 8)
    folder = shards(tmp_path / "deep", {"b": "two.safetensors", "a": shard})
    assert code_of(checkpoint_tensors, folder)[0] == "VS412"


def test_all_missing_shards_are_reported_with_their_place(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "p.safetensors", "b": "q.safetensors", "c": "q.safetensors"})
    with pytest.raises(SpecError) as caught:
        checkpoint_tensors(tmp_path)
    spans = [d.primary.span.text for d in caught.value.diagnostics if d.primary]
    assert spans == ['"p.safetensors"', '"q.safetensors"']
    assert {d.code for d in caught.value.diagnostics} == {"VS413"}


def test_tensors_that_the_index_promises_must_exist(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "two.safetensors", "b": "two.safetensors"})
    code, message = code_of(checkpoint_tensors, tmp_path)
    assert code == "VS409" and "`a`" in message


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{"])
def test_damaged_indexes_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert code_of(checkpoint_tensors, tmp_path)[0] == "VS402"


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert code_of(checkpoint_tensors, tmp_path)[0] == "VS407"
    assert code_of(read_safetensors_header, tmp_path / "pytorch_model.bin")[0] == "VS407"


def test_folders_without_weights_are_refused(tmp_path: Path) -> None:
    assert code_of(checkpoint_tensors, tmp_path)[0] == "VS401"
    assert code_of(checkpoint_tensors, tmp_path / "none")[0] == "VS401"
    write(tmp_path / "one.safetensors", {})
    write(tmp_path / "two.safetensors", {})
    assert "several" in code_of(checkpoint_tensors, tmp_path)[1]
