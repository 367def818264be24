"""What names mean in the arguments of one component: sizes, options, and `{config: ...}`."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.expression import ExpressionError, parse_expression
from vlmspec.compiler.ir.types import Scalar, Table
from vlmspec.compiler.settings import INPUT_SIZES, MAX_SIZE, Setting, Settings, as_table
from vlmspec.diagnostics.model import Label, Span
from vlmspec.dsl.faults import near_or_list, show
from vlmspec.dsl.schema import FromConfig, fault


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
                if known[value] not in self.settings.sizes:
                    raise fault("VS103", f"{show(value)} is a table, not a number")
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
