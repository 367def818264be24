"""What depends on an optional input stands right before it is joined."""

from dataclasses import dataclass

from vlmspec.compiler.ir.graph import Graph, Node, Program
from vlmspec.compiler.passes.base import Context


@dataclass(frozen=True)
class SinkOptional:
    """Order nodes so that those which need an optional input are neighbours: one `if` in the
    emitted code.

    Before: `v = call(x=pixels) @vision` `x = embedding(ids=ids)` `x_1 = splice(x=x, visual=v)`
    After: `x = embedding(ids=ids)` `v = call(x=pixels) @vision` `x_1 = splice(x=x, visual=v)`
    """

    name: str = "sink-optional"

    def run(self, program: Program, context: Context) -> Program:
        return program.map_graphs(self.run_graph)

    def run_graph(self, graph: Graph) -> Graph:
        waiting: list[Node] = []
        found: list[Node] = []
        for node in graph.nodes:
            if any(v.type.optional for v in node.outputs):
                waiting.append(node)
                continue
            needed = {v for _, v in node.inputs if v.type.optional}
            for feeder in list(waiting):
                if needed and _feeds(feeder, needed, waiting):
                    found.append(feeder)
                    waiting.remove(feeder)
            found.append(node)
        return graph.with_nodes([*found, *waiting])


def _feeds(node: Node, needed: set, waiting: list[Node]) -> bool:
    """Whether a needed value depends on the node."""
    if any(v in needed for v in node.outputs):
        return True
    readers = [n for n in waiting if any(v in node.outputs for _, v in n.inputs)]
    return any(_feeds(reader, needed, waiting) for reader in readers)
