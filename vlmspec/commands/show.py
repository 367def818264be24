"""`vlmspec show`: draw the components of a spec and their sizes."""

from typing import Any

import click

from vlmspec.commands.options import output_options, spec_argument, spec_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec show model.yaml
  vlmspec show model.yaml --variant tiny --json
"""


@click.command("show", epilog=EPILOG)
@spec_argument
@spec_options
@output_options
@click.pass_obj
def command(session: Session, spec: str, **options: Any) -> None:
    """Draw the components of a spec and their sizes.

    SPEC is a file or the name of a shipped spec. Shows what each component
    takes and gives, its parameters, and how many visual tokens an image becomes.
    """
    from vlmspec import api
    from vlmspec.commands.drawing import draw_architecture

    data = api.show(spec, **options)
    if session.is_json:
        session.print_json(data)
    else:
        session.print(draw_architecture(data, session))
