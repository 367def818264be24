"""The steps and ops of the language as documentation, read from their records."""

import textwrap
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar
from vlmspec.compiler.ops import OPS, STEPS
from vlmspec.compiler.ops.registry import Op, StepKind

REQUIRED, NOT_SET = "required", "not set"


def describe_step(step: StepKind) -> dict[str, Any]:
    """One word of the language: its arguments, its weights, and where it may stand."""
    return {
        "name": step.name,
        "what": "step",
        "doc": step.doc,
        "shorthand": step.shorthand,
        "arguments": [argument for name, argument in _arguments(step.args)],
        "weights": dict(step.roles),
        "component": list(step.component),
        "body": "body" in step.args.model_fields,
        "flow": step.flow,
    }


def describe_op(op: Op) -> dict[str, Any]:
    """One operation of the IR."""
    return {
        "name": op.name,
        "what": "op",
        "doc": op.doc,
        "module": op.module_kind,
        "results": list(op.results),
        "optional": sorted(op.joins),
        "counted": op.flops is not None,
    }


def vocabulary() -> dict[str, list[dict[str, Any]]]:
    """All steps and ops, each by name."""
    return {
        "steps": [describe_step(STEPS[name]) for name in sorted(STEPS)],
        "ops": [describe_op(OPS[name]) for name in sorted(OPS)],
    }


def find(name: str) -> list[dict[str, Any]]:
    """The step and the op of that name; empty if there is neither."""
    found = [describe_step(STEPS[name])] if name in STEPS else []
    return found + ([describe_op(OPS[name])] if name in OPS else [])


def _arguments(model: type[BaseModel], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Fields of a model; those of a nested mapping follow it, as `rope.theta`."""
    found = []
    for name, field in model.model_fields.items():
        full = prefix + name
        entry = {
            "name": full,
            "type": type_text(field.annotation, field.metadata),
            "default": _default(field),
            "doc": field.description or "",
        }
        found.append((full, entry))
        for inner in _models(field.annotation):
            found += _arguments(inner, f"{full}.")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def type_text(annotation: Any, metadata: Any = ()) -> str:
    """An annotation in the words of a spec's author."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(part) for part in inner if part is not type(None))
    if origin in (tuple, list):
        item = type_text(inner[0]) if inner else "value"
        return "list of steps" if item == "value" else f"list of {item}s"
    if origin is dict:
        return f"mapping of names to {type_text(inner[1])}s"
    names = {Dim: "size", Scalar: "number", bool: "true or false", str: "text", int: "integer"}
    if annotation in names:
        return names[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return "value" if annotation is Any else getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True)
    match value:
        case None:
            return NOT_SET
        case bool():
            return str(value).lower()
        case Scalar() | Dim():
            return str(value)
        case str():
            return value
        case tuple() | list() | dict():
            return "empty" if not value else str(value)
        case _:
            return str(value)


def text_of(entry: dict[str, Any]) -> str:
    """One entry as plain text."""
    lines = [f"{entry['name']} ({entry['what']})", *_wrapped(entry["doc"])]
    arguments = [{**a, "type": a["type"].replace("`", "")} for a in entry.get("arguments") or ()]
    if arguments:
        lines += ["", "arguments"]
        widths = [max(len(a[key]) for a in arguments) for key in ("name", "type")]
        for a in arguments:
            plain = a["default"] in (REQUIRED, NOT_SET)
            given = a["default"] if plain else f"default {a['default']}"
            row = f"  {a['name']:<{widths[0]}}  {a['type']:<{widths[1]}}  {given}"
            lines.append(f"{row}  {a['doc']}".rstrip())
    facts = [line for fact in _facts(entry) for line in _wrapped(fact)]
    return "\n".join([*lines, "", *facts]).replace("`", "").rstrip()


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="  ")


def _facts(entry: dict[str, Any]) -> list[str]:
    """What else there is to say of a step or an op, one sentence a line."""
    if entry["what"] == "op":
        module = [f"State: a `{entry['module']}`."] if entry["module"] else []
        results = [f"Results: {', '.join(f'`{r}`' for r in entry['results'])}."]
        optional = [f"`{name}` may be absent." for name in entry["optional"]]
        counted = ["Its operations are counted."] if entry["counted"] else []
        return module + (results if entry["results"] else []) + optional + counted
    lines = []
    if entry["shorthand"] and entry["shorthand"] != "body":
        lines.append(f"`{entry['name']}: value` sets `{entry['shorthand']}`.")
    if entry["weights"]:
        named = [
            f"`{role}` at `{name}`" if name else f"`{role}`"
            for role, name in entry["weights"].items()
        ]
        lines.append(f"Weights, by role and default place: {', '.join(named)}.")
    if entry["component"]:
        places = ", ".join(f"`{kind}: {entry['name']}`" for kind in entry["component"])
        lines.append(f"May be a component of its own: {places}.")
    if entry["flow"]:
        lines.append("Takes its operands by role: `from: {text: ..., image: ...}`.")
    return lines


def page() -> str:
    """Everything as the page `docs/ops.md`."""
    found = vocabulary()
    lines = [
        "# Steps and ops",
        "",
        "A *step* is a word of a body; an *op* is what the program is made of.",
        "A *size* is an integer or an expression in the names of sizes;",
        "a *number* is a literal or the name of a size. `vlmspec ops NAME` prints one entry.",
        "",
        "This page is generated: `vlmspec ops --markdown > docs/ops.md`.",
        "",
        "## Steps",
    ]
    for entry in found["steps"]:
        lines += ["", f"### {entry['name']}", "", entry["doc"]]
        if entry["arguments"]:
            lines += ["", *_table(entry["arguments"])]
        facts = _facts(entry)
        lines += ["", *facts] if facts else []
    lines += ["", "## Ops", "", "| op | meaning | state | results |", "| --- | --- | --- | --- |"]
    for entry in found["ops"]:
        results = ", ".join(f"`{r}`" for r in entry["results"])
        state = f"`{entry['module']}`" if entry["module"] else ""
        lines.append(f"| `{entry['name']}` | {_cell(entry['doc'])} | {state} | {results} |")
    return "\n".join(lines) + "\n"


def _table(arguments: list[dict[str, Any]]) -> list[str]:
    documented = any(a["doc"] for a in arguments)
    heads = ["argument", "type", "default", *(["meaning"] if documented else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for a in arguments:
        default = a["default"] if a["default"] in (REQUIRED, NOT_SET) else f"`{a['default']}`"
        cells = [f"`{a['name']}`", a["type"], default, *([a["doc"]] if documented else [])]
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
