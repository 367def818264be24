"""Where every size and option of a spec gets its value.

In order: `--set`; the checkpoint's config.json; without a checkpoint, the chosen variant; what the
    spec gives its component;
the part's default. Sizes stay names in the program, with these values beside them; options are
values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_core import PydanticCustomError

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import ConfigKey
from vlmspec.diagnostics.model import Diagnostics, Label, Span
from vlmspec.diagnostics.text import quote
from vlmspec.dsl.faults import show
from vlmspec.dsl.schema import FromConfig

INPUT_SIZES = frozenset({"batch", "tokens", "keys", "images"})
MAX_SIZE = 2**31
MISSING = object()


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the caller sets: values by `component.name`, a config.json, and a variant's values.

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
            is_list = isinstance(setting.default, tuple)
            if isinstance(value, (list, tuple)) and (many or is_list):
                value = tuple(value)
            elif isinstance(value, (list, tuple, dict)):
                self._refuse(setting, "VS308", f"option `{name}` is {show(value)}, not one value")
                value = None if isinstance(setting.default, (list, dict)) else setting.default
            self.options[name] = ConfigKey(
                name, setting.paths, value, setting.default, setting.map, setting.span
            )
        return self.options[name].value

    def spell_out(self, pattern: tuple[str, ...], layers: tuple[str, ...]) -> None:
        """Note which layers an option's pattern means, as a config.json lists them."""
        for name, key in self.options.items():
            if key.value == pattern:
                default = layers if key.default == pattern else key.default
                self.options[name] = replace(key, value=layers, default=default)

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
        default: tuple[tuple[int, ...], ...] = ()
        value = default
        try:
            default = as_table(setting.default)
            value = default if given is MISSING else as_table(given)
        except ValueError as error:
            message = f"`{name}` is {error}, not rows of whole numbers"
            mend = (
                "a size is one number; a table is a list of lists, as in `[[336, 672], [672, 336]]`"
            )
            self._refuse(setting, "VS308", message, mend)
            return self._settle(name, 1)
        self.keys[name] = ConfigKey(name, setting.paths, value, default, span=setting.span)
        self.expressions[name] = Dim.sym(name)
        return self.expressions[name]

    def _foreign(self, name: str) -> Dim | None:
        """The definition of a size that follows from other components' sizes; it stands for the
        size everywhere."""
        owner = name.rpartition(".")[0]
        if all(n.rpartition(".")[0] == owner for n in self.derived[name].symbols()):
            return None
        self.expressions[name] = self.derived.pop(name)
        return self.expressions[name]

    def _is_fraction(self, default: Any) -> bool | None:
        """Whether a size with this default is a real number; None where that cannot be told."""
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
            from vlmspec.compiler.scope import Scope

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
            if isinstance(found, list) and not setting.option and len(set(map(repr, found))) == 1:
                # A size along each axis, as [448, 448]; not a table, whose rows are lists.
                found = found if isinstance(found[0], list) else found[0]
            self.origins[name] = (self.overrides.config_span, path, "given here")
            return self._mapped(setting, found, path)
        return MISSING

    def _mapped(self, setting: Setting, found: Any, path: str) -> Any:
        table = setting.map
        if table is None:
            return found
        if isinstance(found, list):
            return [self._mapped(setting, entry, path) for entry in found]
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


def as_table(value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of lists of whole numbers as tuples.

    Raises:
        ValueError: when it is something else; the message is the value as a reader may see it.
    """
    is_rows = isinstance(value, (list, tuple)) and all(isinstance(r, (list, tuple)) for r in value)
    if not is_rows or not all(type(n) is int and 0 <= n <= MAX_SIZE for r in value for n in r):
        raise ValueError(show(value))
    return tuple(tuple(row) for row in value)


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
