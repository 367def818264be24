"""Positions, the collector and suggestions."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmspec.diagnostics.model import Diagnostic, Diagnostics, Label, Source, SpecError, suggest
from vlmspec.diagnostics.text import HIDDEN, printable, quote


def test_span_counts_lines_and_columns_from_one() -> None:
    source = Source("a.yaml", "ab\r\nc\rd\n\ne")
    places = [(source.span(at).line, source.span(at).column) for at in (0, 1, 4, 6, 8, 9, 10)]
    assert places == [(1, 1), (1, 2), (2, 1), (3, 1), (4, 1), (5, 1), (5, 2)]
    span = source.span(1, 7)
    assert (span.text, span.end_line, span.end_column) == ("b\r\nc\rd", 3, 2)
    assert span.location == "a.yaml:1:2"


def test_span_is_clamped_to_the_text() -> None:
    source = Source("a.yaml", "abc")
    assert source.span(-5, 99).text == "abc"
    assert source.span(2, 1).text == ""
    assert source.span(99).start == 3
    assert Source("b.yaml", "").span(0).location == "b.yaml"


@given(st.text(st.sampled_from("a\r\n"), max_size=30), st.integers(0, 30))
def test_position_agrees_with_a_plain_count(text: str, at: int) -> None:
    span = Source("a.yaml", text).span(at)
    before = text[: span.start]
    # A return and newline are one break, so a place between them is still on the first line.
    if before.endswith("\r") and text[span.start : span.start + 1] == "\n":
        before = before[:-1] + "x"
    lines = before.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert (span.line, span.column) == (len(lines), len(lines[-1]) + 1)


def test_collector_sorts_and_drops_repetitions() -> None:
    source = Source("a.yaml", "abc")
    found = Diagnostics()
    found.error("VS104", "late", source.span(2))
    found.warning("VS205", "early", source.span(0))
    found.error("VS104", "late", source.span(2), "said again")
    found.error("VS104", "nowhere")
    found.error("VS104", "late", source.span(1))
    assert [item.message for item in found] == ["nowhere", "early", "late", "late"]
    assert len(found) == 4


def test_collector_raises_for_errors_only() -> None:
    found = Diagnostics()
    found.raise_if_errors()
    found.warning("VS205", "only a warning")
    found.raise_if_errors()
    assert not found.has_errors
    found.error("VS104", "an error")
    with pytest.raises(SpecError) as caught:
        found.raise_if_errors()
    assert [item.severity for item in caught.value.diagnostics] == ["error", "warning"]
    again = Diagnostics()
    again.extend(caught.value.diagnostics)
    assert list(again) == list(found)


def test_code_outside_the_table_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="VS999"):
        Diagnostics().error("VS999", "no such code")
    with pytest.raises(AssertionError):
        Diagnostic("VS1", "no such code", Label(Source("a", "").span(0)))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("hiden_size", "hidden_size"),
        ("Hidden-Size", "hidden_size"),
        ("numheads", "num_heads"),
        ("xyz", None),
        ("", None),
        ("hidden_size" * 100_000, None),
    ],
)
def test_suggestion_is_close_or_absent(word: str, expected: str | None) -> None:
    assert suggest(word, ["hidden_size", "num_heads", "eps", "h" * 1_000_000]) == expected


def test_every_invisible_character_counts_as_hidden() -> None:
    for number in range(sys.maxunicode + 1):
        char = chr(number)
        kind = unicodedata.category(char)
        plain = char in "\t\n\r "
        if kind in {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}:
            assert bool(HIDDEN.match(char)) != plain, hex(number)
        elif kind[0] in "PSN" or kind in {"Ll", "Lu"}:
            assert not HIDDEN.match(char), hex(number)


def test_quoted_text_is_short_and_harmless() -> None:
    assert quote("a") == "`a`"
    assert quote("x" * 100) == f"`{'x' * 57}...`"
    assert quote("a\x1b[2J\n\u202e") == "`a<U+001B>[2J<U+000A><U+202E>`"
    assert printable("\u00e9\u6a21") == "\u00e9\u6a21"
