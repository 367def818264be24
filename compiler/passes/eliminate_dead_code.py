"""Drop nodes that nothing reads."""

from dataclasses import dataclass, replace

from vlmspec.compiler.ir.graph import Graph, Program, Value
from vlmspec.compiler.ops import OPS
from vlmspec.compiler.passes.base import Context


@dataclass(frozen=True)
class EliminateDeadCode:
    """Drop nodes whose results nothing reads; their modules stay, as the checkpoint has their
    tensors.

    Before: `x_1 = repeat(x=x) @blocks` `h = layer_norm(x=x_1) @post_norm` `return x`
    After: `return x`
    """

    name: str = "eliminate-dead-code"

    def run(self, program: Program, context: Context) -> Program:
        return program.map_graphs(lambda graph: self.run_graph(graph, context))

    def run_graph(self, graph: Graph, context: Context) -> Graph:
        live: set[Value] = set(graph.outputs)
        kept = []
        for node in reversed(graph.nodes):
            if OPS[node.op].effect or any(v in live for v in node.outputs):
                live |= {v for _, v in node.inputs}
                kept.append(node)
            else:
                context.took(self.name, graph, node, "nothing reads its result")
        return replace(graph, nodes=tuple(reversed(kept)))
