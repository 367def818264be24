"""`vlmspec schema`: print the JSON Schema of a spec."""

import json

import click

from vlmspec.commands.options import output_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec schema > vlmspec.schema.json
  vlmspec schema | jq .properties
"""


@click.command("schema", epilog=EPILOG)
@output_options
@click.pass_obj
def command(session: Session) -> None:
    """Print the JSON Schema of a spec.

    Editors with a YAML language server use it for completion and checks while typing.
    """
    from vlmspec import api

    session.print(json.dumps(api.schema(), indent=2))
