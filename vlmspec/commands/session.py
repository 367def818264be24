"""What all commands share while one runs: the output format, colours and the two streams."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

if TYPE_CHECKING:
    from vlmspec.diagnostics.model import Diagnostic, SpecError
    from vlmspec.diagnostics.render import Format

FORMATS = ("full", "concise", "json", "github", "sarif")
SCHEMA_VERSION = 1


@dataclass
class Session:
    """The state of one run: results go to stdout, everything else to stderr.

    Attributes:
        format: how diagnostics are written; `json` makes results JSON as well.
        color: `auto`, `always` or `never`.
        verbosity: -1 for errors only, 0, or 1 for details.
    """

    format: "Format" = "full"
    color: Literal["auto", "always", "never"] = "auto"
    verbosity: int = 0

    @property
    def is_json(self) -> bool:
        """Whether results are written as JSON."""
        return self.format == "json"

    def uses_color(self, stream: TextIO) -> bool:
        """Say whether to colour what goes to `stream`."""
        if self.color != "auto":
            return self.color == "always"
        if os.environ.get("NO_COLOR"):
            return False
        if os.environ.get("FORCE_COLOR"):
            return True
        return stream.isatty() and os.environ.get("TERM") != "dumb"

    def print(self, text: str) -> None:
        """Write a result."""
        _write(sys.stdout, text)

    def print_json(self, data: dict[str, Any]) -> None:
        """Write a result as one JSON document."""
        import json

        self.print(json.dumps({"schema_version": SCHEMA_VERSION, **data}, indent=2))

    def note(self, text: str) -> None:
        """Tell the person something that is not a result."""
        _write(sys.stderr, text)

    def detail(self, text: str) -> None:
        """Tell the person something that only `--verbose` asks for."""
        if self.verbosity > 0:
            self.note(text)

    def style(self, text: str, **styles: Any) -> str:
        """Style text for stdout."""
        return click.style(text, **styles) if self.uses_color(sys.stdout) else text

    def draws_unicode(self) -> bool:
        """Whether stdout takes line drawing characters."""
        return "utf" in (sys.stdout.encoding or "").lower()

    def show_errors(self, error: "SpecError") -> None:
        """Write the diagnostics of an error: for programs to stdout, for people to stderr."""
        self._render(sorted(error.diagnostics, key=lambda found: found.sort_key()))

    def show_warnings(self, warnings: Iterable["Diagnostic"]) -> None:
        """Write warnings for people; programs find them in the result."""
        found = list(warnings)
        if found and self.verbosity >= 0 and self.format in ("full", "concise"):
            self._render(found)

    def print_diagnostics(self, found: Iterable["Diagnostic"]) -> None:
        """Write diagnostics that are the result, empty or not."""
        self._render(list(found))

    def _render(self, found: list["Diagnostic"]) -> None:
        import shutil

        from vlmspec.diagnostics.render import render

        for_people = self.format in ("full", "concise")
        stream = sys.stderr if for_people else sys.stdout
        width = shutil.get_terminal_size((100, 24)).columns
        if text := render(found, self.format, self.uses_color(stream), width):
            _write(stream, text)


def _write(stream: TextIO, text: str) -> None:
    # File names may hold what the terminal's encoding does not.
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
