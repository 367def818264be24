"""One entry for all renderings of diagnostics."""

from collections.abc import Iterable
from typing import Literal

from vlmspec.diagnostics.model import Diagnostic
from vlmspec.diagnostics.render_full import render_full
from vlmspec.diagnostics.render_machine import render_github, render_json, render_sarif

Format = Literal["full", "concise", "json", "github", "sarif"]


def render(
    diagnostics: Iterable[Diagnostic],
    format: Format = "full",
    color: bool = False,
    width: int = 100,
) -> str:
    """Render diagnostics as text, without a final newline.

    Args:
        diagnostics: in the order to show them; a `Diagnostics` collector is already sorted.
        format: `full` for people, `concise` for one line each, the others for programs.
        color: whether `full` uses ANSI colours.
        width: cells of a terminal line, for `full`.

    Raises:
        ValueError: if the format is unknown.
    """
    match format:
        case "full":
            return render_full(diagnostics, color, width)
        case "concise":
            return "\n".join(diagnostic.concise() for diagnostic in diagnostics)
        case "json":
            return render_json(diagnostics)
        case "github":
            return render_github(diagnostics)
        case "sarif":
            return render_sarif(diagnostics)
        case _:
            raise ValueError(
                f"unknown format {format!r}; known are full, concise, json, github, sarif"
            )
