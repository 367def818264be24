"""A residual addition and the norm that reads it, in one op."""

from dataclasses import dataclass

from vlmspec.compiler.ir.graph import Graph, Node, Program
from vlmspec.compiler.ops.registry import NoAttrs
from vlmspec.compiler.passes.base import Context

NORMS = ("rms_norm", "layer_norm")


@dataclass(frozen=True)
class FuseNormResidual:
    """Give the sum and its norm from one pass over memory.

    Before: `x_1 = add(x=x, y=h)` `h_1 = rms_norm(x=x_1) @norm2`
    After: `x_1, h_1 = add_rms_norm(x=x, y=h) @norm2`
    """

    name: str = "fuse-norm-residual"

    def run(self, program: Program, context: Context) -> Program:
        return program.map_graphs(lambda graph: self.run_graph(graph, context))

    def run_graph(self, graph: Graph, context: Context) -> Graph:
        for node in graph.nodes:
            if node.op not in NORMS:
                continue
            feeder = graph.producer(node["x"])
            if feeder is None or feeder.op != "add":
                context.refused(self.name, graph, node, self._why_not(graph, feeder))
            elif graph.used_once(feeder.output):
                context.refused(self.name, graph, node, "nothing but the norm reads the sum")
            else:
                context.took(self.name, graph, node, "with the residual addition before it")
                graph = self._fuse(graph, feeder, node)
        return graph

    def _why_not(self, graph: Graph, feeder: Node | None) -> str:
        if feeder is None:
            return "it reads an input of its graph: the addition stands in another one"
        if feeder.op.startswith("add_"):
            return "the sum that it reads is normalised by another norm already"
        return f"it reads the result of `{feeder.op}`, not of an addition"

    def _fuse(self, graph: Graph, add: Node, norm: Node) -> Graph:
        outputs = (add.output, norm.output)
        fused = Node(f"add_{norm.op}", add.inputs, outputs, NoAttrs(), norm.module, norm.span)
        return graph.with_nodes(fused if n is add else n for n in graph.nodes if n is not norm)
