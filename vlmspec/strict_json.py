"""JSON as strangers write it: parsed within limits, every fault with its place."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from vlmspec.diagnostics.model import Diagnostics, Label, Source, SpecError
from vlmspec.diagnostics.text import quote

MAX_DEPTH = 32

# Strings with what follows a key, brackets, numbers and words. An unfinished string takes the rest
# of the text, so that matching stays linear.
_TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.?)*+(?:"|\Z))(?P<colon>\s*:)?'
    r"|(?P<bracket>[\[\]{},])|(?P<number>-?[0-9][0-9.eE+-]*)|(?P<word>-?[A-Za-z]+)",
    re.DOTALL,
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Item(NamedTuple):
    """A key, or a value that is no object or array, with its place.

    Attributes:
        path: keys and indices that lead to it.
        kind: `key`, `string`, `number` or `word`.
        start: offset of its first character.
        end: offset after its last character.
    """

    path: tuple[str | int, ...]
    kind: str
    start: int
    end: int


def parse(source: Source, max_depth: int | None = MAX_DEPTH) -> Any:
    """Parse JSON text.

    Args:
        source: the text.
        max_depth: how deep it may be nested; None leaves it to the parser, for large texts.

    Raises:
        SpecError: VS402 for what is not JSON, VS403 for keys that occur twice, VS404 for a text
            that is nested too deep.
    """
    text = source.text
    if max_depth is not None and text.count("[") + text.count("{") > max_depth:
        _check_depth(source, max_depth)
    repeated = False

    def join(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        table = dict(pairs)
        repeated = repeated or len(table) < len(pairs)
        return table

    try:
        value = json.loads(text, object_pairs_hook=join)
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}"
        raise _failure("VS402", message, source, error.pos, error.pos + 1) from None
    except RecursionError:
        raise _failure("VS404", "nested too deep", source, 0, 1) from None
    except ValueError:
        match = re.search(r"[0-9]{4000,}", text)
        start, end = match.span() if match else (0, 0)
        raise _failure("VS402", "a number has too many digits", source, start, end) from None
    if repeated or re.search(r"NaN|Infinity|[0-9][eE]|\\u[dD]|[0-9]{300}", text):
        _check_items(source)
    return value


def items(text: str) -> Iterator[Item]:
    """Walk over the keys and plain values of a JSON text that was parsed before."""
    path: list[str | int] = []
    kinds: list[str] = []
    for match in _TOKEN.finditer(text):
        group = "string" if match["colon"] is not None else match.lastgroup or 0
        start, end = match.span(group)
        if (mark := match["bracket"]) is not None:
            _step(mark, path, kinds)
        elif match["colon"] is not None:
            path[-1] = _decode(match["string"])
            yield Item(tuple(path), "key", start, end)
        else:
            yield Item(tuple(path), match.lastgroup or "", start, end)


def _step(mark: str, path: list[str | int], kinds: list[str]) -> None:
    """Follow a bracket or comma to the path of the next value."""
    if mark in "[{":
        kinds.append(mark)
        path.append(0 if mark == "[" else "")
    elif mark in "]}" and kinds:
        kinds.pop()
        path.pop()
    elif kinds and kinds[-1] == "[" and isinstance(path[-1], int):
        path[-1] += 1


def _decode(literal: str) -> str:
    if "\\" not in literal:
        return literal[1:-1]
    return str(json.loads(literal, strict=False))


def _check_depth(source: Source, max_depth: int) -> None:
    depth = 0
    for match in _TOKEN.finditer(source.text):
        mark = match["bracket"]
        if mark is not None and mark in "[{":
            depth += 1
            if depth > max_depth:
                message = f"nested more than {max_depth} deep"
                raise _failure("VS404", message, source, match.start(), match.end())
        elif mark is not None and mark in "]}":
            depth -= 1


def _check_items(source: Source) -> None:
    found = Diagnostics()
    text = source.text
    keys: dict[tuple[str | int, ...], Item] = {}
    for item in items(text):
        literal, span = text[item.start : item.end], source.span(item.start, item.end)
        if item.kind in ("key", "string") and _lone_surrogate(literal):
            found.error("VS402", "a string holds half a surrogate pair", span)
        elif item.kind == "key" and item.path in keys:
            first = keys[item.path]
            label = Label(source.span(first.start, first.end), "first given here")
            message = f"the key {quote(str(item.path[-1]))} occurs twice"
            found.error("VS403", message, span, "again here", secondary=[label])
        elif item.kind == "key":
            keys[item.path] = item
        elif item.kind == "word" and literal not in ("true", "false", "null"):
            found.error("VS402", f"not JSON: {quote(literal)}", span, "not a number of JSON")
        elif item.kind == "number" and _overflows(literal):
            found.error("VS402", f"the number {quote(literal)} is too large", span)
    found.raise_if_errors()


def _overflows(literal: str) -> bool:
    try:
        return math.isinf(float(literal))
    except ValueError:
        return True


def _lone_surrogate(literal: str) -> bool:
    if not _SURROGATE.search(literal):
        return False
    try:
        _decode(literal).encode()
    except UnicodeEncodeError:
        return True
    return False


def _failure(code: str, message: str, source: Source, start: int, end: int) -> SpecError:
    found = Diagnostics()
    found.error(code, message, source.span(start, end))
    return SpecError(found)
