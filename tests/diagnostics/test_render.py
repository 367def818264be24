"""Renderings against the text files beside this one, and what no rendering may do.

After a deliberate change: `VLMSPEC_WRITE_SNAPSHOTS=1 pytest tests/diagnostics`, then read the diff.
"""

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmspec.diagnostics.codes import CODES
from vlmspec.diagnostics.model import Diagnostic, Diagnostics, Label, Source, Span, SpecError
from vlmspec.diagnostics.render import render
from vlmspec.diagnostics.text import HIDDEN, cell_width

HERE = Path(__file__).parent

SPEC = Source(
    "specs/tiny.yaml",
    "vlmspec: 1\n"
    + "\n" * 17
    + "    hidden_size: 1024      # vision encoder width\n"
    + "\n" * 11
    + "    out_features: 4090\n"
    + "graph:\n  vision:\n    encoder: x\n",
)
PART = Source("specs/parts/tower.yaml", "part: tower\nsizes:\n  hidden_size: {default: 1024}\n")


def at(source: Source, text: str) -> Span:
    start = source.text.index(text)
    return source.span(start, start + len(text))


def mismatch() -> Diagnostics:
    found = Diagnostics()
    found.error(
        "VS305",
        "connector output does not match the decoder embedding",
        at(SPEC, "4090"),
        "4090, but `decoder.hidden_size` is 4096",
        help="write `out_features: ${decoder.hidden_size}`",
        secondary=[Label(at(SPEC, "1024"), "width comes from here")],
    )
    return found


def several() -> Diagnostics:
    found = mismatch()
    found.warning("VS205", "nothing reads `vision`", at(SPEC, "vision:\n    encoder: x"), "unused")
    found.error(
        "VS214",
        "part `tower` has no size `hidden`",
        at(SPEC, "x"),
        "given here",
        notes=["sizes of `tower`: hidden_size", "options of `tower`: none"],
        secondary=[
            Label(at(PART, "hidden_size"), "did you mean this?"),
            Label(at(SPEC, "encoder:"), "by this component"),
        ],
    )
    found.error("VS309", "`--set` names no size: `a.b`", help="write `component.size=value`")
    found.error("VS001", "there is no file `b.yaml`", Source("b.yaml", "").span(0), help="check it")
    return found


def awkward() -> Diagnostics:
    found = Diagnostics()
    tabs = Source("tabs.yaml", "a:\n\t- b\tc\n")
    found.error("VS010", "after tabs", at(tabs, "c"), "here")
    wide = Source("wide.yaml", "title: \u6a21\u578b e\u0301 \u578b!\r\nb: 1\r\n")
    found.error("VS104", "wide characters", at(wide, "\u578b!"), "\u6a21")
    found.error("VS104", "at the line's end", wide.span(wide.text.index("\r")), "end")
    found.error("VS104", "at the file's end", wide.span(len(wide.text)), "end of file")
    found.error("VS104", "over several lines", at(wide, "!\r\nb: 1"), "starts here")
    hidden = Source("hidden.yaml", "a: \x1b[31m\u202eb\n")
    found.error("VS006", "escape \x1b[2J in a message\nof two lines", at(hidden, "\u202e"), "\x07")
    long = Source("long.yaml", f"a: {'x' * 300}MIDDLE{'y' * 300} # end\n")
    found.error("VS103", "in the middle", at(long, "MIDDLE"), "here", secondary=[far(long)])
    found.error("VS103", "at the start", at(long, "a"), "start")
    found.error("VS103", "everything", long.span(0, len(long.text)), "all of it")
    return found


def far(source: Source) -> Label:
    return Label(at(source, "# end"), "far away on the same line")


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("full_mismatch", mismatch, {}),
        ("full_several", several, {}),
        ("full_several_color", several, {"color": True}),
        ("full_awkward", awkward, {"width": 80}),
        ("concise_several", several, {"format": "concise"}),
        ("json_several", several, {"format": "json"}),
        ("github_several", several, {"format": "github"}),
        ("github_awkward", awkward, {"format": "github"}),
        ("sarif_several", several, {"format": "sarif"}),
    ],
)
def test_rendering_matches_its_snapshot(name: str, make, options: dict) -> None:
    shown = render(make(), **options) + "\n"
    path = HERE / f"{name}.txt"
    if os.environ.get("VLMSPEC_WRITE_SNAPSHOTS"):
        path.write_text(shown, encoding="utf-8", newline="")
    assert shown == path.read_bytes().decode()


def test_full_rendering_of_the_house_example() -> None:
    assert render(mismatch()) == (
        "error[VS305]: connector output does not match the decoder embedding\n"
        "  --> specs/tiny.yaml:31:19\n"
        "   |\n"
        "19 |     hidden_size: 1024      # vision encoder width\n"
        "   |                  ---- width comes from here\n"
        "31 |     out_features: 4090\n"
        "   |                   ^^^^ 4090, but `decoder.hidden_size` is 4096\n"
        "   |\n"
        "   = help: write `out_features: ${decoder.hidden_size}`\n"
        "\n"
        "found 1 error"
    )


def test_colour_changes_nothing_but_colour() -> None:
    colored = render(several(), color=True)
    assert "\x1b[1;31m" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == render(several())
    assert "\x1b" not in render(several())


def test_nothing_found_renders_empty() -> None:
    assert render([]) == ""
    assert render([], "concise") == ""
    assert json.loads(render([], "json")) == {"schema_version": 1, "errors": []}


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="'xml'"):
        render([], "xml")  # type: ignore[arg-type]


def test_github_command_cannot_be_forged() -> None:
    source = Source("a,line=9\n::error::x.yaml", "a: 1\n")
    message = "100%\n::error::forged"
    shown = render([Diagnostic("VS104", message, Label(source.span(0, 1)))], "github")
    assert shown.count("\n") == 0
    assert shown.startswith("::error file=a%2Cline=9%0A%3A%3Aerror%3A%3Ax.yaml,line=1,")
    assert "100%25<U+000A>::error::forged" in shown


TEXT = st.text(st.sampled_from("ab\t\r\n \u6a21\u0301\u200b\x1b\ud800\U0001f600"), max_size=300)


@settings(max_examples=200, deadline=None)
@given(
    TEXT, st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), st.integers(0, 120), TEXT
)
def test_any_span_renders_within_the_width(
    text: str, start: int, length: int, other: int, width: int, message: str
) -> None:
    source = Source("a.yaml", text)
    labels = Label(source.span(start, start + length)), Label(source.span(other, other + 1))
    found = [Diagnostic("VS104", message, labels[0], labels[1:])]
    full = render(found, width=width)
    # A caret behind the end of a clipped line may stand one escaped character (8 cells) further.
    room = max(width, 30 + 3 + len(str(text.count("\n") + text.count("\r") + 1))) + 8
    for line in full.split("\n")[1:]:
        assert not HIDDEN.search(line)
        assert sum(map(cell_width, line)) <= room
    if text:
        # One caret row for each label.
        assert len(re.findall(r"^ *\| *\^+$", full, re.M)) == 1
        assert len(re.findall(r"^ *\| *-+$", full, re.M)) == 1
    assert len(render(found, "concise").split("\n")) == 1
    assert len(render(found, "github").split("\n")) == 1
    assert json.loads(render(found, "json"))["errors"][0]["message"] == message
    assert json.loads(render(found, "sarif"))["runs"][0]["results"][0]["ruleId"] == "VS104"


@given(st.text(st.sampled_from("xy\u6a21\t"), max_size=60), st.integers(0, 60))
def test_caret_stands_below_its_character(text: str, start: int) -> None:
    source = Source("a.yaml", f"{text[:start]}#{text[start:]}")
    full = render([Diagnostic("VS104", "m", Label(source.span(len(text[:start]), start + 1)))])
    shown, carets = full.split("\n")[3:5]
    before = shown[: shown.index("#")]
    assert sum(map(cell_width, before)) == carets.index("^")


def test_very_long_line_renders_quickly_and_shows_the_place() -> None:
    source = Source("a.yaml", "x" * 500_000 + "HERE" + "y" * 500_000)
    shown = render([Diagnostic("VS104", "m", Label(at(source, "HERE")))], width=60)
    line, carets = shown.split("\n")[3:5]
    assert len(line) <= 60
    assert line[carets.index("^") : carets.rindex("^") + 1] == "HERE"
    assert line.endswith("...")


@pytest.mark.parametrize("code", sorted(CODES))
def test_code_is_explained_in_a_few_sentences(code: str) -> None:
    title, explanation = CODES[code]
    assert re.fullmatch(r"VS\d{3}", code)
    assert title == title.strip() and not title.endswith(".")
    assert explanation.isascii() and explanation.endswith(".")
    assert 2 <= len(re.findall(r"[.?](?: |$)", explanation)) <= 4
    assert "  " not in explanation


def test_titles_differ() -> None:
    titles = [code.title for code in CODES.values()]
    assert len(set(titles)) == len(titles)


def test_error_prints_one_line_for_each_problem() -> None:
    with pytest.raises(SpecError) as caught:
        several().raise_if_errors()
    assert str(caught.value) == render(several(), "concise")
    assert len(str(caught.value).split("\n")) == 5
