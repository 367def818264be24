"""The command line: finds the command, and turns every outcome into an exit status.

0 done, 1 the spec or the comparison is at fault, 2 wrong usage, 70 a bug in vlmspec, 130 and 143
interrupted, 141 the reader of the output went away. Commands are imported when they are called, so
that help is instant.
"""

import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from vlmspec import __version__
from vlmspec.commands.session import Session

# Name -> where the command is, and its summary.
COMMANDS = {
    "compile": ("vlmspec.commands.compile:command", "Write the torch package of a spec."),
    "check": ("vlmspec.commands.check:command", "Report every fault of a spec."),
    "show": ("vlmspec.commands.show:command", "Draw the components of a spec and their sizes."),
    "list": ("vlmspec.commands.list:command", "List the specs that are shipped."),
    "verify": (
        "vlmspec.commands.verify:command",
        "Compare the emitted module with the public implementation.",
    ),
    "explain": ("vlmspec.commands.explain:command", "Explain a code, or the kernels of a spec."),
    "graph": ("vlmspec.commands.graph:command", "Draw the components of a spec as a picture."),
    "ops": (
        "vlmspec.commands.ops:command",
        "Describe the steps of the language, and the ops of the IR.",
    ),
    "schema": ("vlmspec.commands.schema:command", "Print the JSON Schema of a spec."),
    "completion": ("vlmspec.commands.completion:command", "Print a shell completion script."),
}

EPILOG = """\b
Examples:
  vlmspec show model.yaml
  vlmspec compile model.yaml --checkpoint path/to/checkpoint -o my_model
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return getattr(import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and name the nearest one if there is none."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the summaries without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", message="vlmspec %(version)s")
def cli() -> None:
    """Compile YAML specs of vision-language architectures to torch modules."""


class _Terminated(BaseException):
    """SIGTERM arrived; an exception, so that half-written output is removed."""


def main() -> NoReturn:
    """Run the command line of this process."""

    def terminate(number: int, frame: object) -> NoReturn:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    if instruction := os.environ.get("_VLMSPEC_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "vlmspec", "_VLMSPEC_COMPLETE", instruction)
    session = Session()
    try:
        with cli.make_context("vlmspec", list(arguments), obj=session) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return 0
    except (Exception, KeyboardInterrupt, _Terminated) as error:
        try:
            return _status_of(error, session, arguments)
        except BrokenPipeError:
            return _reader_gone()


def _status_of(error: BaseException, session: Session, arguments: list[str]) -> int:
    if isinstance(error, click.exceptions.Exit):
        sys.stdout.flush()
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return _reader_gone()
    if isinstance(error, KeyboardInterrupt | click.Abort):
        session.note("interrupted")
        return 130
    if isinstance(error, _Terminated):
        return 143
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    from vlmspec.diagnostics.model import SpecError

    if isinstance(error, SpecError):
        session.show_errors(error)
        return 1
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "transformers"):
        session.note(f"error: this command needs {error.name}: pip install {error.name}")
        return 1
    if os.environ.get("VLMSPEC_TRACEBACK") == "1":
        raise error
    _report_bug(error, session, arguments)
    return 70


def _report_bug(error: BaseException, session: Session, arguments: list[str]) -> None:
    import platform
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", prefix="vlmspec-bug-", suffix=".txt", delete=False
    ) as file:
        file.write(f"vlmspec {__version__}, Python {platform.python_version()}\n")
        file.write(f"arguments: {arguments!r}\n\n")
        file.write("".join(traceback.format_exception(error)))
    summary = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    if session.format == "json":
        entry: dict[str, Any] = {"code": "bug", "severity": "error", "message": summary}
        session.print_json({"errors": [{**entry, "trace": file.name}]})
    session.note(f"error: {summary}")
    session.note(f"this is a bug in vlmspec, please report it with the file {file.name}")


def _reader_gone() -> int:
    # Python flushes once more at exit; let that go nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
