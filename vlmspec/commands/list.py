"""`vlmspec list`: list the specs that are shipped."""

from typing import Any

import click

from vlmspec.commands.drawing import draw_table
from vlmspec.commands.options import output_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec list
  vlmspec list --json
"""


@click.command("list", epilog=EPILOG)
@output_options
@click.pass_obj
def command(session: Session) -> None:
    """List the specs that are shipped.

    Every name can be given to the other commands in place of a file.
    """
    from vlmspec import api

    specs = api.list_specs()
    if session.is_json:
        session.print_json({"specs": specs})
        return
    heads = ["name", "title", "paper", "variants", "lines"]
    session.print(draw_table(heads, [_row(spec) for spec in specs], session, right={4}))


def _row(spec: dict[str, Any]) -> list[str]:
    variants = ", ".join(map(str, spec.get("variants") or ()))
    cells = [spec["name"], spec.get("title"), spec.get("paper"), variants, spec.get("lines")]
    return ["" if cell is None else str(cell) for cell in cells]
