"""`vlmspec explain`: explain a diagnostic code, or the kernels that a spec gets."""

import re
from typing import Any

import click

from vlmspec.commands.options import SpecType, output_options, spec_options, target_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec explain VS305
  vlmspec explain model.yaml --target cuda:sm90 --dtype bfloat16
"""


@click.command("explain", epilog=EPILOG)
@click.argument("subject", metavar="CODE|SPEC", type=SpecType(), required=False)
@click.option("--all", "whole", is_flag=True, help="Explain every code.")
@click.option("--markdown", is_flag=True, help="Write the codes as the page docs/diagnostics.md.")
@spec_options
@target_options
@output_options
@click.pass_obj
def command(
    session: Session, subject: str | None, whole: bool, markdown: bool, **options: Any
) -> None:
    """Explain a code, or the kernels of a spec.

    Given a code such as VS101, says what it means and how to mend it. Given a spec, says which
    kernel every op gets on the target, what was fused into it (+), and what was not, and why (-).
    """
    if whole:
        if subject is not None:
            raise click.UsageError("--all explains every code; leave CODE|SPEC out")
        _explain_all(session, markdown)
        return
    if subject is None:
        raise click.UsageError("Missing argument 'CODE|SPEC'.")
    if re.fullmatch(r"[Vv][Ss]\d+", subject):
        _explain_code(session, subject.upper())
        return
    from vlmspec import api
    from vlmspec.commands.drawing import draw_kernels

    rows = api.explain(subject, **options)
    if session.is_json:
        session.print_json({"ops": rows})
    elif not rows:
        session.print("no op of this spec has a kernel to choose")
    else:
        session.print(draw_kernels(rows, session))


def _explain_all(session: Session, markdown: bool) -> None:
    from vlmspec.diagnostics.codes import CODES, codes_page

    if markdown:
        session.print(codes_page().rstrip("\n"))
    elif session.is_json:
        session.print_json({"codes": {name: code._asdict() for name, code in CODES.items()}})
    else:
        for index, name in enumerate(CODES):
            if index:
                session.print("")
            _explain_code(session, name)


def _explain_code(session: Session, code: str) -> None:
    import textwrap

    from vlmspec.diagnostics.codes import CODES
    from vlmspec.diagnostics.model import suggest

    if code not in CODES:
        near = suggest(code, CODES)
        hint = f"; did you mean {near}?" if near else ""
        raise click.BadParameter(f"there is no code {code}{hint}", param_hint="'CODE|SPEC'")
    title, explanation = CODES[code]
    if session.is_json:
        session.print_json({"code": code, "title": title, "explanation": explanation})
        return
    session.print(session.style(f"{code}: {title}", bold=True) + "\n")
    for paragraph in explanation.split("\n\n"):
        session.print(textwrap.fill(paragraph, 80))
