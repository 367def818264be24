"""Pictures of an architecture: inputs, components, outputs, and the shapes between them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMATS = ("svg", "mermaid", "dot", "json")


@dataclass(frozen=True, slots=True)
class Box:
    """An input, a component or an output; `kind` is `input`, `output`, or the component's kind."""

    id: str
    kind: str
    title: str
    detail: str
    column: int


@dataclass(frozen=True, slots=True)
class Arrow:
    """What one box gives to another."""

    source: str
    target: str
    shape: str
    role: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """Boxes in columns from left to right, and the arrows between them."""

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def picture(data: Mapping[str, Any]) -> Picture:
    """Arrange what `api.show` found; a box stands one column after the last that it reads."""
    components = {entry["name"]: entry for entry in data["components"]}
    shapes = {name: entry["shape"] for name, entry in data["inputs"].items()}
    shapes |= {name: entry["output"] or "" for name, entry in components.items()}
    columns = _columns(data["inputs"], components)
    boxes = [
        Box(f"in_{name}", "input", name, entry["kind"], 0) for name, entry in data["inputs"].items()
    ]
    ids = {name: f"in_{name}" for name in data["inputs"]} | {name: name for name in components}
    arrows: list[Arrow] = []
    for name, entry in components.items():
        boxes.append(Box(name, entry["kind"], name, entry["op"], columns[name]))
        for role, source in entry["reads"].items():
            label = "" if role == "x" else role
            arrows.append(Arrow(ids[source], name, shapes[source], label))
    last = max(columns.values(), default=0) + 1
    for name, source in data["outputs"].items():
        boxes.append(Box(f"out_{name}", "output", name, "output", last))
        arrows.append(Arrow(ids[source], f"out_{name}", shapes[source]))
    return Picture(data.get("title") or data["name"], tuple(boxes), tuple(arrows))


def _columns(inputs: Mapping[str, Any], components: Mapping[str, Any]) -> dict[str, int]:
    columns = dict.fromkeys(inputs, 0)
    waiting = dict(components)
    while waiting:
        ready = [n for n, c in waiting.items() if all(s in columns for s in c["reads"].values())]
        for name in ready or waiting:
            sources = waiting[name]["reads"].values()
            columns[name] = 1 + max((columns.get(source, 0) for source in sources), default=0)
        waiting = {name: c for name, c in waiting.items() if name not in columns}
    return columns


def draw(data: Mapping[str, Any], format: str) -> str:
    """Write the picture of what `api.show` found.

    Args:
        format: one of `FORMATS`.
    """
    found = picture(data)
    match format:
        case "mermaid":
            return mermaid(found)
        case "dot":
            return dot(found)
        case "json":
            return as_json(found)
        case _:
            from vlmspec.report.svg import svg

            return svg(found)


def mermaid(found: Picture) -> str:
    """Write a Mermaid flowchart."""
    lines = ["flowchart LR"]
    for box in found.boxes:
        left, right = ("([", "])") if box.kind in ("input", "output") else ("[", "]")
        title = _entities(box.title)
        lines.append(f'  {box.id}{left}"{title}<br><small>{_entities(box.detail)}</small>"{right}')
    for arrow in found.arrows:
        label = _entities(" ".join(filter(None, [arrow.role, arrow.shape])))
        lines.append(f'  {arrow.source} -- "{label}" --> {arrow.target}')
    return "\n".join(lines) + "\n"


def dot(found: Picture) -> str:
    """Write a Graphviz digraph."""
    lines = [f"digraph {_quoted(found.title)} {{", "  rankdir=LR;", "  node [shape=box];"]
    for box in found.boxes:
        shape = " shape=oval" if box.kind in ("input", "output") else ""
        lines.append(f"  {box.id} [label={_quoted(box.title, box.detail)}{shape}];")
    for arrow in found.arrows:
        label = _quoted(" ".join(filter(None, [arrow.role, arrow.shape])))
        lines.append(f"  {arrow.source} -> {arrow.target} [label={label}];")
    return "\n".join([*lines, "}"]) + "\n"


def as_json(found: Picture) -> str:
    """Write boxes and arrows as data."""
    boxes = [
        {"id": b.id, "kind": b.kind, "title": b.title, "detail": b.detail, "column": b.column}
        for b in found.boxes
    ]
    arrows = [
        {"source": a.source, "target": a.target, "role": a.role, "shape": a.shape}
        for a in found.arrows
    ]
    return json.dumps({"title": found.title, "boxes": boxes, "arrows": arrows}, indent=2) + "\n"


def _quoted(*lines: str) -> str:
    escaped = (line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'


def _entities(text: str) -> str:
    """Text that may stand between quotes in Mermaid."""
    return (
        text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
    )
