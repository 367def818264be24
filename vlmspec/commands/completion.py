"""`vlmspec completion`: print a shell completion script."""

import click
from click.shell_completion import get_completion_class

from vlmspec.commands.session import Session

EPILOG = """\b
Examples:
  vlmspec completion bash >> ~/.bashrc
  vlmspec completion fish > ~/.config/fish/completions/vlmspec.fish
"""


@click.command("completion", epilog=EPILOG)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a shell completion script.

    It completes commands, options and the names of the shipped specs.
    """
    completion = get_completion_class(shell)
    session = ctx.find_object(Session)
    if completion is None or session is None:
        raise click.ClickException(f"no completion for {shell}")
    script = completion(ctx.find_root().command, {}, "vlmspec", "_VLMSPEC_COMPLETE").source()
    session.print(script.strip())
