"""Rotary embedding in the prologue of attention."""

from dataclasses import dataclass, replace

from vlmspec.compiler.ir.graph import Graph, Node, Program
from vlmspec.compiler.passes.base import Context


@dataclass(frozen=True)
class FuseRopeAttention:
    """Let attention rotate its queries and keys itself.

    Before: `q_1 = rope(x=q, cos=cos, sin=sin)` `k_1 = rope(x=k, …)` `h = attention(q=q_1, k=k_1,
        v=v)`
    After: `h = attention(q=q, k=k, v=v, cos=cos, sin=sin)`
    """

    name: str = "fuse-rope-attention"

    def run(self, program: Program, context: Context) -> Program:
        return program.map_graphs(lambda graph: self.run_graph(graph, context))

    def run_graph(self, graph: Graph, context: Context) -> Graph:
        for node in graph.nodes:
            if node.op != "attention" or node.get("cos") is not None:
                continue
            q, k = (graph.producer(node[role]) for role in "qk")
            ropes = [n for n in (q, k) if n is not None and n.op == "rope"]
            if not ropes:
                continue
            reason = self._refusal(graph, node, ropes)
            if reason:
                context.refused(self.name, graph, node, reason)
                continue
            context.took(self.name, graph, node, "rotates queries and keys in its prologue")
            graph = self._fuse(graph, node, ropes)
        return graph

    def _refusal(self, graph: Graph, attention: Node, ropes: list[Node]) -> str | None:
        if not attention.attrs.causal:
            return "attention over everything has no rotating prologue"
        if len(ropes) < 2:
            return "only one of queries and keys is rotated"
        if len({(n["cos"], n["sin"]) for n in ropes}) > 1:
            return "queries and keys are rotated by different tables"
        for node in ropes:
            # Where queries are keys, attention itself is the second reader.
            if not graph.used_once(node.output):
                return f"the rotated `{node.output.name}` has a second reader"
        if attention.get("cache") is None:
            return "attention without a cache has no rotating prologue"
        return None

    def _fuse(self, graph: Graph, node: Node, ropes: list[Node]) -> Graph:
        q, k = ropes
        operands = dict(node.inputs) | {"q": q["x"], "k": k["x"], "cos": q["cos"], "sin": q["sin"]}
        order = ("q", "k", "v", "cos", "sin", "mask", "cache")
        fused = replace(node, inputs=tuple((r, operands[r]) for r in order if r in operands))
        nodes = [fused if n is node else n for n in graph.nodes if not any(n is r for r in ropes)]
        return graph.with_nodes(nodes)
