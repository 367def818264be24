"""Where every size and option of a spec gets its value.

In order: `--set`; the checkpoint's config.json; without a checkpoint, the chosen variant; what the spec gives its component;
the part's default. Sizes stay names in the program, with these values beside them; options are values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.expression import ExpressionError, parse_expression
from vlmspec.compiler.ir.graph import ConfigKey
from vlmspec.compiler.ir.types import Scalar
from vlmspec.compiler.ops.args import fault
from vlmspec.diagnostics.model import Diagnostics, Span, suggest
from vlmspec.dsl.schema import FromConfig

INPUT_SIZES = frozenset({"batch", "tokens", "keys", "images"})
MAX_SIZE = 2**31
MISSING = object()


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the caller sets: values by `component.name`, a parsed config.json, and a variant's values."""

    values: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    config_name: str = "config.json"
    variant: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Setting:
    """One declared size or option: how it is written, and where."""

    name: str
    definition: Any
    span: Span | None
    prefix: str
    option: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """Where config.json has it; a path that starts with `/` starts at the top."""
        if not isinstance(self.definition, FromConfig):
            return ()
        given = self.definition.config
        paths = (given,) if isinstance(given, str) else given
        return tuple(
            p[1:] if p.startswith("/") else ".".join(filter(None, (self.prefix, p))) for p in paths
        )

    @property
    def map(self) -> Mapping[str, Any] | None:
        return self.definition.map if isinstance(self.definition, FromConfig) else None

    @property
    def default(self) -> Any:
        return (
            self.definition.default if isinstance(self.definition, FromConfig) else self.definition
        )


class Settings:
    """All sizes and options of a spec, by their full names, resolved on demand."""

    def __init__(self, overrides: Overrides, diagnostics: Diagnostics):
        self.overrides = overrides
        self.diagnostics = diagnostics
        self.settings: dict[str, Setting] = {}
        self.sizes: dict[str, int | float] = {}
        self.expressions: dict[str, Dim] = {}
        self.derived: dict[str, Dim] = {}
        self.keys: dict[str, ConfigKey] = {}
        self.options: dict[str, ConfigKey] = {}
        self._resolving: list[str] = []

    def declare(self, setting: Setting) -> None:
        self.settings[setting.name] = setting

    def resolve_all(self) -> None:
        """Give every declared size its value; faults go to the diagnostics."""
        for name, setting in list(self.settings.items()):
            if not setting.option:
                self.size(name)

    def size(self, name: str) -> Dim:
        """The symbol of a declared size, whose value and definition are now known."""
        if name in self.expressions:
            return self.expressions[name]
        if name in self._resolving:
            self._circle(name)
            return self._settle(name, 1)
        self._resolving.append(name)
        try:
            return self._resolve(self.settings[name])
        finally:
            self._resolving.pop()

    def option(self, name: str) -> Any:
        """The value of a declared option."""
        if name not in self.options:
            setting = self.settings[name]
            value = self._given(setting)
            value = setting.default if value is MISSING else value
            self.options[name] = ConfigKey(
                name, setting.paths, value, setting.default, setting.map, setting.span
            )
        return self.options[name].value

    def _resolve(self, setting: Setting) -> Dim:
        value = self._given(setting)
        default = setting.default
        if isinstance(default, str):
            default = self._expression(setting, default)
        if value is MISSING:
            if isinstance(default, Dim) and not setting.paths:
                self.derived[setting.name] = default
            value = default.value(self.sizes) if isinstance(default, Dim) else default
        elif isinstance(value, str):
            value = self._expression(setting, value).value(self.sizes)
        if not self._valid(setting, value):
            value = 1
        dim = self._settle(setting.name, value)
        if setting.name in self.derived:
            return dim
        self.keys[setting.name] = ConfigKey(
            setting.name, setting.paths, value, default, span=setting.span
        )
        return dim

    def _settle(self, name: str, value: int | float) -> Dim:
        self.sizes[name] = value
        self.expressions[name] = Dim.sym(name)
        return self.expressions[name]

    def _expression(self, setting: Setting, text: str) -> Dim:
        component = setting.name.rpartition(".")[0]
        try:
            return Scope(self, component).expression(text)
        except Exception as error:
            context = getattr(error, "context", None)
            if context is None:
                raise
            self.diagnostics.error(
                context["code"], context["message"], setting.span, help=context.get("help")
            )
            return Dim.const(1)

    def _given(self, setting: Setting) -> Any:
        """What the caller, the config or the variant says; MISSING if none of them does."""
        if setting.name in self.overrides.values:
            return self.overrides.values[setting.name]
        config = self.overrides.config
        if config is None:
            return lookup(self.overrides.variant, setting.name)
        for path in setting.paths:
            found = lookup(config, path)
            if found is MISSING or (found is None and not setting.option):
                continue
            return self._mapped(setting, found, path)
        return MISSING

    def _mapped(self, setting: Setting, found: Any, path: str) -> Any:
        table = setting.map
        if table is None:
            return found
        key = str(found).lower() if isinstance(found, bool) or found is None else str(found)
        if key not in table:
            known = ", ".join(f"`{k}`" for k in table)
            self.diagnostics.error(
                "VS405",
                f"{self.overrides.config_name}: `{path}` is {found!r}; known are {known}",
                setting.span,
            )
            return MISSING
        return table[key]

    def _valid(self, setting: Setting, value: Any) -> bool:
        short = setting.name
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            shown = "missing" if value is None else f"{value!r}, not a number"
            paths = " or ".join(f"`{p}`" for p in setting.paths)
            mend = f"set it by `--set {short}=…`" + (
                f", or {paths} in config.json" if paths else ""
            )
            code = "VS314" if value is None else "VS308"
            self.diagnostics.error(code, f"size `{short}` is {shown}", setting.span, help=mend)
            return False
        least = 0 if isinstance(value, float) or "." not in short else 1
        if not least <= value <= MAX_SIZE:
            message = f"size `{short}` is {value}; it must be between {least} and 2**31"
            self.diagnostics.error("VS303", message, setting.span)
            return False
        return True

    def _circle(self, name: str) -> None:
        circle = " -> ".join([*self._resolving[self._resolving.index(name) :], name])
        span = self.settings[name].span
        self.diagnostics.error("VS307", f"these sizes define each other: {circle}", span)


class Scope:
    """What names mean in the arguments of one component; the context of pydantic validation."""

    def __init__(
        self, settings: Settings, component: str, prefix: str = "", span: Span | None = None
    ):
        self.settings = settings
        self.component = component
        self.prefix = prefix
        self.span = span

    def names(self, option: bool) -> dict[str, str]:
        """Short names that may be used here, and the full names that they stand for."""
        own = f"{self.component}."
        found = {n: n for n, s in self.settings.settings.items() if s.option == option}
        found |= {n.removeprefix(own): n for n in found if n.startswith(own)}
        return found

    def expression(self, text: str) -> Dim:
        """Parse an expression in the sizes known here."""
        try:
            parsed = parse_expression(text)
        except ExpressionError as error:
            message = f"bad expression `{text}`: {error.args[0]}"
            raise fault("VS301", message, offset=error.offset, length=error.length) from None
        known = self.names(option=False)
        found = {}
        for symbol in sorted(parsed.symbols()):
            if symbol in known:
                found[symbol] = self.settings.size(known[symbol])
            elif symbol not in INPUT_SIZES:
                raise self._unknown("VS302", "size", symbol, known, text.find(symbol))
        return parsed.subs(found)

    def size(self, value: Any, field_name: str | None = None) -> Dim:
        """A dimension: an integer, an expression, or `{config: …}`."""
        if isinstance(value, bool) or not isinstance(value, (int, str, dict)):
            raise fault("VS103", f"expected a size (an integer or an expression), not {value!r}")
        if isinstance(value, int):
            if not 0 <= value <= MAX_SIZE:
                raise fault("VS303", f"{value} is not a size; it must be between 0 and 2**31")
            return Dim.const(value)
        if isinstance(value, dict):
            return self.settings.size(self._anonymous(value, field_name, option=False))
        return self.expression(value)

    def scalar(self, value: Any) -> Scalar:
        """A real number: a literal, or the name of a size."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Scalar(float(value))
        if isinstance(value, str):
            known = self.names(option=False)
            if value in known:
                self.settings.size(known[value])
                return Scalar(float(self.settings.sizes[known[value]]), known[value])
            raise self._unknown("VS302", "size", value, known, 0)
        raise fault("VS103", f"expected a number or the name of a size, not {value!r}")

    def option(self, value: Any, field_name: str | None = None) -> Any:
        """A value that changes the code: a literal, `$name` of an option, or `{config: …}`."""
        if isinstance(value, str) and value.startswith("$"):
            known = self.names(option=True)
            if value[1:] not in known:
                raise self._unknown("VS214", "option", value[1:], known, 1)
            return self.settings.option(known[value[1:]])
        if isinstance(value, dict) and "config" in value:
            return self.settings.option(self._anonymous(value, field_name, option=True))
        return value

    def _anonymous(self, value: dict[str, Any], field_name: str | None, *, option: bool) -> str:
        """Declare a `{config: …}` written in place, named after the argument that it sets."""
        try:
            definition = FromConfig.model_validate(value)
        except ValidationError as error:
            what = error.errors()[0]
            raise fault("VS103", f"`{'.'.join(map(str, what['loc']))}`: {what['msg']}") from None
        name = f"{self.component}.{field_name}"
        if name not in self.settings.settings:
            self.settings.declare(Setting(name, definition, self.span, self.prefix, option))
        return name

    def _unknown(self, code: str, what: str, name: str, known: Mapping[str, str], offset: int):
        near = suggest(name, known)
        own = [k for k, full in known.items() if full == f"{self.component}.{k}"]
        listed = f"known here: {', '.join(f'`{k}`' for k in own)}" if own else None
        mend = f"did you mean `{near}`?" if near else listed
        return fault(code, f"no {what} is called `{name}`", mend, offset=offset, length=len(name))


def lookup(data: Any, path: str) -> Any:
    """Value at a dotted path of nested mappings, or MISSING."""
    for part in path.split("."):
        if not isinstance(data, Mapping) or part not in data:
            return MISSING
        data = data[part]
    return data
