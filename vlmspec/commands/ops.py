"""`vlmspec ops`: the steps and ops of the language."""

import click

from vlmspec.commands.options import output_options
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec ops
  vlmspec ops attention
"""


@click.command("ops", epilog=EPILOG)
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Write the page docs/ops.md.")
@output_options
@click.pass_obj
def command(session: Session, name: str | None, markdown: bool) -> None:
    """Describe the steps of the language, and the ops of the IR.

    Without a name, lists the steps that a body may use.
    """
    if markdown and name is not None:
        raise click.UsageError("--markdown writes the whole page; leave NAME out")
    from vlmspec.report.vocabulary import page, vocabulary

    if name is not None:
        _print_one(session, name)
    elif markdown:
        session.print(page().rstrip("\n"))
    elif session.is_json:
        session.print_json(vocabulary())
    else:
        from vlmspec.commands.drawing import draw_table

        steps = vocabulary()["steps"]
        rows = [[step["name"], step["doc"].replace("`", "")] for step in steps]
        session.print(draw_table(["step", "meaning"], rows, session))


def _print_one(session: Session, name: str) -> None:
    from vlmspec.diagnostics.model import suggest
    from vlmspec.report.vocabulary import find, text_of, vocabulary

    found = find(name)
    if not found:
        everything = vocabulary()
        names = [entry["name"] for group in everything.values() for entry in group]
        near = suggest(name, names)
        hint = f"; did you mean {near}?" if near else ""
        raise click.BadParameter(f"there is no step or op {name}{hint}", param_hint="'NAME'")
    if session.is_json:
        session.print_json({"found": found})
    else:
        session.print("\n\n".join(map(text_of, found)))
