"""Compute at compile time what does not depend on the input."""

from dataclasses import dataclass, replace

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Node, Program, Value
from vlmspec.compiler.ir.types import Scalar
from vlmspec.compiler.ops.activation import ScaleAttrs
from vlmspec.compiler.ops.structure import SliceAttrs
from vlmspec.compiler.passes.base import Context, substitute

ZERO = Dim.const(0)


@dataclass(frozen=True)
class FoldConstants:
    """Merge literal factors and slices, and drop those that change nothing.

    Before: `a = scale(x=x) {factor=2.0}` `b = scale(x=a) {factor=0.5}` `c = slice_tokens(x=b)
        {start=0}`
    After: every reader of `c` reads `x`
    """

    name: str = "fold-constants"

    def run(self, program: Program, context: Context) -> Program:
        return program.map_graphs(lambda graph: self.run_graph(graph, context))

    def run_graph(self, graph: Graph, context: Context) -> Graph:
        while (changed := self._step(graph, context)) is not None:
            graph = changed
        return graph

    def _step(self, graph: Graph, context: Context) -> Graph | None:
        for node in graph.nodes:
            if (source := _identity(node)) is not None:
                context.took(self.name, graph, node, "it changes nothing")
                rest = graph.with_nodes(n for n in graph.nodes if n is not node)
                return substitute(rest, {node.output: source})
            merged = self._merge(graph, node, context)
            if merged is not None:
                return graph.with_nodes(merged if n is node else n for n in graph.nodes)
        return None

    def _merge(self, graph: Graph, node: Node, context: Context) -> Node | None:
        """The node with what feeds it taken in, if that is of the same kind."""
        if node.op not in ("scale", "slice_tokens"):
            return None
        feeder = graph.producer(node["x"])
        if feeder is None or feeder.op != node.op:
            return None
        if node.op == "scale":
            inner, outer = feeder.attrs.factor, node.attrs.factor
            named = inner.name or outer.name
            if named:
                reason = f"the factor `{named}` is read from the checkpoint's config"
                context.refused(self.name, graph, node, reason)
                return None
            attrs = ScaleAttrs(Scalar(inner.value * outer.value))
        else:
            attrs = SliceAttrs(feeder.attrs.start + node.attrs.start)
        context.took(self.name, graph, node, f"takes in the {feeder.op} before it")
        return replace(node, inputs=(("x", feeder["x"]),), attrs=attrs)


def _identity(node: Node) -> Value | None:
    """What a node that changes nothing passes on."""
    match node.op:
        case "scale" if node.attrs.factor == Scalar(1.0):
            return node["x"]
        case "slice_tokens" if node.attrs.start == ZERO:
            return node["x"]
        case "repeat" if node.attrs.start == node.attrs.stop:
            return node["x"]
        case _:
            return None
