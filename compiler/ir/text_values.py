"""Values of attributes in the text form, written and read by the types of their fields.

A field of one type has plain values: `width=vision.hidden_size`, `eps=1e-05`, `kind="silu"`,
`sizes=[a, b]`. Where the field may hold anything, constant dimensions, scalars and lists say what
they are: `Dim(5)`, `Scalar(1.0)`, `list[1, 2]`.
"""

import json
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.text_cursor import Cursor
from vlmspec.compiler.ir.types import Scalar

Sizes = Mapping[str, int | float]
MAX_DEPTH = 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:[.-][A-Za-z0-9_]+)*", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?(?![A-Za-z0-9_.])", re.ASCII)
_CONSTANTS = {"None": None, "True": True, "False": False}
_DONE = re.compile(r"\s*([,\]})]|$)")


# ------------------------------------------------------------------------------------------- fields


@cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(cls)


def compared(cls: type, skip: Iterable[str] = ()) -> list[Field[Any]]:
    """The fields that make two values of a class equal, without the named ones."""
    return [f for f in fields(cls) if f.compare and f.name not in skip]


def _narrow(kind: Any) -> Any:
    """The one type that a field's values have beside None; Any where there are several."""
    if get_origin(kind) in (Union, types.UnionType):
        found = [k for k in get_args(kind) if k is not type(None)]
        return found[0] if len(found) == 1 else Any
    return kind


def _element(kind: Any, index: int) -> Any:
    """The type of the element at `index` of a tuple type."""
    inside = get_args(kind)
    if len(inside) == 2 and inside[1] is Ellipsis:
        return inside[0]
    return inside[index] if index < len(inside) else Any


# ------------------------------------------------------------------------------------------ writing


def write_name(name: str) -> str:
    """A name as such, or in quotes where it would not read as one."""
    return name if _NAME.fullmatch(name) else json.dumps(name)


def write_number(value: int | float) -> str:
    """A number that reads back as the same one, of the same type."""
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise ValueError("the text form has no NaN")
        return "1e999" if value > 0 else "-1e999"
    return repr(value)


def write_fields(value: Any, sizes: Sizes, skip: Iterable[str] = ()) -> str:
    """The fields of a dataclass that differ from their defaults, as ` {a=1, b=2}`, or nothing."""
    cls = type(value)
    written = [
        f"{f.name}={write(getattr(value, f.name), hints(cls)[f.name], sizes)}"
        for f in compared(cls, skip)
        if not _is_default(f, getattr(value, f.name))
    ]
    return f" {{{', '.join(written)}}}" if written else ""


def _is_default(field: Field[Any], value: Any) -> bool:
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return default is not MISSING and type(value) is type(default) and value == default


def write(value: Any, kind: Any, sizes: Sizes) -> str:
    """A value of a field of type `kind`."""
    kind = _narrow(kind)
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, Dim):
        return str(value) if kind is Dim or not value.is_const else f"Dim({value})"
    if isinstance(value, Scalar):
        text = _write_scalar(value, sizes)
        return text if kind is Scalar else f"Scalar({text})"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return write_number(value)
    if isinstance(value, (tuple, list)):
        inside = ", ".join(write(v, _element(kind, i), sizes) for i, v in enumerate(value))
        return ("list" if isinstance(value, list) else "") + f"[{inside}]"
    if isinstance(value, Mapping):
        return (
            f"{{{', '.join(f'{json.dumps(k)}: {write(v, Any, sizes)}' for k, v in value.items())}}}"
        )
    if is_dataclass(value) and kind is type(value):
        return write_fields(value, sizes).strip() or "{}"
    raise TypeError(f"the text form has no values of {type(value).__name__} in a field of {kind}")


def _write_scalar(value: Scalar, sizes: Sizes) -> str:
    """A number, or the name of a size; with its value where the table of sizes does not give it."""
    if value.name is None:
        return write_number(value.value)
    known = sizes.get(value.name)
    if known is not None and isinstance(value.value, float) and float(known) == value.value:
        return value.name
    return f"{value.name}({write_number(value.value)})"


# ------------------------------------------------------------------------------------------ reading


def read_name(cursor: Cursor, what: str) -> str:
    """A name, plain or in quotes."""
    if cursor.peek('"'):
        return read_string(cursor)
    return cursor.match(_NAME, what).group()


def read_string(cursor: Cursor) -> str:
    """A string in double quotes."""
    start = cursor.skip()
    if not cursor.peek('"'):
        raise cursor.error('expected a string in `"`')
    try:
        value, end = json.JSONDecoder().raw_decode(cursor.text, start)
    except (ValueError, RecursionError):
        raise cursor.error("this string does not end, or has a bad escape") from None
    cursor.position = end
    return value


def read_number(cursor: Cursor) -> int | float:
    """An integer, or a number with a point or an exponent."""
    start = cursor.skip()
    found = cursor.match(_NUMBER, "a number")
    try:
        return float(found.group()) if found.group(1) or found.group(2) else int(found.group())
    except ValueError:
        raise cursor.error("this integer is too long", start) from None


def read_dim(cursor: Cursor) -> Dim:
    """An expression in sizes, up to the bracket or comma that ends it."""
    start = cursor.skip()
    text = cursor.until_delimiter()
    try:
        return Dim.of(text.rstrip())
    except (ValueError, RecursionError) as error:
        offset = getattr(error, "offset", 0)
        raise cursor.error(str(error), start + offset) from None


def read_fields(
    cursor: Cursor, cls: type, sizes: Sizes, given: Mapping[str, Any] | None = None
) -> Any:
    """A dataclass from `{a=1, b=2}`; `given` are the fields that stand elsewhere."""
    start = cursor.skip()
    known = {f.name: f for f in compared(cls, given or ())}
    values = dict(given or {})
    if cursor.take("{") and not cursor.take("}"):
        while True:
            _read_field(cursor, cls, known, values, sizes)
            if cursor.take("}"):
                break
            cursor.expect(",")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise cursor.error(f"`{name}` is missing", start)
    return cls(**values)


def _read_field(cursor: Cursor, cls: type, known, values: dict[str, Any], sizes: Sizes) -> None:
    start = cursor.skip()
    name = read_name(cursor, "the name of an attribute")
    if name not in known:
        listed = ", ".join(f"`{k}`" for k in known) or "none"
        raise cursor.error(f"no attribute is called `{name}`; there are {listed}", start)
    if name in values:
        raise cursor.error(f"`{name}` is given twice", start)
    cursor.expect("=")
    values[name] = read(cursor, hints(cls)[name], sizes)


def read(cursor: Cursor, kind: Any, sizes: Sizes, depth: int = 0) -> Any:
    """A value of a field of type `kind`."""
    start = cursor.skip()
    if depth > MAX_DEPTH:
        raise cursor.error("values nest too deeply")
    narrow = _narrow(kind)
    for word, constant in _CONSTANTS.items():
        if cursor.word(word):
            if not _allows(kind, constant):
                raise cursor.error(f"`{word}` is not allowed here", start)
            return constant
    if narrow is Any:
        return _read_any(cursor, sizes, depth)
    origin = get_origin(narrow) or narrow
    if origin is tuple:
        return tuple(_read_items(cursor, lambda i: _element(narrow, i), sizes, depth))
    if origin is Mapping or origin is dict:
        return _read_map(cursor, sizes, depth)
    if isinstance(narrow, type) and is_dataclass(narrow) and narrow is not Scalar:
        if not cursor.peek("{"):
            raise cursor.error("expected attributes in braces")
        return read_fields(cursor, narrow, sizes)
    reader = _PLAIN.get(str if origin is Literal else narrow)
    if reader is None:
        raise cursor.error("this attribute has no text form")
    return reader(cursor, sizes)


def _allows(kind: Any, constant: Any) -> bool:
    """Whether a field's type includes None, or the booleans."""
    inside = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return Any in inside or type(constant) in inside


def _read_any(cursor: Cursor, sizes: Sizes, depth: int) -> Any:
    """A value that says itself what it is."""
    if cursor.peek('"'):
        return read_string(cursor)
    if cursor.peek("{"):
        return _read_map(cursor, sizes, depth)
    if cursor.peek("[") or cursor.peek("list["):
        listed = cursor.take("list")
        found = _read_items(cursor, lambda _: Any, sizes, depth)
        return found if listed else tuple(found)
    if cursor.take("Dim("):
        return cursor.closed(read_dim(cursor), ")")
    if cursor.take("Scalar("):
        return cursor.closed(_read_scalar(cursor, sizes), ")")
    number = _NUMBER.match(cursor.text, cursor.skip())
    if number and _DONE.match(cursor.text, number.end()):
        return read_number(cursor)
    return read_dim(cursor)


def _read_items(cursor: Cursor, kind_of: Callable[[int], Any], sizes: Sizes, depth: int) -> list:
    """Values in square brackets."""
    cursor.expect("[")
    found: list[Any] = []
    if cursor.take("]"):
        return found
    while True:
        found.append(read(cursor, kind_of(len(found)), sizes, depth + 1))
        if cursor.take("]"):
            return found
        cursor.expect(",")


def _read_map(cursor: Cursor, sizes: Sizes, depth: int) -> dict[str, Any]:
    """A mapping of strings to values that say what they are."""
    cursor.expect("{")
    found: dict[str, Any] = {}
    if cursor.take("}"):
        return found
    while True:
        key = read_string(cursor)
        cursor.expect(":")
        found[key] = read(cursor, Any, sizes, depth + 1)
        if cursor.take("}"):
            return found
        cursor.expect(",")


def _read_scalar(cursor: Cursor, sizes: Sizes) -> Scalar:
    start = cursor.skip()
    if _NUMBER.match(cursor.text, start):
        return Scalar(read_number(cursor))
    name = cursor.match(_NAME, "a number or the name of a size").group()
    if cursor.take("("):
        return Scalar(cursor.closed(read_number(cursor), ")"), name)
    if name not in sizes:
        raise cursor.error(f"the size `{name}` has no value; write `{name}(1.0)`", start)
    return Scalar(float(sizes[name]), name)


def _read_bool(cursor: Cursor, sizes: Sizes) -> Any:
    raise cursor.error("expected True or False")


def _read_int(cursor: Cursor, sizes: Sizes) -> int:
    start = cursor.skip()
    value = read_number(cursor)
    if not isinstance(value, int):
        raise cursor.error("expected an integer", start)
    return value


_PLAIN: dict[Any, Callable[[Cursor, Sizes], Any]] = {
    Dim: lambda cursor, sizes: read_dim(cursor),
    Scalar: _read_scalar,
    str: lambda cursor, sizes: read_string(cursor),
    bool: _read_bool,
    int: _read_int,
    float: lambda cursor, sizes: read_number(cursor),
}
