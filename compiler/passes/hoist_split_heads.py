"""Split a fused projection into heads once, then into queries, keys and values."""

from dataclasses import dataclass

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Node, Program, Value
from vlmspec.compiler.ops.attention import HeadsAttrs
from vlmspec.compiler.ops.linear import SplitAttrs
from vlmspec.compiler.passes.base import Context


@dataclass(frozen=True)
class HoistSplitHeads:
    """Let all pieces of a split become heads in one view.

    Before: `q, k, v = split(x=qkv)` `q_1 = split_heads(x=q)` `k_1 = split_heads(x=k)` `v_1 =
        split_heads(x=v)`
    After: `h = split_heads(x=qkv)` `q_1, k_1, v_1 = split(x=h) {dim=-2}`
    """

    name: str = "hoist-split-heads"

    def run(self, program: Program, context: Context) -> Program:
        return program.map_graphs(lambda graph: self.run_graph(graph, context))

    def run_graph(self, graph: Graph, context: Context) -> Graph:
        for node in graph.nodes:
            if node.op != "split" or node.attrs.dim != -1:
                continue
            readers = [graph.readers(v) for v in node.outputs]
            if not any(r.op == "split_heads" for found in readers for r in found):
                continue
            reason = self._refusal(graph, node, readers)
            if reason:
                context.refused(self.name, graph, node, reason)
            else:
                context.took(self.name, graph, node, "its pieces become heads together")
                graph = self._hoist(graph, node, [found[0] for found in readers])
        return graph

    def _refusal(self, graph: Graph, node: Node, readers: list[list[Node]]) -> str | None:
        if any(len(found) != 1 or found[0].op != "split_heads" for found in readers) or any(
            value in graph.outputs for value in node.outputs
        ):
            return "not every piece becomes heads and nothing else"
        if len({found[0].attrs.head_dim for found in readers}) > 1:
            return "the pieces have heads of different widths"
        return None

    def _hoist(self, graph: Graph, split: Node, heads: list[Node]) -> Graph:
        counts = tuple(n.attrs.num_heads for n in heads)
        attrs = HeadsAttrs(sum(counts, Dim.const(0)), heads[0].attrs.head_dim)
        source = split["x"].type
        shape = (*source.shape[:-1], attrs.num_heads, attrs.head_dim)
        whole = Value(_numbered(graph, split["x"].name), source.with_shape(*shape))
        view = Node("split_heads", split.inputs, (whole,), attrs, None, split.span)
        pieces = tuple(n.output for n in heads)
        parts = Node("split", (("x", whole),), pieces, SplitAttrs(counts, -2), None, split.span)
        found: list[Node] = []
        for node in graph.nodes:
            if node is split:
                found += [view, parts]
            elif not any(node is n for n in heads):
                found.append(node)
        return graph.with_nodes(found)


def _numbered(graph: Graph, name: str) -> str:
    """`name` with the first number that makes it unique in the graph."""
    taken = {v.name for n in graph.nodes for v in n.outputs} | {v.name for v in graph.inputs}
    return next(f"{name}_{i}" for i in range(1, len(taken) + 2) if f"{name}_{i}" not in taken)
