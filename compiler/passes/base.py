"""What passes share: the context that they report to, and rewriting one node at a time."""

from dataclasses import dataclass, field, replace
from typing import Protocol

from vlmspec.compiler.ir.graph import Graph, Node, Program, Value
from vlmspec.diagnostics.model import Span


@dataclass(frozen=True, slots=True)
class Finding:
    """A rewrite that a pass made, or one that it nearly made and the reason why not."""

    rule: str
    graph: str
    node: str
    text: str
    refused: bool = False
    span: Span | None = None


@dataclass(slots=True)
class Context:
    """What the program is compiled for, and what the passes have to say."""

    target: str = "cpu"
    dtype: str = "float32"
    findings: list[Finding] = field(default_factory=list)

    def took(self, rule: str, graph: Graph, node: Node, text: str) -> None:
        self.findings.append(Finding(rule, graph.name, label(node), text, span=node.span))

    def refused(self, rule: str, graph: Graph, node: Node, text: str) -> None:
        self.findings.append(Finding(rule, graph.name, label(node), text, True, node.span))


def label(node: Node) -> str:
    """How reports call a node: its module, or its op."""
    return f"{node.op} {node.module}" if node.module else node.op


class Pass(Protocol):
    """A rewrite of a program; `name` is what the user sees."""

    @property
    def name(self) -> str: ...

    def run(self, program: Program, context: Context) -> Program: ...


def substitute(graph: Graph, mapping: dict[Value, Value]) -> Graph:
    """Read other values instead of the mapped ones; chains are followed."""

    def final(value: Value) -> Value:
        while value in mapping:
            value = mapping[value]
        return value

    table = {value: final(value) for value in mapping}
    nodes = tuple(node.rewire(table) for node in graph.nodes)
    outputs = tuple(table.get(v, v) for v in graph.outputs)
    return replace(graph, nodes=nodes, outputs=outputs)
