"""`vlmspec verify`: compare the emitted module with the public implementation."""

from pathlib import Path
from typing import Any

import click

from vlmspec.commands.drawing import draw_table
from vlmspec.commands.options import output_options, spec_argument
from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec verify model.yaml path/to/checkpoint
  vlmspec verify model.yaml path/to/checkpoint --dtype float32 --json
"""


@click.command("verify", epilog=EPILOG)
@spec_argument
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(("float64", "float32")),
    default="float64",
    show_default=True,
    help="The data type to compute in; float64 finds a wrong epsilon.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="The largest relative error of a stage.  [default: 1e-10 in float64, 1e-5 in float32]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of the inputs.")
@click.option(
    "--images",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="How many images the prompt holds.",
)
@output_options
@click.pass_obj
def command(session: Session, spec: str, checkpoint: Path, **options: Any) -> None:
    """Compare the emitted module with the public implementation.

    CHECKPOINT is a folder with config.json and safetensors. Both models run on the same inputs, and
    every stage is compared, not only the result. Needs torch and transformers. The exit status is 1
    if a stage differs by more than the tolerance.
    """
    from vlmspec import api

    result = api.verify(spec, checkpoint, **options)
    if session.is_json:
        session.print_json(result)
    else:
        rows = [_row(session, stage) for stage in result["stages"]]
        session.print(draw_table(["stage", "error", "tolerance", ""], rows, session, right={1, 2}))
        session.print("all stages agree" if result["ok"] else "the implementations differ")
    if not result["ok"]:
        raise click.exceptions.Exit(1)


def _row(session: Session, stage: dict[str, Any]) -> list[str]:
    verdict = session.style("ok", fg="green") if stage["ok"] else session.style("differs", fg="red")
    return [stage["name"], _number(stage["error"]), _number(stage["tolerance"]), verdict]


def _number(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, int | float) else str(value)
