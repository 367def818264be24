"""The arguments and options that several commands share."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from vlmspec.commands.session import FORMATS, Session

TARGETS = ("cpu", "cuda:sm80", "cuda:sm90", "cuda:sm100")
DTYPES = ("float32", "float64", "bfloat16", "float16")

_SETTING = re.compile(r"[A-Za-z_][\w.]*\.\w+=.+", re.DOTALL | re.ASCII)

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]


def shipped_names() -> list[str]:
    """List the names of the shipped specs without reading them."""
    import vlmspec.specs

    folders = [Path(folder) for folder in vlmspec.specs.__path__]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


class SpecType(click.ParamType):
    """A file, or the name of a shipped spec."""

    name = "spec"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of shipped specs, then files."""
        names = [name for name in shipped_names() if name.startswith(incomplete)]
        return [*map(CompletionItem, names), CompletionItem(incomplete, type="file")]


class SettingType(click.ParamType):
    """`node.attribute=value`; what the names mean is the compiler's to check."""

    name = "setting"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what has no node, attribute or value."""
        if not _SETTING.fullmatch(value):
            self.fail(f"{value!r} is not of the form node.attribute=value", param, ctx)
        return value


spec_argument = click.argument("spec", type=SpecType())


def spec_options(command: Command) -> Command:
    """Add what decides the sizes of a spec."""
    return _apply(
        command,
        click.option(
            "--checkpoint",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            metavar="DIR",
            help="Take sizes from the config.json of this checkpoint and check its tensors.",
        ),
        click.option(
            "--config",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Take sizes from this config.json.",
        ),
        click.option("--variant", metavar="NAME", help="Take sizes from this variant of the spec."),
        click.option(
            "--set",
            "set",
            multiple=True,
            type=SettingType(),
            metavar="NODE.ATTR=VALUE",
            help="Set one size or option; may be repeated.",
        ),
    )


def target_options(command: Command) -> Command:
    """Add the device and the data type that kernels are chosen for."""
    return _apply(
        command,
        click.option(
            "--target",
            type=click.Choice(TARGETS),
            default="cpu",
            show_default=True,
            help="The device to choose kernels for.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            default="float32",
            show_default=True,
            help="The data type to choose kernels for.",
        ),
    )


def output_options(command: Command) -> Command:
    """Add how results and diagnostics are written; the session keeps the choices."""
    return _apply(
        command,
        click.option(
            "--json",
            is_flag=True,
            expose_value=False,
            callback=_keep("format", {True: "json"}),
            help="Write results and errors as JSON to standard output.",
        ),
        click.option(
            "--format",
            type=click.Choice(FORMATS),
            expose_value=False,
            callback=_keep("format"),
            help="How errors and warnings are written.  [default: full]",
        ),
        click.option(
            "--color",
            type=click.Choice(("auto", "always", "never")),
            expose_value=False,
            callback=_keep("color"),
            help="When to use colours.  [default: auto]",
        ),
        _verbosity_flag("-q", "--quiet", -1, "Write no warnings and no summary."),
        _verbosity_flag("-v", "--verbose", 1, "Write details of what is done."),
    )


def _verbosity_flag(short: str, long: str, level: int, help: str) -> Decorator:
    keep = _keep("verbosity", {True: level})
    return click.option(short, long, is_flag=True, expose_value=False, callback=keep, help=help)


def _apply(command: Command, *options: Decorator) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def _keep(attribute: str, values: dict[Any, Any] | None = None) -> Callable[..., None]:
    """Make a callback that keeps a given value in the session."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        kept = value if values is None else values.get(value)
        session = ctx.find_object(Session)
        if kept is not None and session is not None:
            setattr(session, attribute, kept)

    return callback
