"""`vlmspec list`: list the specs that are shipped."""

from typing import Any

import click

from vlmspec.commands.drawing import draw_table
from vlmspec.commands.options import output_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec list
  vlmspec list --parts --json
"""


@click.command("list", epilog=EPILOG)
@click.option("--parts", is_flag=True, help="List the parts that specs are made of instead.")
@output_options
@click.pass_obj
def command(session: Session, parts: bool) -> None:
    """List the specs that are shipped.

    Every name can be given to the other commands in place of a file. With --parts, lists the
    encoders, connectors and decoders that a component of a spec can name.
    """
    from vlmspec import api

    found = api.list_parts() if parts else api.list_specs()
    if session.is_json:
        session.print_json({"parts" if parts else "specs": found})
        return
    heads = ["name", "kind", "title", "source"] if parts else ["name", "title", "variants", "lines"]
    rows = [[_cell(entry.get(head)) for head in heads] for entry in found]
    session.print(draw_table(heads, rows, session, right=() if parts else {3}))


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
