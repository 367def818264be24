"""Where every size and option of a spec gets its value.

In order: `--set`; the checkpoint's config.json; without a checkpoint, the chosen variant; what the spec gives its component;
the part's default. Sizes stay names in the program, with these values beside them; options are values.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.expression import ExpressionError, parse_expression
from vlmspec.compiler.ir.graph import ConfigKey
from vlmspec.compiler.ir.types import Scalar, Table
from vlmspec.diagnostics.model import Diagnostics, Label, Span
from vlmspec.diagnostics.text import quote
from vlmspec.dsl.faults import near_or_list, show
from vlmspec.dsl.schema import FromConfig, fault

INPUT_SIZES = frozenset({"batch", "tokens", "keys", "images"})
MAX_SIZE = 2**31
MISSING = object()


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the caller sets: values by `component.name`, a parsed config.json, and a variant's values.

    `config_span` and `variant_span` find the place of a dotted path in them.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    config_name: str = "config.json"
    variant: Mapping[str, Any] = field(default_factory=dict)
    config_span: Callable[[str], Span | None] = lambda path: None
    variant_span: Callable[[str], Span | None] = lambda path: None


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
        prefixes = [text.strip().removeprefix("/") for text in self.prefix.split("|")]
        found = [
            p[1:] if p.startswith("/") else ".".join(filter(None, (prefix, p)))
            for prefix in prefixes
            for p in paths
        ]
        return tuple(dict.fromkeys(found))

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
        self.origins: dict[str, tuple[Callable[[str], Span | None], str, str]] = {}
        self._resolving: list[str] = []
        # Components whose sizes are not known because their part could not be read.
        self.opaque: set[str] = set()

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

    def option(self, name: str, many: bool = False) -> Any:
        """The value of a declared option; a list of values, as a tuple, where `many` are taken."""
        if name not in self.options:
            setting = self.settings[name]
            value = self._given(setting)
            value = setting.default if value is MISSING else value
            if many and isinstance(value, (list, tuple)):
                value = tuple(value)
            elif isinstance(value, (list, tuple, dict)):
                self._refuse(setting, "VS308", f"option `{name}` is {show(value)}, not one value")
                value = None if isinstance(setting.default, (list, dict)) else setting.default
            self.options[name] = ConfigKey(
                name, setting.paths, value, setting.default, setting.map, setting.span
            )
        return self.options[name].value

    def _resolve(self, setting: Setting) -> Dim:
        if isinstance(setting.default, (tuple, list)):
            return self._resolve_table(setting)
        value = self._given(setting)
        default = setting.default
        if isinstance(default, str):
            default = self._expression(setting, default)
        if value is MISSING:
            if isinstance(default, Dim) and not setting.paths:
                self.derived[setting.name] = default
            value = self._value(setting, default) if isinstance(default, Dim) else default
        elif isinstance(value, str) and self._is_ours(setting.name):
            value = self._value(setting, self._expression(setting, value))
        value = self._checked(setting, value, self._is_fraction(default))
        dim = self._settle(setting.name, value)
        if setting.name in self.derived:
            return self._foreign(setting.name) or dim
        self.keys[setting.name] = ConfigKey(
            setting.name, setting.paths, value, default, span=setting.span
        )
        return dim

    def _resolve_table(self, setting: Setting) -> Dim:
        """Rows of whole numbers: no size, but a field of the config as sizes are."""
        name, given = setting.name, self._given(setting)
        try:
            value = as_table(setting.default if given is MISSING else given)
        except ValueError as error:
            self._refuse(setting, "VS308", f"`{name}` is {error}, not rows of whole numbers")
            value = ()
        default = as_table(setting.default)
        self.keys[name] = ConfigKey(name, setting.paths, value, default, span=setting.span)
        self.expressions[name] = Dim.sym(name)
        return self.expressions[name]

    def _foreign(self, name: str) -> Dim | None:
        """The definition of a size that follows from other components' sizes; it stands for the size everywhere."""
        owner = name.rpartition(".")[0]
        if all(n.rpartition(".")[0] == owner for n in self.derived[name].symbols()):
            return None
        self.expressions[name] = self.derived.pop(name)
        return self.expressions[name]

    def _is_fraction(self, default: Any) -> bool | None:
        """Whether a size with this default is a real number; None where the default does not tell."""
        if isinstance(default, Dim):
            return any(isinstance(self.sizes.get(n), float) for n in default.symbols())
        return None if default is None else isinstance(default, float)

    def _value(self, setting: Setting, dim: Dim) -> Any:
        try:
            return dim.value(self.sizes)  # pyright: ignore[reportArgumentType]
        except KeyError as error:
            message = f"size `{setting.name}` depends on `{error.args[0]}`, which only a run knows"
            self._refuse(setting, "VS302", message)
        except ValueError:
            values = ", ".join(f"`{n}` is {self.sizes[n]}" for n in sorted(dim.symbols()))
            self._refuse(setting, "VS315", f"division by zero in `{dim}`, where {values}")
        return 1

    def _settle(self, name: str, value: int | float) -> Dim:
        self.sizes[name] = value
        self.expressions[name] = Dim.sym(name)
        return self.expressions[name]

    def _expression(self, setting: Setting, text: str) -> Dim:
        component = setting.name.rpartition(".")[0]
        try:
            return Scope(self, component).expression(text)
        except PydanticCustomError as error:
            context = error.context or {}
            span = self.place(setting.name)
            if setting.name in self.overrides.values:
                self._refuse(setting, context["code"], context["message"], context.get("help"))
                return Dim.const(1)
            if span is not None and text in span.text:
                start = span.start + span.text.index(text) + (context.get("offset") or 0)
                span = span.source.span(start, start + max(context.get("length") or 1, 1))
            code, message = context["code"], context["message"]
            self.diagnostics.error(code, message, span, help=context.get("help"))
            return Dim.const(1)

    def _given(self, setting: Setting) -> Any:
        """What the caller, the config or the variant says; MISSING if none of them does."""
        name = setting.name
        if name in self.overrides.values:
            value = self.overrides.values[name]
            return value
        config = self.overrides.config
        if config is None:
            value = lookup(self.overrides.variant, name)
            if value is not MISSING:
                self.origins[name] = (self.overrides.variant_span, name, "")
            return value
        for path in setting.paths:
            found = lookup(config, path)
            if found is MISSING or (found is None and not setting.option):
                continue
            if isinstance(found, list) and found and not setting.option:
                # A size along each axis, as [448, 448].
                found = found[0] if found.count(found[0]) == len(found) else found
            self.origins[name] = (self.overrides.config_span, path, "given here")
            return self._mapped(setting, found, path)
        return MISSING

    def _mapped(self, setting: Setting, found: Any, path: str) -> Any:
        table = setting.map
        if table is None:
            return found
        key = str(found).lower() if isinstance(found, bool) else str(found)
        key = "null" if found is None else key
        if key not in table:
            message = f"`{path}` of {self.overrides.config_name} is {show(found)}"
            mend = f"this spec takes {', '.join(f'`{k}`' for k in table)}; extend its `map`"
            self._refuse(setting, "VS405", message, mend)
            return MISSING
        return table[key]

    def _checked(self, setting: Setting, value: Any, fraction: bool | None) -> int | float:
        """The value of a size as the right kind of number; 1 where it is none."""
        what = "a number" if fraction else "a whole number"
        name = setting.name
        if value is None:
            return self._absent(setting)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(setting, "VS308", f"size `{name}` is {show(value)}, not {what}")
            return 1
        if fraction is False and value != int(value):
            self._refuse(setting, "VS308", f"size `{name}` is `{value}`, not a whole number")
            return 1
        least = 0 if fraction or isinstance(value, float) or "." not in name else 1
        if not least <= value <= MAX_SIZE:
            mend = f"choose {what} between {least} and 2**31"
            self._refuse(setting, "VS303", f"size `{name}` is {value}", mend)
            return 1
        return value if fraction is None else float(value) if fraction else int(value)

    def _absent(self, setting: Setting) -> int:
        ways = [f"set it by `--set {setting.name}=...`", "give it a `default`"]
        if setting.paths:
            ways.append(f"have {' or '.join(f'`{p}`' for p in setting.paths)} in config.json")
        self._refuse(setting, "VS314", f"size `{setting.name}` has no value", ", or ".join(ways))
        return 1

    def _refuse(self, setting: Setting, code: str, message: str, mend: str | None = None) -> None:
        """Report a value of a setting where it was given, and show what reads it."""
        origin = self._origin(setting.name)
        if setting.name in self.overrides.values:
            given = f"--set {setting.name}={self.overrides.values[setting.name]}"
            message = f"{quote(given, 100)}: {message}"
            self.diagnostics.error(code, message, setting.span, "sets this", mend)
        elif origin is None:
            self.diagnostics.error(code, message, setting.span, help=mend)
        else:
            read = [Label(setting.span, "read by this")] if setting.span else []
            self.diagnostics.error(code, message, origin.span, origin.text, mend, secondary=read)

    def _is_ours(self, name: str) -> bool:
        """Whether a value comes from the spec or the request, where texts are expressions."""
        return name in self.overrides.values or self.overrides.config is None

    def _origin(self, name: str) -> Label | None:
        """Where a value was given that did not come from the spec's own definition."""
        find, path, text = self.origins.get(name, (lambda path: None, "", ""))
        span = find(path)
        return Label(span, text) if span else None

    def place(self, name: str) -> Span | None:
        """Where the value of a size or option was given."""
        if origin := self._origin(name):
            return origin.span
        return self.settings[name].span if name in self.settings else None

    def _circle(self, name: str) -> None:
        members = self._resolving[self._resolving.index(name) :]
        circle = " -> ".join([*members, name])
        span = self.settings[name].span
        others = [Label(s, "") for n in members[1:] if (s := self.settings[n].span)]
        mend = "give one of them as a number"
        message = f"these sizes define each other: {circle}"
        self.diagnostics.error("VS307", message, span, help=mend, secondary=others)


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
            code = "VS315" if "division by zero" in error.message else "VS301"
            message = f"bad expression: {error.message}"
            raise fault(code, message, offset=error.offset, length=error.length) from None
        known = self.names(option=False)
        found = {}
        for symbol in sorted(parsed.symbols()):
            if symbol in known:
                found[symbol] = self.settings.size(known[symbol])
            elif symbol.partition(".")[0] in self.settings.opaque:
                found[symbol] = Dim.const(1)
            elif symbol not in INPUT_SIZES:
                raise self._unknown("VS302", "size", symbol, known, _find_word(text, symbol))
        if not _is_name(text):
            self._whole_only(text, found)
        return parsed.subs(found)

    def _whole_only(self, text: str, found: Mapping[str, Dim]) -> None:
        """Refuse fractions in an expression: it counts something."""
        for symbol, dim in found.items():
            for name in dim.symbols():
                if isinstance(self.settings.sizes.get(name), float):
                    message = f"`{symbol}` is a fraction, and this takes whole numbers"
                    at = _find_word(text, symbol)
                    raise fault("VS308", message, offset=at, length=len(symbol))

    def size(self, value: Any, field_name: str | None = None) -> Dim:
        """A dimension: an integer, an expression, or `{config: ...}`."""
        if isinstance(value, bool) or not isinstance(value, (int, str, dict)):
            message = f"expected a size (a whole number or an expression), not {show(value)}"
            raise fault("VS103", message)
        if isinstance(value, int):
            if not 0 <= value <= MAX_SIZE:
                mend = "choose a whole number between 0 and 2**31"
                raise fault("VS303", f"{value} is not a size", mend)
            return Dim.const(value)
        if isinstance(value, dict):
            return self.settings.size(self._anonymous(value, field_name, option=False))
        dim = self.expression(value)
        if _is_name(value):
            self._whole_only(value, {value: dim})
        return dim

    def known_size(self, value: Any, field_name: str | None = None) -> Dim:
        """A dimension whose value the sizes determine, and which is one."""
        dim = self.size(value, field_name)
        sizes = self.settings.sizes
        try:
            number = dim.value(sizes)  # pyright: ignore[reportArgumentType]
        except KeyError as error:
            name = error.args[0]
            message = f"`{name}` is known only when the model runs, and this size must be fixed"
            at = _find_word(str(value), name)
            raise fault("VS302", message, offset=at, length=len(name)) from None
        except ValueError:
            given = ", ".join(f"`{n}` is {sizes[n]}" for n in sorted(dim.symbols()))
            raise fault("VS315", f"division by zero: {given}") from None
        if number < 0 or number > MAX_SIZE:
            given = ", ".join(f"`{n}` is {sizes[n]}" for n in sorted(dim.symbols()))
            mend = "sizes lie between 0 and 2**31" + (f"; {given}" if given else "")
            raise fault("VS303", f"this size is {number}", mend)
        return dim

    def scalar(self, value: Any, field_name: str | None = None) -> Scalar:
        """A real number: a literal, the name of a size, or `{config: ...}`."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Scalar(float(value))
        if isinstance(value, dict):
            name = self._anonymous(value, field_name, option=False)
            self.settings.size(name)
            return Scalar(float(self.settings.sizes[name]), name)
        if isinstance(value, str):
            known = self.names(option=False)
            if value in known:
                self.settings.size(known[value])
                return Scalar(float(self.settings.sizes[known[value]]), known[value])
            raise self._unknown("VS302", "size", value, known, 0)
        message = f"expected a number or the name of a size, not {show(value)}"
        raise fault("VS103", message)

    def table(self, value: Any, field_name: str | None = None) -> Table:
        """Rows of whole numbers: a literal, the name of a setting, or `{config: ...}`."""
        name = None
        if isinstance(value, dict):
            name = self._anonymous(value, field_name, option=False)
        elif isinstance(value, str):
            known = self.names(option=False)
            if value not in known:
                raise self._unknown("VS302", "size", value, known, 0)
            name = known[value]
        if name is not None:
            self.settings.size(name)
            value = self.settings.keys[name].value if name in self.settings.keys else None
        try:
            return Table(as_table(value), name)
        except ValueError as error:
            raise fault("VS103", f"expected rows of whole numbers, not {error}") from None

    def option(self, value: Any, field_name: str | None = None, many: bool = False) -> Any:
        """A value that changes the code: a literal, `$name` of an option, or `{config: …}`."""
        if isinstance(value, str) and value.startswith("$"):
            known = self.names(option=True)
            if value[1:] not in known and value[1:] in self.names(option=False):
                mend = f"write `{value[1:]}`; the `$` is for options"
                raise fault("VS214", f"{show(value[1:])} is a size, not an option", mend)
            if value[1:] not in known:
                raise self._unknown("VS214", "option", value[1:], known, 1)
            return self.settings.option(known[value[1:]], many)
        if isinstance(value, dict) and "config" in value:
            return self.settings.option(self._anonymous(value, field_name, option=True), many)
        return value

    def origin(self, value: Any, field_name: str) -> Label | None:
        """Where the value that `$name` or `{config: ...}` stands for was given, if not here."""
        if isinstance(value, str) and value.startswith("$"):
            name = self.names(option=True).get(value[1:], "")
        elif isinstance(value, dict):
            name = next((n for n, d in self._named(field_name) if _same(d, value)), "")
        else:
            return None
        span = self.settings.place(name)
        return Label(span) if span and span != self.span else None

    def _named(self, field_name: str | None) -> Iterator[tuple[str, Any]]:
        """Names that a value written in place may get, with what already has the name, if any."""
        for count in range(1, len(self.settings.settings) + 3):
            name = f"{self.component}.{field_name}" + (f"_{count}" if count > 1 else "")
            declared = self.settings.settings.get(name)
            yield name, declared.definition if declared else None

    def _anonymous(self, value: dict[str, Any], field_name: str | None, *, option: bool) -> str:
        """Declare a `{config: ...}` written in place, named after the argument that it sets."""
        try:
            definition = FromConfig.model_validate(value)
        except ValidationError as error:
            raise config_fault(error, value) from None
        for name, declared in self._named(field_name):
            if declared == definition:
                break
            if declared is None:
                setting = Setting(name, definition, self.span, self.prefix, option)
                self.settings.declare(setting)
                break
        return name

    def _unknown(self, code: str, what: str, name: str, known: Mapping[str, str], offset: int):
        own = [k for k, full in known.items() if full == f"{self.component}.{k}"]
        near = near_or_list(name, known, "") if known else None
        mend = near if near and near.startswith("did") else near_or_list("", own, "known here")
        if mend is None and what == "option":
            mend = "there are no options here; write the value itself"
        message = f"no {what} is called {show(name)}"
        return fault(code, message, mend, offset=offset, length=len(name))


def as_table(value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of lists of whole numbers as tuples.

    Raises:
        ValueError: when it is something else; the message is the value as a reader may see it.
    """
    is_rows = isinstance(value, (list, tuple)) and all(isinstance(r, (list, tuple)) for r in value)
    if not is_rows or not all(type(n) is int and 0 <= n <= MAX_SIZE for r in value for n in r):
        raise ValueError(show(value))
    return tuple(tuple(row) for row in value)


def config_fault(error: ValidationError, value: Mapping[str, Any]) -> PydanticCustomError:
    """The first fault of a `{config: ...}`, as one that carries its place within the mapping."""
    known = ("config", "default", "map")
    what = error.errors()[0]
    key = str(what["loc"][0]) if what["loc"] else ""
    context = what.get("ctx", {})
    match what["type"]:
        case "missing":
            extra = next((k for k in value if k not in known), None)
            mend = "write `{config: path.in.config, default: ...}`"
            message = "`config` is missing: a mapping here says where config.json has the value"
            return fault("VS102", message, mend if extra is None else f"{mend}, not `{extra}:`")
        case "extra_forbidden":
            mend = near_or_list(key, known, "known here")
            return fault("VS101", f"unknown key {show(key)}", mend, path=(key,), key=True)
        case "vlmspec":
            return fault(context["code"], context["message"], context.get("help"), path=(key,))
        case _:
            mend = "`config` is a path or a list of paths, `default` one value, `map` a mapping"
            return fault("VS103", f"`{key}` cannot be {show(value.get(key))}", mend, path=(key,))


def _same(definition: Any, value: Mapping[str, Any]) -> bool:
    try:
        return definition == FromConfig.model_validate(value)
    except ValidationError:
        return False


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[a-z_][a-z0-9_.]*", text) is not None


def _find_word(text: str, word: str) -> int:
    found = re.search(rf"(?<![\w.]){re.escape(word)}(?![\w.])", text)
    return found.start() if found else 0


def lookup(data: Any, path: str) -> Any:
    """Value at a dotted path of nested mappings and lists, or MISSING."""
    for part in path.split("."):
        if isinstance(data, list) and part.isdigit() and int(part) < len(data):
            data = data[int(part)]
        elif isinstance(data, Mapping) and part in data:
            data = data[part]
        else:
            return MISSING
    return data
