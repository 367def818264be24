"""The full rendering: source lines with carets, notes and help, for people."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from vlmspec.diagnostics.model import Diagnostic, Label, Source
from vlmspec.diagnostics.text import cell_width, printable, visible

_CLIP = "..."
# A window narrower than this shows nothing useful, whatever width the terminal claims.
_MIN_ROOM = 30
_STYLES = {"error": "1;31", "warning": "1;33", "gutter": "1;34", "bold": "1"}


@dataclass(frozen=True, slots=True)
class _Style:
    color: bool

    def paint(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.color and text else text


@dataclass(frozen=True, slots=True)
class _Row:
    """One label on the part of its line that fits: characters `low` to `high` of the source."""

    line: int
    low: int
    high: int
    label: Label
    is_primary: bool


def render_full(diagnostics: Iterable[Diagnostic], color: bool, width: int) -> str:
    """Render diagnostics with their source lines and a final count.

    Args:
        diagnostics: in the order to show them.
        color: whether to write ANSI colours.
        width: cells of a terminal line; longer source lines are clipped around the carets.

    Returns:
        The text, without a final newline; empty if there is no diagnostic.
    """
    found = list(diagnostics)
    style = _Style(color)
    blocks = ["\n".join(_block(diagnostic, style, width)) for diagnostic in found]
    return "\n\n".join([*blocks, _count(found)]) if found else ""


def _count(found: list[Diagnostic]) -> str:
    counts = []
    for severity in ("error", "warning"):
        number = sum(diagnostic.severity == severity for diagnostic in found)
        if number:
            counts.append(f"{number} {severity}{'s' if number > 1 else ''}")
    return "found " + " and ".join(counts)


def _block(diagnostic: Diagnostic, style: _Style, width: int) -> Iterator[str]:
    head = style.paint(f"{diagnostic.severity}[{diagnostic.code}]", diagnostic.severity)
    yield f"{head}{style.paint(f': {printable(diagnostic.message)}', 'bold')}"
    labels = [diagnostic.primary] if diagnostic.primary else []
    labels += diagnostic.secondary
    gutter = max((len(str(label.span.line)) for label in labels), default=1)
    first = True
    for source in dict.fromkeys(label.span.source for label in labels):
        inside = [label for label in labels if label.span.source == source]
        arrow = style.paint("-->" if first else ":::", "gutter")
        yield f"{' ' * gutter}{arrow} {printable(inside[0].span.location)}"
        yield from _snippet(source, inside, diagnostic, gutter, style, width)
        first = False
    extras = [f"note: {note}" for note in diagnostic.notes]
    extras += [f"help: {diagnostic.help}"] if diagnostic.help else []
    if extras and any(label.span.source.text for label in labels):
        yield f"{' ' * gutter} {style.paint('|', 'gutter')}"
    for extra in extras:
        kind, _, text = extra.partition(": ")
        sign = style.paint("=", "gutter")
        yield f"{' ' * gutter} {sign} {style.paint(f'{kind}:', 'bold')} {printable(text)}"


def _snippet(
    source: Source,
    labels: list[Label],
    diagnostic: Diagnostic,
    gutter: int,
    style: _Style,
    width: int,
) -> Iterator[str]:
    """Yield the lines of one source with the carets of its labels, in line order."""
    if not source.text:
        return
    bar = style.paint("|", "gutter")
    yield f"{' ' * gutter} {bar}"
    room = max(width - gutter - 3, _MIN_ROOM)
    rows = [_row(label, label is diagnostic.primary, room) for label in labels]
    rows.sort(key=lambda row: (row.line, row.label.span.start))
    # Labels of one line share it, unless it is so long that each needs its own clipping.
    for (line, low, high), group in groupby(rows, key=lambda row: (row.line, row.low, row.high)):
        number = style.paint(f"{line:>{gutter}}", "gutter")
        yield f"{number} {bar} {_line_text(source, line, low, high)}".rstrip()
        for row in group:
            mark = style.paint(
                _carets(source, row), diagnostic.severity if row.is_primary else "gutter"
            )
            yield f"{' ' * gutter} {bar} {' ' * _offset(source, row)}{mark}"


def _row(label: Label, is_primary: bool, room: int) -> _Row:
    """Choose the part of the label's line that is shown."""
    line = label.span.line
    begin, end = label.span.source.line_bounds(line)
    text = label.span.source.text
    if label.span.start >= end:
        room -= 1  # the caret stands behind the last character
    if end - begin <= room and sum(map(cell_width, text[begin:end])) <= room:
        return _Row(line, begin, end, label, is_primary)
    room -= 2 * len(_CLIP)
    at = min(label.span.start, end)
    low = _reach(text, at, begin, room // 3)
    high = _reach(text, low, end, room)
    if high == end:
        low = _reach(text, end, begin, room)
    return _Row(line, low, high, label, is_primary)


def _reach(text: str, start: int, limit: int, room: int) -> int:
    """Walk from `start` towards `limit` while the characters passed fit into `room` cells."""
    step = 1 if limit >= start else -1
    at = start
    while at != limit:
        # Characters of no width would make the walk endless on a line of them.
        room -= max(cell_width(text[at if step > 0 else at - 1]), 1)
        if room < 0:
            break
        at += step
    return at


def _line_text(source: Source, line: int, low: int, high: int) -> str:
    begin, end = source.line_bounds(line)
    shown = "".join(map(visible, source.text[low:high]))
    return f"{_CLIP if low > begin else ''}{shown}{_CLIP if high < end else ''}"


def _offset(source: Source, row: _Row) -> int:
    """Count the cells left of the first caret."""
    begin, end = source.line_bounds(row.line)
    before = sum(map(cell_width, source.text[row.low : min(row.label.span.start, end)]))
    return before + (len(_CLIP) if row.low > begin else 0)


def _carets(source: Source, row: _Row) -> str:
    # A span of several lines is underlined to the end of its first line.
    covered = source.text[row.label.span.start : min(row.label.span.end, row.high)]
    sign = "^" if row.is_primary else "-"
    carets = sign * max(sum(map(cell_width, covered)), 1)
    return f"{carets} {printable(row.label.text)}".rstrip()
