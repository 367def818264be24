"""Reading files, and what arbitrary bytes and texts may do."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmspec.diagnostics.model import Source, SpecError
from vlmspec.dsl.yaml import load_document, read_source

MIB = 2**20


def refusal(path: Path | str) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        read_source(path, "a.yaml")
    (found,) = caught.value.diagnostics
    assert found.primary is not None
    return found.code, found.primary.span.location


def test_file_is_read_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\r\n")
    assert read_source(path, "x").text == "a: \u00e9\r\n"
    assert read_source(path, "x").name == "x"
    assert read_source(path).name == str(path)


@pytest.mark.parametrize(
    ("data", "code", "place"),
    [
        (b"a: \xff", "VS005", "a.yaml:1:4"),
        (b"\xef\xbb\xbfa: 1\nb: \xff", "VS005", "a.yaml:2:4"),
        ("a: \u00e9\n".encode() + b"b: \xc3", "VS005", "a.yaml:2:4"),
        (b"\xc0\xaf", "VS005", "a.yaml:1:1"),
        (b"\xed\xa0\x80", "VS005", "a.yaml:1:1"),
        ("a: 1".encode("utf-16"), "VS005", "a.yaml:1:1"),
        ("a".encode("utf-16-le"), "VS006", "a.yaml:1:2"),
        (b"\xef\xbb\xbf\xef\xbb\xbfa: 1", "VS006", "a.yaml:1:1"),
        (b"\x80\x04\x95", "VS005", "a.yaml:1:1"),
        (b"x" * (MIB + 1), "VS004", "a.yaml"),
    ],
)
def test_file_that_is_not_plain_text_is_refused(
    tmp_path: Path, data: bytes, code: str, place: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(data)
    assert refusal(path) == (code, place)


def test_file_of_exactly_1_mib_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"x" * MIB)
    assert len(read_source(path).text) == MIB


def test_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a: 1")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "absent")[0] == "VS001"
    assert refusal(tmp_path / "file" / "below")[0] == "VS001"
    assert refusal(tmp_path)[0] == "VS002"
    assert refusal(tmp_path / "pipe")[0] == "VS002"
    assert refusal("/dev/zero")[0] == "VS002"
    assert refusal(tmp_path / "loop")[0] == "VS002"
    assert refusal("a\0b")[0] == "VS002"
    assert refusal("x" * 10_000)[0] == "VS002"


def assert_refused_or_read(source: Source) -> None:
    try:
        root = load_document(source)
    except SpecError as error:
        assert error.diagnostics
        for found in error.diagnostics:
            assert found.primary is not None
            for label in (found.primary, *found.secondary):
                assert label.span.source == source
                assert 0 <= label.span.start <= label.span.end <= len(source.text)
                lines = source.text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
                assert 1 <= label.span.line <= len(lines)
                assert 1 <= label.span.column <= len(lines[label.span.line - 1]) + 2
    else:
        assert isinstance(root.plain(), dict)


YAML_PIECES = st.sampled_from(
    ["a", "b", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ", ", "'", '"', "\\", "&x ", "*x", "!t "]
    + ["? ", "|", ">", "#", "---\n", "...\n", "%YAML 1.1\n", "<<", "1", "0x", "1e9", ".inf", "~"]
    + ["\t", "\r", "\r\n", "\\U00110000", "\\ud800", "\u00e9", "\U0001f600", "true", "@", "`"]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(YAML_PIECES, max_size=40).map("".join))
@example("a: 1\r\n\ra: 2\r")
@example("? a\n? b\n")
def test_any_text_is_read_or_refused_at_a_place_inside_it(text: str) -> None:
    assert_refused_or_read(Source("a.yaml", text))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_any_characters_are_read_or_refused(text: str) -> None:
    assert_refused_or_read(Source("a.yaml", text))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    try:
        source = read_source(path)
    except SpecError as error:
        for found in error.diagnostics:
            assert found.primary is not None
            span = found.primary.span
            assert 0 <= span.start <= span.end <= len(span.source.text)
    else:
        assert source.text == data.decode("utf-8-sig")
        assert_refused_or_read(source)
