"""`vlmspec check`: report every fault of a spec."""

from typing import Any

import click

from vlmspec.commands.options import output_options, spec_argument, spec_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec check model.yaml
  vlmspec check model.yaml --checkpoint path/to/checkpoint --format github
"""


@click.command("check", epilog=EPILOG)
@spec_argument
@spec_options
@output_options
@click.pass_obj
def command(session: Session, spec: str, **options: Any) -> None:
    """Report every fault of a spec.

    SPEC is a file or the name of a shipped spec. All faults are reported at
    once, each with its place, its reason and its mend; nothing is written. With --checkpoint the
    names and shapes of all tensors are compared too.
    """
    from vlmspec import api

    warnings = api.check(spec, **options)
    if session.format in ("full", "concise"):
        session.show_warnings(warnings)
        if session.verbosity >= 0:
            session.print(f"{spec}: no faults")
    else:
        session.print_diagnostics(warnings)
