"""Tables and trees as plain text: fitted to a terminal, whole in a pipe."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from vlmspec.commands.session import Session

_GAP = 2
# A column is not narrowed further than this, however little room there is.
_NARROWEST = 8
_BRANCHES = {True: ("\u251c\u2500 ", "\u2514\u2500 ", "\u2502  "), False: ("|- ", "`- ", "|  ")}
_SCALE = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def draw_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], session: Session, right: Iterable[int] = ()
) -> str:
    """Draw rows under bold heads.

    Args:
        heads: one a column; an empty one for a column that needs none.
        rows: cells, which may be styled.
        session: decides about colours.
        right: the columns that are set flush right.
    """
    cells = [[head.upper() for head in heads], *map(list, rows)]
    lines = list(_lines(cells, _room(), set(right)))
    return "\n".join([session.style(lines[0], bold=True), *lines[1:]])


def draw_architecture(data: dict[str, Any], session: Session) -> str:
    """Draw what `api.show` found: a tree of components, their shapes, visual tokens and sizes."""
    title = " ".join(filter(None, [session.style(data["name"], bold=True), data.get("title")]))
    blocks = ["\n".join([title, *_summary(data)])]
    components = data.get("components") or ()
    if rows := list(_rows(components, session, session.verbosity > 0)):
        blocks.append(draw_table(["component", "op", "gives", "parameters"], rows, session, {3}))
    shapes = {name: entry["formula"] for name, entry in (data.get("inputs") or {}).items()}
    shapes |= {c["name"]: c["output_formula"] for c in components if c.get("output_formula")}
    tokens = {n: _tokens(entry) for n, entry in (data.get("visual_tokens") or {}).items()}
    sections = {"shapes": shapes, "visual tokens": tokens, "sizes": data.get("sizes")}
    for head, facts in sections.items():
        if facts:
            blocks.append("\n".join([session.style(head.upper(), bold=True), *_facts(facts)]))
    return "\n\n".join(blocks)


def _summary(data: dict[str, Any]) -> Iterator[str]:
    """A line of parameters, and one of what running costs."""
    if (total := data.get("total_parameters")) is not None:
        line = f"{short_number(total)} parameters ({total:,})"
        if modules := data.get("unused_modules"):
            names = ", ".join(entry["module"] for entry in modules)
            line += f", {short_number(data['unused_parameters'])} of them never read: {names}"
        yield from textwrap.wrap(line, _columns())
    tokens = [_value(entry) for entry in (data.get("visual_tokens") or {}).values()]
    parts = [f"{value:,} visual tokens" for value in tokens if value]
    cache = (data.get("kv_cache") or {}).get("bytes_per_token", {})
    if size := cache.get("bfloat16"):
        amount = f"{size / 1024:,.4g} KiB" if size >= 1024 else f"{size} bytes"
        parts.append(f"{amount} of cache a token in bfloat16")
    flops = data.get("flops") or {}
    if flops.get("total"):
        image = "an image and " if flops["inputs"]["images"] else ""
        text = flops["inputs"]["tokens"] - sum(value or 0 for value in tokens)
        parts.append(f"{short_number(flops['total'])} FLOPs to read {image}{text} tokens of text")
    yield from textwrap.wrap(", ".join(parts), _columns())


def _value(entry: Any) -> int | None:
    return entry.get("value") if isinstance(entry, dict) else entry


def _tokens(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    value = "not known" if entry.get("value") is None else entry["value"]
    text = f"{value} for each {entry['per']}"
    if image := entry.get("image"):
        text += f" {image}"
    return f"{text} = {entry['formula']}"


def draw_kernels(rows: Sequence[dict[str, Any]], session: Session) -> str:
    """Draw what `api.explain` found: by component and graph, one line an op, its notes below it.

    A reason that most ops have is written once, at the end, and marked by a star.
    """
    reasons = [row.get("reason") for row in rows if row.get("reason")]
    common = max(reasons, key=reasons.count, default=None)
    common = common if reasons.count(common) > 2 else None
    width = max((len(_label(row)) for row in rows), default=0)
    lines: list[str] = []
    place: tuple[Any, Any] = (None, None)
    for row in rows:
        component, graph = row.get("component"), row.get("graph")
        if place[0] != component:
            lines += ["", session.style(_text(component), bold=True)]
        elif place[1] != graph:
            times = row.get("times", 1)
            lines.append(f"  {graph}" + (f", {times} times" if times != 1 else ""))
        place = component, graph
        star = " *" if common and row.get("reason") == common else ""
        lines.append(f"    {_label(row):<{width}}  {_text(row.get('kernel'))}{star}".rstrip())
        lines += _notes(row, common)
    lines += ["", f"* {common}"] if common else []
    return "\n".join(lines).strip("\n")


def _label(row: dict[str, Any]) -> str:
    op, module = _text(row.get("op")), row.get("module")
    return op if module in (None, op) else f"{op} {module}"


def _notes(row: dict[str, Any], common: str | None) -> Iterator[str]:
    """What was fused (+), what was not (-), and why."""
    notes = [("= ", row.get("reason"))] if row.get("reason") not in (None, common) else []
    for mark, key in (("+ ", "fused"), ("- ", "refused")):
        notes += [(mark, note) for note in row.get(key) or ()]
    for mark, note in notes:
        first = " " * 6 + mark
        yield textwrap.fill(
            _text(note), _columns(), initial_indent=first, subsequent_indent=" " * len(first)
        )


def short_number(value: int) -> str:
    """Write a count with three significant digits: `7.06B`."""
    for scale, letter in _SCALE:
        if value >= scale:
            number = value / scale
            digits = 2 if number < 10 else 1 if number < 100 else 0
            return f"{number:.{digits}f}{letter}"
    return str(value)


def _rows(
    components: Sequence[dict[str, Any]], session: Session, deep: bool
) -> Iterator[list[str]]:
    for component in components:
        yield _row(component, session.style(component["name"], bold=True))
        yield from _child_rows(component.get("children") or (), "", session, deep)


def _child_rows(
    children: Sequence[dict[str, Any]], indent: str, session: Session, deep: bool
) -> Iterator[list[str]]:
    """One row a module; what is inside a step such as `mlp` only where `deep`."""
    middle, last, bar = _BRANCHES[session.draws_unicode()]
    for index, child in enumerate(children):
        is_last = index == len(children) - 1
        yield _row(child, indent + (last if is_last else middle) + child["name"])
        deeper = indent + ("   " if is_last else bar)
        if deep or child.get("count"):
            yield from _child_rows(child.get("children") or (), deeper, session, deep)


def _row(component: dict[str, Any], name: str) -> list[str]:
    parameters = component.get("parameters")
    count = "" if parameters is None else short_number(parameters) if parameters else "-"
    op = _text(component.get("op"))
    if each := component.get("parameters_each"):
        op += f", {short_number(each)} each"
    op += " (never read)" if component.get("unused") else ""
    op += " (tied)" if component.get("tied") else ""
    return [name, op, _text(component.get("output")), count]


def _facts(facts: Any) -> Iterator[str]:
    """Write named values, one line a group: the part of a name before its dot."""
    if not isinstance(facts, dict):
        yield f"  {_text(facts)}"
        return
    groups: dict[str, list[str]] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            groups[key] = [f"{name} {_text(inner)}" for name, inner in value.items()]
        elif "." in key:
            group, _, name = key.partition(".")
            groups.setdefault(group, []).append(f"{name} {_text(value)}")
        else:
            groups[key] = [_text(value)]
    width = max(map(len, groups), default=0) + _GAP
    room = max(_columns(), width + 4 * _NARROWEST)
    for group, parts in groups.items():
        first = f"  {group:<{width}}"
        yield textwrap.fill(
            ", ".join(parts), room, initial_indent=first, subsequent_indent=" " * len(first)
        )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)


def _room() -> int | None:
    """Give the columns of the terminal; None in a pipe, where nothing is cut."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return None


def _columns() -> int:
    """Where running text breaks, in a pipe as well."""
    return max(_room() or 100, 4 * _NARROWEST)


def _lines(cells: list[list[str]], room: int | None, right: set[int]) -> Iterator[str]:
    widths = [max(_width(cell) for cell in column) for column in zip(*cells, strict=True)]
    if room is not None:
        _narrow(widths, room)
    for row in cells:
        fitted = [_fit(cell, widths[i], i in right) for i, cell in enumerate(row)]
        yield (" " * _GAP).join(fitted).rstrip()


def _narrow(widths: list[int], room: int) -> None:
    """Take the missing columns from the widest ones."""
    while sum(widths) + _GAP * (len(widths) - 1) > room and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1


def _fit(cell: str, width: int, is_right: bool) -> str:
    if _width(cell) > width:
        cell = click.unstyle(cell)[: width - 3] + "..."
    padding = " " * (width - _width(cell))
    return padding + cell if is_right else cell + padding


def _width(cell: str) -> int:
    return len(click.unstyle(cell))
