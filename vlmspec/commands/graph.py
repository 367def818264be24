"""`vlmspec graph`: draw a picture of a spec."""

import os
import tempfile
from pathlib import Path
from typing import Any

import click

from vlmspec.commands.options import spec_argument, spec_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec graph model.yaml -o model.svg
  vlmspec graph model.yaml --format mermaid
"""
FORMATS = ("svg", "mermaid", "dot", "json")
SUFFIXES = {".svg": "svg", ".mmd": "mermaid", ".dot": "dot", ".gv": "dot", ".json": "json"}


@click.command("graph", epilog=EPILOG)
@spec_argument
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    help="How the picture is written.  [default: by the ending of FILE, else svg]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write here instead of to standard output.",
)
@spec_options
@click.pass_obj
def command(
    session: Session, spec: str, format: str | None, output: Path | None, **options: Any
) -> None:
    """Draw the components of a spec as a picture.

    SPEC is a file or the name of a shipped spec. Shows inputs, components and outputs from left to
    right, and the shapes of what flows between them.
    """
    from vlmspec import api

    chosen = format or SUFFIXES.get(output.suffix if output else "", "svg")
    if chosen == "json":
        session.format = "json"
    text = api.draw(spec, chosen, **options)
    if output is None:
        session.print(text.rstrip("\n"))
        return
    try:
        _write(output, text)
    except OSError as error:
        from vlmspec.diagnostics.model import Diagnostics, SpecError

        found = Diagnostics()
        mend = "nothing was changed; choose another file"
        found.error("VS502", f"{output}: {error.strerror or error}", help=mend)
        raise SpecError(found) from error
    session.note(f"wrote {output}")


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that no half of a picture is ever seen."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
