"""Renderings for programs: JSON, SARIF 2.1.0 and GitHub workflow commands."""

import json
from collections.abc import Iterable
from urllib.parse import quote as quote_url

from vlmspec.diagnostics.codes import CODES
from vlmspec.diagnostics.model import Diagnostic, Label, Span
from vlmspec.diagnostics.text import printable

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render_json(diagnostics: Iterable[Diagnostic]) -> str:
    """Render one JSON object; `errors` holds warnings too, told apart by `severity`."""
    errors = [_json_entry(diagnostic) for diagnostic in diagnostics]
    return json.dumps({"schema_version": 1, "errors": errors}, indent=2)


def _json_entry(diagnostic: Diagnostic) -> dict[str, object]:
    span = diagnostic.primary.span if diagnostic.primary else None
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "file": span.source.name if span else None,
        "line": span.line if span else None,
        "column": span.column if span else None,
        "end_line": span.end_line if span else None,
        "end_column": span.end_column if span else None,
        "message": diagnostic.message,
        "notes": list(diagnostic.notes),
        "help": diagnostic.help,
    }


def render_github(diagnostics: Iterable[Diagnostic]) -> str:
    """Render workflow commands, one a line, which GitHub shows beside the changed lines."""
    return "\n".join(map(_github_line, diagnostics))


def _github_line(diagnostic: Diagnostic) -> str:
    fields: dict[str, object] = {}
    if diagnostic.primary:
        span = diagnostic.primary.span
        fields = {"file": span.source.name, "line": span.line, "col": span.column}
        # GitHub ignores columns of an annotation that spans lines.
        if span.end_line == span.line:
            fields["endColumn"] = span.end_column
        fields["endLine"] = span.end_line
    fields["title"] = f"{diagnostic.code}: {CODES[diagnostic.code].title}"
    text = "\n".join(map(printable, _whole_text(diagnostic)))
    values = ",".join(f"{key}={_github_property(str(value))}" for key, value in fields.items())
    return f"::{diagnostic.severity} {values}::{_github_data(text)}"


def _github_data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _github_property(text: str) -> str:
    return _github_data(text).replace(":", "%3A").replace(",", "%2C")


def _whole_text(diagnostic: Diagnostic) -> list[str]:
    lines = [diagnostic.message, *(f"note: {note}" for note in diagnostic.notes)]
    if diagnostic.help:
        lines.append(f"help: {diagnostic.help}")
    return lines


def render_sarif(diagnostics: Iterable[Diagnostic]) -> str:
    """Render a SARIF 2.1.0 log with the rules that occur."""
    found = list(diagnostics)
    rules = [
        {
            "id": code,
            "shortDescription": {"text": CODES[code].title},
            "fullDescription": {"text": CODES[code].explanation},
        }
        for code in sorted({diagnostic.code for diagnostic in found})
    ]
    run = {
        "tool": {"driver": {"name": "vlmspec", "rules": rules}},
        "columnKind": "unicodeCodePoints",
        "results": [_sarif_result(diagnostic) for diagnostic in found],
    }
    return json.dumps({"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _sarif_result(diagnostic: Diagnostic) -> dict[str, object]:
    result: dict[str, object] = {
        "ruleId": diagnostic.code,
        "level": diagnostic.severity,
        "message": {"text": "\n".join(_whole_text(diagnostic))},
    }
    if diagnostic.primary:
        result["locations"] = [{"physicalLocation": _sarif_place(diagnostic.primary.span)}]
    if diagnostic.secondary:
        result["relatedLocations"] = [_sarif_related(label) for label in diagnostic.secondary]
    return result


def _sarif_related(label: Label) -> dict[str, object]:
    place: dict[str, object] = {"physicalLocation": _sarif_place(label.span)}
    if label.text:
        place["message"] = {"text": label.text}
    return place


def _sarif_place(span: Span) -> dict[str, object]:
    return {
        "artifactLocation": {"uri": quote_url(span.source.name, errors="replace")},
        "region": {
            "startLine": span.line,
            "startColumn": span.column,
            "endLine": span.end_line,
            "endColumn": span.end_column,
        },
    }
