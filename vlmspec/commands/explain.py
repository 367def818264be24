"""`vlmspec explain`: explain a diagnostic code, or the kernels that a spec gets."""

import re
from typing import Any

import click

from vlmspec.commands.options import SpecType, output_options, spec_options, target_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec explain VS101
  vlmspec explain model.yaml --target cuda:sm90 --dtype bfloat16
"""


@click.command("explain", epilog=EPILOG)
@click.argument("subject", metavar="CODE|SPEC", type=SpecType())
@spec_options
@target_options
@output_options
@click.pass_obj
def command(session: Session, subject: str, **options: Any) -> None:
    """Explain a code, or the kernels of a spec.

    Given a code such as VS101, says what it means and how to mend it. Given a spec, says which
    kernel every op gets on the target, what was fused into it, and why others were refused.
    """
    if re.fullmatch(r"[Vv][Ss]\d+", subject):
        _explain_code(session, subject.upper())
        return
    from vlmspec import api
    from vlmspec.commands.drawing import draw_table

    rows = api.explain(subject, **options)
    if session.is_json:
        session.print_json({"ops": rows})
    elif not rows:
        session.print("no op of this spec has a kernel to choose")
    else:
        heads = list(rows[0])
        cells = [[_cell(row.get(head)) for head in heads] for row in rows]
        session.print(draw_table([head.replace("_", " ") for head in heads], cells, session))


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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    return str(value)
