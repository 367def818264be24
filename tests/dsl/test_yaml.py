"""Reading YAML: values, places and refusals."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vlmspec.diagnostics.model import Source, SpecError
from vlmspec.dsl.yaml import ListNode, MapNode, ScalarNode, load_document, locate, read_source

MIB = 2**20


def load(text: str) -> object:
    return load_document(Source("a.yaml", text)).plain()


def problems(text: str) -> list[tuple[str, str]]:
    """Give code and underlined text of everything that is refused."""
    with pytest.raises(SpecError) as caught:
        load(text)
    found = caught.value.diagnostics
    return [(item.code, item.primary.span.text) for item in found if item.primary]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-0", 0),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1:30:00", "1:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("2001-99-99", "2001-99-99"),
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5e+3", -1500.0),
        ("0.0", 0.0),
        ("1e", "1e"),
        (".", "."),
        ("inf", "inf"),
        ("nan", "nan"),
        ("9223372036854775808", 2**63),
        ("-9223372036854775808", -(2**63)),
        ("'12'", "12"),
        ('"true"', "true"),
        ("'0755'", "0755"),
        ('"a\\nb\\u00e9"', "a\nb\u00e9"),
        ("\u0661\u0662", "\u0661\u0662"),
        ("|\n  x\n  y\n", "x\ny\n"),
        (">-\n  x\n  y\n", "x y"),
        ("a#b", "a#b"),
        ("${vision.hidden_size * 2}", "${vision.hidden_size * 2}"),
    ],
)
def test_scalar_has_the_value_of_the_core_schema(text: str, value: object) -> None:
    node = load_document(Source("a.yaml", f"k: {text}")).get("k")
    assert isinstance(node, ScalarNode)
    assert node.value == value
    assert type(node.value) is type(value)


def test_document_keeps_order_and_nesting() -> None:
    text = "b: {x: [1, [2, {y: 3}]], z: []}\na:\n- 1\n- k: v\n  l: {}\n7: seven\n"
    assert load(text) == {
        "b": {"x": [1, [2, {"y": 3}]], "z": []},
        "a": [1, {"k": "v", "l": {}}],
        "7": "seven",
    }
    assert list(load(text)) == ["b", "a", "7"]


@pytest.mark.parametrize(
    "text", ["---\na: 1\n", "a: 1\n...\n", "# c\na: 1 # d\n", "a: 1\r\n", "\n\na: 1", "a: 1\r"]
)
def test_framing_of_a_document_does_not_matter(text: str) -> None:
    assert load(text) == {"a": 1}


def test_anything_within_the_limits_is_read() -> None:
    assert load("a: " + "[" * 63 + "]" * 63) is not None
    items = load("a: [" + "1," * 49_997 + "]")
    assert isinstance(items, dict)
    assert len(items["a"]) == 49_997


# The text, then code and underlined text of the first problem.
HOSTILE = {
    # the table of the reliability study
    "duplicate key in braces": ("{a: 1, a: 2}", "VS011", "a"),
    "leading zero": ("a: 0755", "VS021", "0755"),
    "billion laughs": (
        "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(40)),
        "VS012",
        "&a",
    ),
    "self-reference": ("a: &a [*a]", "VS012", "&a"),
    "500 open brackets": ("a: " + "[" * 500 + "]" * 500, "VS017", ""),
    "50000 open brackets": ("[" * 50_000 + "]" * 50_000, "VS017", ""),
    "200000 open brackets": ("[" * 200_000, "VS017", ""),
    "tag int": ("a: !!int x", "VS013", "!"),
    "tag float": ("a: !!float x", "VS013", "!"),
    "tag bool": ("a: !!bool x", "VS013", "!"),
    "tag timestamp": ("a: !!timestamp 2001-99-99", "VS013", "!"),
    "tag python apply": ("a: !!python/object/apply:os.system ['id']", "VS013", "!"),
    "5000 digits": ("a: " + "9" * 5000, "VS022", "9" * 5000),
    "lone surrogate": ("a: \ud800", "VS006", "\ud800"),
    # keys
    "duplicate key": ("a: 1\nb: 2\na: 3", "VS011", "a"),
    "duplicate key quoted": ("a: 1\n'a': 2", "VS011", "'a'"),
    "duplicate number key": ("1: x\n'1': y", "VS011", "'1'"),
    "duplicate hexadecimal key": ("16: x\n0x10: y", "VS011", "0x10"),
    "duplicate nested key": ("a:\n  b: 1\n  b: 2", "VS011", "b"),
    "list as key": ("? [a]\n: 1", "VS019", "["),
    "mapping as key": ("{a: 1}: 2", "VS019", "{"),
    "key within a key": ("? {? [a] : b}\n: 1", "VS019", "{"),
    "null as key": ("null: 1", "VS019", "null"),
    "tilde as key": ("~: 1", "VS019", "~"),
    "empty key": (": 1", "VS019", ""),
    "truth value as key": ("true: 1", "VS019", "true"),
    "fraction as key": ("1.5: 1", "VS019", "1.5"),
    "alias as key": ("a: 1\n*a : 2", "VS012", "*a"),
    "merge key": ("a: 1\n<<: {b: 1}", "VS014", "<<"),
    "merge key quoted": ("'<<': {b: 1}", "VS014", "'<<'"),
    "leading zero in a key": ("07: 1", "VS021", "07"),
    # anchors, aliases, tags, directives, documents
    "anchor": ("a: &x 1", "VS012", "&x"),
    "anchor on a key": ("&x a: 1", "VS012", "&x"),
    "anchor on the root": ("&x\na: 1", "VS012", "&x"),
    "anchor without a name": ("a: & 1", "VS012", ""),
    "alias of nothing": ("a: *x", "VS012", "*x"),
    "alias without a name": ("a: *", "VS012", ""),
    "local tag": ("a: !foo 1", "VS013", "!"),
    "non-specific tag": ("a: ! 1", "VS013", "!"),
    "verbatim tag": ("a: !<tag:yaml.org,2002:int> 1", "VS013", "!"),
    "undefined tag handle": ("a: !x!y 1", "VS013", ""),
    "broken tag": ("a: !<x 1", "VS013", ""),
    "tag with bad escape": ("a: !%zz 1", "VS013", ""),
    "tag with bad UTF-8 escape": ("a: !%ff 1", "VS013", ""),
    "tag on a mapping": ("a: !!set {b}", "VS013", "!"),
    "tag on the root": ("!!python/name:os.system\na: 1", "VS013", "!"),
    "version directive": ("%YAML 1.1\n---\na: 1", "VS016", "%YAML 1.1"),
    "version directive of YAML 2": ("%YAML 2.0\n---\na: 1", "VS016", ""),
    "two version directives": ("%YAML 1.1\n%YAML 1.1\n---\na: 1", "VS016", ""),
    "broken directive": ("%YAML x\n---\na: 1", "VS016", ""),
    "version of 5000 digits": (f"%YAML {'9' * 5000}.1\n---\na: 1", "VS010", ""),
    "tag directive": ("%TAG ! tag:x,2000:\n---\na: 1", "VS016", "%TAG ! tag:x,2000:"),
    "tag directive twice": ("%TAG ! a:\n%TAG ! b:\n---\na: 1", "VS016", ""),
    "percent alone": ("%", "VS016", ""),
    "second document": ("a: 1\n---\nb: 2", "VS015", "---"),
    "many documents": ("---\n" * 100_000, "VS015", "---"),
    "text after the end": ("a: 1\n...\nb: 2", "VS010", ""),
    # numbers
    "infinity": ("a: .inf", "VS021", ".inf"),
    "negative infinity": ("a: -.INF", "VS021", "-.INF"),
    "not a number": ("a: .nan", "VS021", ".nan"),
    "overflowing float": ("a: 1e400", "VS021", "1e400"),
    "underflowing float": ("a: -1e-400", "VS021", "-1e-400"),
    "leading zero in a float": ("a: 00.5", "VS021", "00.5"),
    "negative leading zero": ("a: -012", "VS021", "-012"),
    "beyond 2**63": ("a: 9223372036854775809", "VS022", "9223372036854775809"),
    "below -2**63": ("a: -9223372036854775809", "VS022", "-9223372036854775809"),
    "hexadecimal beyond 2**63": ("a: 0x8000000000000001", "VS022", "0x8000000000000001"),
    "a million digits": ("a: " + "9" * 1_000_000, "VS022", "9" * 1_000_000),
    "a million hexadecimal digits": ("a: 0x" + "f" * 1_000_000, "VS022", "0x" + "f" * 1_000_000),
    "a million decimals": ("a: 0." + "9" * 1_000_000, "VS021", "0." + "9" * 1_000_000),
    "a huge exponent": ("a: 1e" + "9" * 5000, "VS021", "1e" + "9" * 5000),
    # hidden characters
    "NUL": ("a: \0", "VS006", "\0"),
    "NUL at the end": ("a: 1\n\0", "VS006", "\0"),
    "terminal escape": ("a: \x1b[31m", "VS006", "\x1b"),
    "delete": ("a: b\x7f", "VS006", "\x7f"),
    "next line": ("a: b\x85c: d", "VS006", "\x85"),
    "line separator": ("a: b\u2028c: d", "VS006", "\u2028"),
    "right-to-left override": ("a: b # \u202e", "VS006", "\u202e"),
    "isolate": ("a: \u2066b\u2069", "VS006", "\u2066"),
    "zero-width space": ("a\u200b: b", "VS006", "\u200b"),
    "zero-width joiner": ("a\u200d: b", "VS006", "\u200d"),
    "soft hyphen": ("a\xad: b", "VS006", "\xad"),
    "no-break space": ("a:\xa01", "VS006", "\xa0"),
    "Hangul filler": ("\u3164: b", "VS006", "\u3164"),
    "variation selector": ("a\ufe0f: b", "VS006", "\ufe0f"),
    "language tag character": ("a\U000e0041: b", "VS006", "\U000e0041"),
    "byte order mark inside": ("a: 1\n\ufeffa: 2", "VS006", "\ufeff"),
    "hidden character as an escape": ('a: "\\u202e"', "VS006", '"\\u202e"'),
    "surrogate as an escape": ('a: "\\ud800"', "VS006", '"\\ud800"'),
    "NUL as an escape": ('a: "\\0"', "VS006", '"\\0"'),
    "hidden character in a key": ('"a\\u200b": 1', "VS006", '"a\\u200b"'),
    # syntax
    "escape beyond Unicode": ('a: "\\U00110000"', "VS010", ""),
    "escape beyond C integers": ('a: "\\UFFFFFFFF"', "VS010", ""),
    "short escape": ('a: "\\u12"', "VS010", ""),
    "unknown escape": ('a: "\\q"', "VS010", ""),
    "backslash at the end": ('a: "\\', "VS010", ""),
    "open double quote": ('a: "b\nc: 1', "VS010", ""),
    "open single quote": ("a: 'b\nc: 1", "VS010", ""),
    "document marker in a quote": ("a: 'b\n---\n'", "VS010", ""),
    "open bracket": ("a: [1, 2", "VS010", ""),
    "open brace": ("a: {b: 1", "VS010", ""),
    "wrong bracket": ("a: [1}", "VS010", ""),
    "closing bracket alone": ("a: ]", "VS010", ""),
    "comma alone": ("a: ,", "VS010", ""),
    "tab as indentation": ("a:\n\tb: 1", "VS010", ""),
    "tab before a list": ("a:\n\t- 1", "VS010", ""),
    "two values": ("a: b: c", "VS010", ""),
    "missing colon": ("a: 1\nb\nc: 1", "VS010", ""),
    "missing colon at the end": ("a: 1\nb", "VS010", ""),
    "dedent between levels": ("a:\n  b: 1\n c: 2", "VS010", ""),
    "list after mapping": ("a: 1\n- b", "VS010", ""),
    "mapping after list": ("- a\nb: 1", "VS010", ""),
    "list on the key's line": ("a: - b", "VS010", ""),
    "question mark on the key's line": ("a: ? b", "VS010", ""),
    "at sign": ("a: @b", "VS010", ""),
    "backtick": ("a: `b`", "VS010", ""),
    "block header": ("a: |x\n b", "VS010", ""),
    "block header of zero": ("a: |0\n b", "VS010", ""),
    "text after braces": ("{} x", "VS010", ""),
    # shape and size
    "empty": ("", "VS020", ""),
    "comment only": ("# a\n", "VS020", ""),
    "document marker only": ("---", "VS020", ""),
    "null document": ("~", "VS020", "~"),
    "list document": ("- a", "VS020", "- a"),
    "text document": ("hello", "VS020", "hello"),
    "65 levels of braces": ("{a: " * 65 + "1" + "}" * 65, "VS017", ""),
    "65 levels of indentation": (
        "".join(" " * i + "a:\n" for i in range(65)) + " " * 65 + "b: 1",
        "VS017",
        "",
    ),
    "dashes without end": ("- " * 100_000, "VS017", ""),
    "question marks without end": ("? " * 100_000, "VS019", ""),
    "lists in keys without end": ("{? " * 100_000, "VS019", "{"),
    "larger than 1 MiB": ("a: b # " + "x" * MIB, "VS004", ""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_document_is_refused_quickly(case: str) -> None:
    text, code, underlined = HOSTILE[case]
    start = time.process_time()
    found = problems(text)
    took = time.process_time() - start
    assert found[0] == (code, underlined)
    assert took < 0.5


@pytest.mark.parametrize(
    "text",
    ["a: [" + "1," * 50_001 + "]", "- 1\n" * 50_001, "".join(f"a{i}:\n" for i in range(50_001))],
    ids=["brackets", "dashes", "keys"],
)
def test_more_than_50000_values_are_refused(text: str) -> None:
    start = time.process_time()
    assert [code for code, _ in problems(text)] == ["VS018"]
    # Counting up to the limit takes half a second by itself; reading on would take more.
    assert time.process_time() - start < 5


def test_all_problems_are_reported_in_order() -> None:
    text = "a: 01\nb: &x 1\nb: !t 2\n<<: *x\nc: [.inf, .nan]\n"
    assert problems(text) == [
        ("VS021", "01"),
        ("VS012", "&x"),
        ("VS011", "b"),
        ("VS013", "!"),
        ("VS014", "<<"),
        ("VS012", "*x"),
        ("VS021", ".inf"),
        ("VS021", ".nan"),
    ]


def test_problems_before_a_syntax_error_are_reported_too() -> None:
    assert [code for code, _ in problems("a: 1\na: 2\nb: [1")] == ["VS011", "VS010"]


def test_nested_keys_are_refused_once() -> None:
    assert [code for code, _ in problems("{? " * 100_000)] == ["VS019", "VS017"]


def test_number_of_problems_is_limited() -> None:
    assert len(problems("a: 1\n" * 5000)) == 100
    assert len(problems("\x01" * 5000)) == 100


def test_duplicate_key_shows_the_first_one() -> None:
    with pytest.raises(SpecError) as caught:
        load("a: 1\nb: {a: 1}\na: 2\na: 3\n")
    first, second = caught.value.diagnostics
    for found, line in ((first, 3), (second, 4)):
        assert found.primary is not None
        assert found.primary.span.line == line
        assert [label.span.location for label in found.secondary] == ["a.yaml:1:1"]


def test_spans_cover_exactly_their_text() -> None:
    text = (
        "a:\n  b: [1,\n    'x']  # c\n\n  # d\nlist:\n- k: v\n- |\n  text\n\nlast: {p: q}\nempty:\n"
    )
    root = load_document(Source("a.yaml", text))
    for loc, expected in {
        ("a",): "b: [1,\n    'x']",
        ("a", "b"): "[1,\n    'x']",
        ("a", "b", 1): "'x'",
        ("list",): "- k: v\n- |\n  text",
        ("list", 0): "k: v",
        ("list", 1): "|\n  text",
        ("last",): "{p: q}",
        ("last", "p"): "q",
        ("empty",): "",
        (): text.rstrip(),
    }.items():
        assert locate(root, loc).text == expected
    assert locate(root, ("empty",)).location == "a.yaml:12:7"


def test_locate_skips_what_does_not_resolve() -> None:
    root = load_document(Source("a.yaml", "a:\n  b: 1\n  c: [x, y]\n3: z\n"))
    assert locate(root, ("a", "tag", "b")).location == "a.yaml:2:6"
    assert locate(root, ("a", "tag", "b"), key=True).location == "a.yaml:2:3"
    assert locate(root, ("a", "missing"), key=True).text == "a"
    assert locate(root, ("missing",), key=True) == root.span
    assert locate(root, ("a", "c", 1)).text == "y"
    assert locate(root, ("a", "c", 1), key=True).text == "y"
    assert locate(root, ("a", "c", 2)).text == "[x, y]"
    assert locate(root, ("a", "c", -1)).text == "[x, y]"
    assert locate(root, (3,)).text == "z"
    assert locate(root, ("a", "b", "[key]")).text == "b"


def test_nodes_answer_for_missing_keys() -> None:
    root = load_document(Source("a.yaml", "a: {b: [1]}"))
    inner = root.get("a")
    assert isinstance(inner, MapNode)
    assert isinstance(inner.get("b"), ListNode)
    assert inner.get("c") is None
    assert inner.key_span("b").text == "b"
    assert inner.key_span("c") == inner.span


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


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.sampled_from(["x", "no", "1_0"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), PLAIN, max_size=4))
def test_what_is_written_is_read_back(data: dict[str, object]) -> None:
    assert load("\n".join(block(data, 0))) == data


def block(data: dict[str, object], depth: int) -> list[str]:
    """Write a mapping as indented lines, the simplest way there is."""
    lines = ["{}"] if not data else []
    for key, value in data.items():
        lines.append(f"{key}:")
        inner = block(value, 0) if isinstance(value, dict) else [flow(value)]
        lines += [f"  {line}" for line in inner]
    return lines


def flow(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow(item)}' for key, item in value.items())}}}"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def test_reading_needs_neither_pydantic_nor_torch() -> None:
    code = "import sys, vlmspec.dsl.yaml; print(*{'pydantic', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
