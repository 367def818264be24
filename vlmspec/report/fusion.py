"""What `vlmspec explain` tells: the kernel of every op, what was fused into it, what was not."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vlmspec import kernels
from vlmspec.compiler.emit.expr import Atom, Binary, Call, Expr
from vlmspec.compiler.emit.library import FILES
from vlmspec.compiler.emit.names import ConfigUse
from vlmspec.compiler.emit.scope import Scope
from vlmspec.compiler.ir.graph import Graph, Node, Program, Value
from vlmspec.compiler.ops import MODULE_KINDS, OPS
from vlmspec.compiler.passes.base import Context, Finding, label
from vlmspec.compiler.passes.eliminate_dead_code import EliminateDeadCode
from vlmspec.diagnostics.model import Span
from vlmspec.kernels.registry import candidates, choose
from vlmspec.report import accounting
from vlmspec.report.accounting import find_module, runs

DROPPED = EliminateDeadCode().name
NO_KERNEL = "no generated kernel for this op yet"


def explain_program(program: Program, context: Context) -> list[dict[str, Any]]:
    """Say for every node of every graph which kernel computes it, and what the passes did there.

    Args:
        program: after all passes.
        context: what the passes reported to.

    Returns:
        One row a node, graphs from the outside in, repeated layers once; and one for each node that
        was dropped.
    """
    findings: dict[str, list[Finding]] = {}
    for finding in context.findings:
        findings.setdefault(finding.graph, []).append(finding)
    rows: list[dict[str, Any]] = []
    for name, component, times in _graphs(program):
        graph = program.graphs[name]
        rows += _rows(program, graph, component, times, context, findings.get(name, []))
    return rows


def _graphs(program: Program) -> Iterator[tuple[str, str, int]]:
    """Every graph once, with its component and how often it runs."""
    seen: set[str] = set()

    def visit(name: str, component: str, times: int) -> Iterator[tuple[str, str, int]]:
        if name in seen:
            return
        seen.add(name)
        yield name, component, times
        graph = program.graphs[name]
        for module in graph.modules:
            called = [runs(node) for node in graph.nodes if node.module == module.name]
            more = accounting.evaluate(sum(called, accounting.ZERO), program.sizes) or 0
            for child in module.graphs:
                inside = module.name if name == program.entry else component
                yield from visit(child, inside, times * more)

    yield from visit(program.entry, program.entry, 1)


def _rows(
    program: Program,
    graph: Graph,
    component: str,
    times: int,
    context: Context,
    findings: Sequence[Finding],
) -> Iterator[dict[str, Any]]:
    notes = _attach(graph, [f for f in findings if f.rule != DROPPED])
    place = {"component": component, "graph": graph.name, "times": times}
    used = kernels_of(program, graph, context)
    for index, (node, kernel) in enumerate(zip(graph.nodes, used, strict=True)):
        mine = notes.get(index, [])
        reason, passed_over = _choice(node, context) if _has_choice(node, kernel) else (None, [])
        refused = [f"{f.rule}: {f.text}" for f in mine if f.refused]
        yield place | {
            "op": node.op,
            "module": node.module,
            "spec": _location(node.span),
            "kernel": kernel,
            "reason": reason,
            "fused": [f"{f.rule}: {f.text}" for f in mine if not f.refused],
            "refused": refused + passed_over,
        }
    for finding in findings:
        if finding.rule == DROPPED:
            yield place | _dropped(finding)


def _dropped(finding: Finding) -> dict[str, Any]:
    op, _, module = finding.node.partition(" ")
    facts = {"op": op, "module": module or None, "spec": _location(finding.span)}
    reason = f"dropped: {finding.text}"
    return facts | {"kernel": "none", "reason": reason, "fused": [], "refused": []}


def _location(span: Span | None) -> str | None:
    return f"{span.source.name}:{span.line}" if span else None


def _has_choice(node: Node, kernel: str) -> bool:
    """Whether there is a kernel to choose: not for calls, views and elementwise operators."""
    return node.op not in ("call", "repeat") and kernel.partition(".")[0] not in ("Tensor", kernel)


def _choice(node: Node, context: Context) -> tuple[str | None, list[str]]:
    """Why the op's kernel was chosen, and why others were not."""
    chosen = choose(node.op, context.target, context.dtype)
    passed_over = []
    for kernel in candidates(node.op):
        if (why := kernel.refusal(context.target, context.dtype)) is not None:
            passed_over.append(f"{kernel.family}.{kernel.name} ({kernel.backend}): {why}")
    if chosen is not None:
        return chosen.about, passed_over
    plain = None if context.target == "cpu" or passed_over else NO_KERNEL
    return plain, passed_over


def _attach(graph: Graph, findings: Sequence[Finding]) -> dict[int, list[Finding]]:
    """Give each finding to the node that now stands where the pass found what it speaks of."""
    found: dict[int, list[Finding]] = {}
    for finding in findings:
        places = range(len(graph.nodes))
        best = max(places, key=lambda i: _likeness(graph.nodes[i], finding), default=0)
        found.setdefault(best, []).append(finding)
    return found


def _likeness(node: Node, finding: Finding) -> tuple[bool, ...]:
    """How well a node fits a finding made before later rewrites: place, then module, then op."""
    op, _, module = finding.node.partition(" ")
    return (
        node.span == finding.span and node.op == op,
        label(node) == finding.node,
        node.span == finding.span and node.module is not None and node.module == module,
        node.op == op,
        node.span == finding.span,
    )


def kernels_of(program: Program, graph: Graph, context: Context) -> list[str]:
    """The function that computes each node of a graph, found by what its op emits.

    `attention.causal_attention` is a function of the kernel library, `nn.Linear` one of torch, and
    a name that is neither is another graph or plain Python.
    """
    chosen = {op: choose(op, context.target, context.dtype) for op in MODULE_KINDS | OPS}
    names = {op: kernel.name for op, kernel in chosen.items() if kernel is not None}
    helpers: set[str] = set()
    # Nothing is inlined, so that each node's expression stands for that node alone.
    scope = Scope(graph, ConfigUse(program), OPS, helpers, names, inline=False)
    scope.start()
    scope.names.update({v: v.name for node in graph.nodes for v in _values(node)})
    found = []
    for node in graph.nodes:
        helpers.clear()
        expr = OPS[node.op].emit(node, scope)
        text = expr.flat() if expr is not None else ""
        module = find_module(program, graph, node.module) if node.module else None
        if module is not None and module.graphs:
            callee = module.graphs[0]
            found.append(f"layers: {callee}" if node.op == "repeat" else f"class: {callee}")
        elif module is not None and f"self.{node.module}(" in text:
            made = MODULE_KINDS[module.kind].construct(module, scope)
            found.append(_name(made, helpers))
        else:
            found.append(_name(expr, helpers))
    return found


def _values(node: Node) -> list[Value]:
    return [*node.outputs, *(value for _, value in node.inputs)]


def _name(expr: Expr | None, helpers: set[str]) -> str:
    """The function that an expression calls, with where it comes from."""
    if helpers:
        main = expr.fn if isinstance(expr, Call) and expr.fn in helpers else min(helpers)
        return f"{families().get(main, 'functional')}.{main}"
    match expr:
        case Binary(op=op):
            return f"Tensor {op}"
        case Call(fn=fn):
            head, _, method = fn.rpartition(".")
            return fn if head in ("F", "nn", "torch") else f"Tensor.{method}"
        case Atom(text=text) if text.endswith("]"):
            return "Tensor[]"
        case _:
            return "Python"


@cache
def families() -> dict[str, str]:
    """The family of every function and class of the kernel library."""
    folder = Path(str(kernels.__file__)).parent
    found: dict[str, str] = {}
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        defined = re.findall(r"^(?:def|class) (\w+)", text, re.MULTILINE)
        found |= dict.fromkeys(defined, name.partition("/")[0])
    return found
