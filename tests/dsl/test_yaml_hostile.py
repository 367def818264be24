"""Documents that are refused: what is said, where, and how fast."""

import time

import pytest

from vlmspec.diagnostics.model import Source, SpecError
from vlmspec.dsl.yaml import load_document

MIB = 2**20


def problems(text: str) -> list[tuple[str, str]]:
    """Give code and underlined text of everything that is refused."""
    with pytest.raises(SpecError) as caught:
        load_document(Source("a.yaml", text))
    found = caught.value.diagnostics
    return [(item.code, item.primary.span.text) for item in found if item.primary]


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
    "empty key": ("?\n: 1", "VS019", ""),
    "empty key on a line": (": 1", "VS010", ""),
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


@pytest.mark.parametrize(
    ("text", "place", "words", "other"),
    [
        ("a: 1\nb\nc", "2:1", "no `:` after its key", None),
        ("a: 'x\nb: 2", "1:4", "quoted text is not closed", "2:5"),
        ("a: [1,2\nb: 3", "2:2", "list is not closed", "1:4"),
        ("a: {b: 1\nc", "2:2", "mapping is not closed", "1:4"),
        ("a:\n  b: 1\n c: 2", "3:2", "does not line up", "1:1"),
        ("a:\n\tb: 1", "2:1", "a tab cannot stand here", None),
        ("a: @x", "1:4", "cannot begin with this character", None),
        ("a: b: c", "1:5", "second `: `", None),
        ('a: "\\q"', "1:6", "not an escape", None),
        ('a: "\\UFFFFFFFF"', "1:7", "out of range", None),
        (": 1", "1:1", "no key before this `:`", None),
        ("a: ]", "1:4", "value is missing", None),
        ("{} x", "1:4", "already ended", None),
        ("a: - b", "1:4", "list item cannot stand here", None),
        ("a: |x\n b", "1:5", "header of a block text", None),
    ],
)
def test_syntax_error_is_told_in_plain_words(
    text: str, place: str, words: str, other: str | None
) -> None:
    with pytest.raises(SpecError) as caught:
        load_document(Source("a.yaml", text))
    (found,) = caught.value.diagnostics
    assert found.primary is not None
    assert (found.code, found.primary.span.location) == ("VS010", f"a.yaml:{place}")
    assert words in found.message
    assert [label.span.location for label in found.secondary] == [f"a.yaml:{other}"] * bool(other)


def test_second_document_is_not_read() -> None:
    assert problems("a: 1\n---\nb: .inf") == [("VS015", "---")]


def test_nested_keys_are_refused_once() -> None:
    assert [code for code, _ in problems("{? " * 100_000)] == ["VS019", "VS017"]


def test_number_of_problems_is_limited() -> None:
    assert len(problems("a: 1\n" * 5000)) == 100
    assert len(problems("\x01" * 5000)) == 100


def test_duplicate_key_shows_the_first_one() -> None:
    with pytest.raises(SpecError) as caught:
        load_document(Source("a.yaml", "a: 1\nb: {a: 1}\na: 2\na: 3\n"))
    first, second = caught.value.diagnostics
    for found, line in ((first, 3), (second, 4)):
        assert found.primary is not None
        assert found.primary.span.line == line
        assert [label.span.location for label in found.secondary] == ["a.yaml:1:1"]
