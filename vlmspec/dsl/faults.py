"""What pydantic finds wrong with a document, in the language's own words and with places."""

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from vlmspec.diagnostics.model import Diagnostics, Label, Span, suggest
from vlmspec.diagnostics.text import quote
from vlmspec.dsl.yaml_nodes import ListNode, MapNode, Node, locate

Path = tuple[str | int, ...]
Origin = Callable[[Path], Label | None]

# What a value had to be, by the kind of pydantic's complaint.
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "`true` or `false`",
    "bool_parsing": "`true` or `false`",
    "none_required": "`null`",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def report(
    found: Diagnostics,
    error: ValidationError,
    node: Node,
    model: Any,
    at: Span | None = None,
    origin: Origin | None = None,
) -> None:
    """Turn pydantic's errors into diagnostics.

    Args:
        found: takes the diagnostics.
        error: what pydantic raised.
        node: the tree that was validated.
        model: the model that it was validated against.
        at: where a missing key is shown; at the mapping that lacks it if not given.
        origin: says where the value at a path was really given, if it was not there.
    """
    items = [(_resolved(node, item["loc"]), item) for item in error.errors(include_url=False)]
    mismatches: dict[Path, list[Any]] = {}
    for path, item in items:
        if item["type"] not in _EXPECTED:
            _report_one(found, item, path, node, model, at, origin)
        # Of a union, every member complains; the one that takes this kind of value is meant.
        elif not any(_below(path, other, i["type"]) for other, i in items):
            mismatches.setdefault(path, []).append(item)
    for path, several in mismatches.items():
        expected = _either(dict.fromkeys(_EXPECTED[item["type"]] for item in several))
        message = f"expected {expected}, not {show(several[0]['input'])}"
        _tell(found, "VS103", message, path, node, None, origin)


def _resolved(node: Node, loc: Path) -> Path:
    """The keys and indices of a `loc` that lead somewhere; the rest are names of union members."""
    path: list[str | int] = []
    for part in loc:
        if isinstance(node, MapNode) and str(part) in node.items:
            node = node.items[str(part)][1]
            path.append(part)
        elif isinstance(node, ListNode) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            path.append(part)
    return tuple(path)


def _below(path: Path, other: Path, kind: str) -> bool:
    if other[: len(path)] != path:
        return False
    return len(other) > len(path) or kind not in _EXPECTED


def _report_one(
    found: Diagnostics,
    item: Any,
    path: Path,
    node: Node,
    model: Any,
    at: Span | None,
    origin: Origin | None,
) -> None:
    loc = tuple(item["loc"])
    name = str(loc[-1]) if loc else ""
    context = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            known = list(known_keys(model, loc[:-1]))
            message, mend = f"unknown key {quote(name)}", near_or_list(name, known, "known here")
            found.error("VS101", message, locate(node, loc, key=True), help=mend)
        case "missing":
            place = at or locate(node, loc[:-1], key=True)
            found.error("VS102", f"`{name}` is missing", place, help=f"add `{name}: ...`")
        case "literal_error":
            code = "VS107" if name == "vlmspec" else "VS104"
            choices = _choices(context.get("expected", ""))
            message = f"{show(item['input'])} is not allowed here"
            mend = near_or_list(str(item["input"]), choices, "expected", "write")
            if code == "VS107":
                message = f"language version {show(item['input'])} is not known"
                mend = "this compiler reads version 1: write `vlmspec: 1`"
            _tell(found, code, message, path, node, mend, origin)
        case "string_pattern_mismatch":
            message = f"{show(item['input'])} is not a name"
            mend = "a name starts with a small letter and has small letters, digits and single `_`"
            span = locate(node, loc, key=loc[-1] == "[key]")
            found.error("VS105", message, span, help=mend)
        case "string_too_long" | "string_too_short" | "too_short" | "too_long":
            message = _length_message(item["type"], context)
            span = locate(node, loc, key=bool(loc) and loc[-1] == "[key]")
            found.error("VS104", message, span)
        case "vlmspec":
            _report_own(found, item, path, node, origin)
        case _:
            message = f"{show(item['input'])}: {item['msg'][:1].lower()}{item['msg'][1:]}"
            _tell(found, "VS103", message, path, node, None, origin)


def _report_own(
    found: Diagnostics, item: Any, path: Path, node: Node, origin: Origin | None
) -> None:
    """A fault that our own validators raised: it brings its code, and where in the text it is."""
    context, loc = item["ctx"], (*item["loc"], *item["ctx"]["path"])
    key = context["key"] or (bool(loc) and loc[-1] == "[key]")
    elsewhere = origin(path) if origin else None
    place = elsewhere.span if elsewhere else locate(node, loc, key=key)
    offset = context.get("offset")
    given = item["input"]
    if offset is not None and isinstance(given, str) and given in place.text:
        start = place.start + place.text.index(given) + offset
        length = max(context.get("length") or 1, 1)
        start = min(start, place.end)
        place = place.source.span(start, min(start + length, place.end))
    second = [Label(locate(node, path), "used here")] if elsewhere else []
    code, message = context["code"], context["message"]
    found.error(code, message, place, help=context.get("help"), secondary=second)


def _tell(
    found: Diagnostics,
    code: str,
    message: str,
    path: Path,
    node: Node,
    mend: str | None,
    origin: Origin | None,
) -> None:
    """Report at the value itself, or where it was really given."""
    place = locate(node, path)
    elsewhere = origin(path) if origin else None
    if elsewhere is None:
        found.error(code, message, place, help=mend)
    else:
        used = [Label(place, "used here")]
        found.error(code, message, elsewhere.span, elsewhere.text, mend, secondary=used)


def near_or_list(
    name: str, known: Iterable[str], title: str, verb: str = "did you mean"
) -> str | None:
    """The mend for a name that is not known: the nearest one, or all that there are."""
    known = list(known)
    if near := suggest(name, known):
        rest = [k for k in known if k != near]
        mark = "?" if verb == "did you mean" else ""
        more = f"; {title}: {', '.join(f'`{k}`' for k in known)}"
        return f"{verb} `{near}`{mark}" + (more if rest and verb == "write" else "")
    return f"{title}: {', '.join(f'`{k}`' for k in known)}" if known else None


def _length_message(kind: str, context: Any) -> str:
    match kind:
        case "string_too_long":
            return f"the text is too long; at most {context['max_length']} characters are allowed"
        case "string_too_short":
            return "the text is empty"
        case "too_short":
            return f"at least {context['min_length']} entry is needed"
        case _:
            return f"at most {context['max_length']} entries are allowed"


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def known_keys(model: Any, loc: Path) -> Iterable[str]:
    """Names of the fields of the model that `loc` leads to."""
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        model = _inner_model(field.annotation) if field else _inner_model(model)
    fields = getattr(model, "model_fields", {})
    return [field.alias or key for key, field in fields.items()]


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_inner_model(a) for a in getattr(annotation, "__args__", ())]
    return next((m for m in found if m is not None), None)


def _choices(expected: str) -> list[str]:
    return [word.strip("'\" ") for word in expected.replace(" or ", ", ").split(",")]


def show(value: Any) -> str:
    """A value as the document spells it, short enough for a message."""
    match value:
        case None:
            return "`null`"
        case bool():
            return f"`{str(value).lower()}`"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return quote(str(value))
