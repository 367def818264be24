"""`vlmspec compile`: write the torch package of a spec."""

import os
from pathlib import Path
from typing import Any

import click

from vlmspec.commands.options import output_options, spec_argument, spec_options, target_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec compile model.yaml
  vlmspec compile model.yaml --set text.num_layers=4 --target cuda:sm90 -o build/my_model
"""


@click.command("compile", epilog=EPILOG)
@spec_argument
@spec_options
@target_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder of the package.  [default: build/NAME]",
)
@click.option(
    "--dump-ir",
    metavar="DIR",
    help="Write the program after every pass into this folder; - for standard output.",
)
@click.option(
    "--force", is_flag=True, help="Replace a folder that vlmspec did not write, or that was edited."
)
@output_options
@click.pass_obj
def command(session: Session, spec: str, **options: Any) -> None:
    """Write the torch package of a spec.

    SPEC is a file or the name of a shipped spec. The package needs torch
    and nothing of vlmspec. An earlier package is replaced in one step, or left alone if nothing
    changed.
    """
    from vlmspec import api

    try:
        compiled = api.compile(spec, **options)
    except OSError as error:
        raise _cannot_write(error) from error
    session.show_warnings(compiled.warnings)
    if session.is_json:
        warnings = [{"code": found.code, "message": found.message} for found in compiled.warnings]
        session.print_json(
            {
                "name": compiled.name,
                "path": str(compiled.path),
                "changed": compiled.changed,
                "files": compiled.files,
                "warnings": warnings,
            }
        )
    elif session.verbosity >= 0:
        for line in _summary(session, compiled):
            session.print(line)


def _summary(session: Session, compiled: Any) -> list[str]:
    files: dict[str, int] = compiled.files
    path = f"{_short(compiled.path)}{os.sep}"
    if not compiled.changed:
        return [f"{path} is up to date"]
    total = f"{len(files)} files, {sum(files.values()):,} lines"
    lines = [f"wrote {session.style(path, bold=True)}: {total}"]
    width = max(map(len, files), default=0)
    return [*lines, *(f"  {name:<{width}}  {count:>6,}" for name, count in files.items())]


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _cannot_write(error: OSError) -> Exception:
    """Turn a failure to write into a diagnostic."""
    from vlmspec.diagnostics.model import Diagnostics, SpecError
    from vlmspec.publish import NotOurs

    found = Diagnostics()
    place = f"{error.filename}: " if error.filename else ""
    message = f"{place}{error.strerror or error}"
    if isinstance(error, NotOurs):
        mend = "choose another folder with --output, or replace this one with --force"
        found.error("VS501", message, help=mend)
    else:
        found.error("VS502", message, help="nothing was changed; choose another folder")
    return SpecError(found)
