import os
from pathlib import Path

import pytest

from vlmspec.diagnostics.model import SpecError
from vlmspec.hf_config import CONFIG_LIMIT, config_span, lookup, read_config


def faults(path: Path) -> list[tuple[str, str]]:
    """Give code and `line:column` of each fault."""
    with pytest.raises(SpecError) as caught:
        read_config(path)
    found = []
    for diagnostic in caught.value.diagnostics:
        assert diagnostic.primary is not None
        span = diagnostic.primary.span
        found.append((diagnostic.code, f"{span.line}:{span.column}"))
    return found


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_read_config_takes_a_file_or_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeff{"a": {"b": [1, 2.5e3, "x", null, true]}}')
    expected = {"a": {"b": [1, 2500.0, "x", None, True]}}
    assert read_config(path) == expected
    assert read_config(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1,\n "b": }', [("VS402", "2:7")]),
        ("", [("VS402", "1:1")]),
        ("[1]", [("VS402", "1:1")]),
        ('{"a": NaN,\n "b": -Infinity}', [("VS402", "1:7"), ("VS402", "2:7")]),
        ('{"a": 1e999}', [("VS402", "1:7")]),
        ('{"a": "\\ud800"}', [("VS402", "1:7")]),
        ('{"a": 1, "b": {"a": 2},\n "a": 3}', [("VS403", "2:2")]),
        ('{"a": 1,\n "\\u0061": 3}', [("VS403", "2:2")]),
        ('{"a": [{"b": 1}, {"b": 1, "b": 2}]}', [("VS403", "1:27")]),
        ('{"a": ' + "[" * 32 + "]" * 32 + "}", [("VS404", "1:38")]),
        ("[" * 1_000_000, [("VS404", "1:33")]),
        ('{"a": ' + "9" * 5000 + "}", [("VS402", "1:7")]),
        (b'{"\xc3\xa4": "\xff"}', [("VS402", "1:8")]),
        ('{"a": "' + '\\"' * 1_000_000, [("VS402", "1:7")]),
        ("{'a': 1}", [("VS402", "1:2")]),
    ],
)
def test_read_config_says_where_the_fault_is(
    tmp_path: Path, text: str | bytes, expected: list[tuple[str, str]]
) -> None:
    assert faults(write(tmp_path, text)) == expected


def test_read_config_allows_brackets_in_strings(tmp_path: Path) -> None:
    text = "[" * 100 + '\\"{' + "\\u00e4"
    assert read_config(write(tmp_path, f'{{"a": "{text}"}}'))["a"] == "[" * 100 + '"{\u00e4'


def test_read_config_refuses_a_large_file(tmp_path: Path) -> None:
    path = write(tmp_path, " " * (CONFIG_LIMIT + 1))
    assert faults(path) == [("VS404", "1:1")]


def test_read_config_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    assert faults(tmp_path)[0][0] == "VS401"
    assert faults(tmp_path / "none.json")[0][0] == "VS401"
    assert faults(Path("nul\0byte"))[0][0] == "VS401"
    os.mkfifo(tmp_path / "pipe")
    assert faults(tmp_path / "pipe")[0][0] == "VS401"


def test_lookup_follows_a_dotted_key() -> None:
    config = {"vision_config": {"sizes": [3, 5], "none": None}}
    assert lookup(config, "vision_config.sizes.1") == 5
    assert lookup(config, "vision_config.none", 7) is None
    assert lookup(config, "vision_config.depth", 7) == 7
    with pytest.raises(KeyError, match="vision_config.sizes.2"):
        lookup(config, "vision_config.sizes.2")


def test_config_span_finds_the_value(tmp_path: Path) -> None:
    write(tmp_path, '{"act": "gelu",\n "text": {"act": "silu", "sizes": [1, [2], 33]}}')
    for key, expected in [("act", '"gelu"'), ("text.act", '"silu"'), ("text.sizes.2", "33")]:
        span = config_span(tmp_path, key)
        assert span is not None and span.text == expected
    assert config_span(tmp_path, "text.none") is None
