"""Sources, spans, diagnostics and the collector that every stage reports to."""

import bisect
import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from vlmspec.diagnostics.codes import CODES
from vlmspec.diagnostics.text import printable

Severity = Literal["error", "warning"]

_LINE_BREAK = re.compile(r"\r\n|\n|\r")
# difflib is quadratic in the length of the words; no name of the language is longer than this.
_LONGEST_NAME = 64
_LONGEST_QUOTE = 120
_LONGEST_MESSAGE = 1000
_QUOTE = re.compile(rf"`([^`]{{{_LONGEST_QUOTE - 3}}})[^`]+`")


@dataclass(frozen=True)
class Source:
    """A named text; spans point into it.

    Attributes:
        name: how messages call the file, usually its path as the user gave it.
        text: the decoded text, without a byte order mark.
    """

    name: str
    text: str = field(repr=False)

    @cached_property
    def _breaks(self) -> tuple[list[int], list[int]]:
        """Start of each line, and end of each line before its line break."""
        starts, ends = [0], []
        for match in _LINE_BREAK.finditer(self.text):
            ends.append(match.start())
            starts.append(match.end())
        ends.append(len(self.text))
        return starts, ends

    def span(self, start: int, end: int | None = None) -> "Span":
        """Make a span from character offsets, clamped to the text."""
        start = min(max(start, 0), len(self.text))
        end = start if end is None else min(max(end, start), len(self.text))
        return Span(self, start, end)

    def position(self, offset: int) -> tuple[int, int]:
        """Give the 1-based line and column of a character offset."""
        starts, _ = self._breaks
        line = bisect.bisect_right(starts, offset)
        return line, offset - starts[line - 1] + 1

    def line_bounds(self, line: int) -> tuple[int, int]:
        """Give the offsets where a 1-based line starts and ends, without its line break."""
        starts, ends = self._breaks
        return starts[line - 1], ends[line - 1]


@dataclass(frozen=True, slots=True)
class Span:
    """The characters `start` to `end` (excluded) of a source."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        """1-based line of the first character."""
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        """1-based column of the first character, in code points."""
        return self.source.position(self.start)[1]

    @property
    def end_line(self) -> int:
        """1-based line of the end."""
        return self.source.position(self.end)[0]

    @property
    def end_column(self) -> int:
        """1-based column just after the last character."""
        return self.source.position(self.end)[1]

    @property
    def text(self) -> str:
        """The characters themselves."""
        return self.source.text[self.start : self.end]

    @property
    def location(self) -> str:
        """`name:line:column`; the name alone where the file could not be read."""
        if not self.source.text:
            return self.source.name
        line, column = self.source.position(self.start)
        return f"{self.source.name}:{line}:{column}"


@dataclass(frozen=True, slots=True)
class Label:
    """A span with the words that stand beside its carets."""

    span: Span
    text: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem: what is wrong, where, and how to mend it."""

    code: str
    message: str
    primary: Label | None
    secondary: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    severity: Severity = "error"

    def __post_init__(self) -> None:
        assert self.code in CODES, f"{self.code} is not in the table of codes"

    def concise(self) -> str:
        """Render the problem as one line."""
        where = f"{printable(self.primary.span.location)}: " if self.primary else ""
        mend = f" (help: {printable(self.help)})" if self.help else ""
        return f"{where}{self.severity}[{self.code}]: {printable(self.message)}{mend}"

    def sort_key(self) -> tuple[str, int, str, str]:
        """Order by file, position and code; problems without a place come first."""
        if self.primary is None:
            return "", -1, self.code, self.message
        span = self.primary.span
        return span.source.name, span.start, self.code, self.message


class SpecError(Exception):
    """The description, checkpoint or request cannot be used; `diagnostics` says why."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return "\n".join(diagnostic.concise() for diagnostic in self.diagnostics)


class Diagnostics:
    """Collects problems so that a stage can report all of them before it stops."""

    def __init__(self) -> None:
        # Keyed by what the user would see as one problem, so that a repeated report shows once.
        self._found: dict[tuple[object, ...], Diagnostic] = {}

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(sorted(self._found.values(), key=Diagnostic.sort_key))

    def __len__(self) -> int:
        return len(self._found)

    @property
    def has_errors(self) -> bool:
        """Whether anything worse than a warning was reported."""
        return any(found.severity == "error" for found in self._found.values())

    def add(self, diagnostic: Diagnostic) -> None:
        """Take a finished diagnostic; the first of several equal ones is kept."""
        place = diagnostic.primary.span if diagnostic.primary else None
        where = (place.source.name, place.start, place.end) if place else None
        self._found.setdefault((diagnostic.code, diagnostic.message, where), diagnostic)

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Take several finished diagnostics, such as those of a caught `SpecError`."""
        for diagnostic in diagnostics:
            self.add(diagnostic)

    def error(
        self,
        code: str,
        message: str,
        span: Span | None = None,
        label: str = "",
        help: str | None = None,
        notes: Iterable[str] = (),
        secondary: Iterable[Label] = (),
        severity: Severity = "error",
    ) -> None:
        """Report a problem that makes the input unusable.

        Args:
            code: a key of `CODES`.
            message: what is wrong, one sentence without a full stop.
            span: where; None only for what has no file.
            label: words beside the carets.
            help: how to mend it.
            notes: further facts, a line each.
            secondary: other places that matter.
            severity: set by `warning`.
        """
        primary = Label(span, label) if span else None
        message, mend = _clipped(message), _clipped(help) if help else help
        lines = tuple(map(_clipped, notes))
        self.add(Diagnostic(code, message, primary, tuple(secondary), lines, mend, severity))

    def warning(
        self,
        code: str,
        message: str,
        span: Span | None = None,
        label: str = "",
        help: str | None = None,
        notes: Iterable[str] = (),
        secondary: Iterable[Label] = (),
    ) -> None:
        """Report what is allowed but probably not meant; the arguments are those of `error`."""
        self.error(code, message, span, label, help, notes, secondary, severity="warning")

    def raise_if_errors(self) -> None:
        """Raise a `SpecError` with everything found, warnings included, if there is an error."""
        if self.has_errors:
            raise SpecError(self)


def _clipped(text: str) -> str:
    """Shorten what a message quotes: a value may have any length."""
    if len(text) <= _LONGEST_QUOTE:
        return text
    text = _QUOTE.sub(lambda match: f"`{match[1]}...`", text)
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[: _LONGEST_MESSAGE - 3]}..."


def suggest(word: str, candidates: Iterable[str]) -> str | None:
    """Find the candidate that was probably meant, or None."""
    if len(word) > _LONGEST_NAME:
        return None
    known = {_fold(name): name for name in candidates if len(name) <= _LONGEST_NAME}
    close = difflib.get_close_matches(_fold(word), known, n=1, cutoff=0.6)
    return known[close[0]] if close else None


def _fold(name: str) -> str:
    # `Hidden-Size` is a slip for `hidden_size` that plain edit distance ranks too low.
    return name.lower().replace("-", "_").replace(" ", "_")
