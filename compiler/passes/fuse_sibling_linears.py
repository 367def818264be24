"""One matrix product where several read the same input."""

from dataclasses import dataclass, replace

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Module, Node, Param, Program, Value
from vlmspec.compiler.ops.linear import LinearAttrs, SplitAttrs
from vlmspec.compiler.ops.registry import NoAttrs
from vlmspec.compiler.passes.base import Context


@dataclass(frozen=True)
class FuseSiblingLinears:
    """Concatenate the weights of linear layers that read one value: q, k and v; gate and up.

    Before: `h = linear(x=x) @q` `h_1 = linear(x=x) @k` `h_2 = linear(x=x) @v`
    After: `qkv = linear(x=x) @qkv` `h, h_1, h_2 = split(x=qkv) {sizes=[…]}`
    """

    name: str = "fuse-sibling-linears"

    def run(self, program: Program, context: Context) -> Program:
        tied = {p.tied for _, _, m in program.walk() for p in m.params if p.tied}
        return program.map_graphs(lambda graph: self.run_graph(graph, context, tied))

    def run_graph(self, graph: Graph, context: Context, tied: frozenset[str] | set[str]) -> Graph:
        groups: dict[Value, list[Node]] = {}
        for node in graph.nodes:
            if node.op == "linear":
                groups.setdefault(node["x"], []).append(node)
        for members in groups.values():
            if len(members) > 1:
                # What they read may be a piece of an earlier fusion by now, so they are found anew.
                results = [n.outputs for n in members]
                nodes = [n for n in graph.nodes if n.outputs in results]
                reason = self._refusal(graph, nodes, tied)
                if reason:
                    context.refused(self.name, graph, nodes[0], reason)
                else:
                    graph = self._fuse(graph, nodes, context)
        return graph

    def _refusal(
        self, graph: Graph, nodes: list[Node], tied: frozenset[str] | set[str]
    ) -> str | None:
        modules = [graph.module(n.module or "") for n in nodes]
        names = ", ".join(f"`{m.name}`" for m in modules)
        if len({m.attrs.bias for m in modules}) > 1:
            return f"of {names} some have a bias and some do not"
        if len({m.name for m in modules}) < len(modules):
            return f"one of {names} is applied twice"
        for module in modules:
            if sum(n.module == module.name for n in graph.nodes) > 1:
                return f"`{module.name}` is applied elsewhere too"
            if any(p.tied for p in module.params) or f"{graph.name}.{module.name}.weight" in tied:
                return f"the weight of `{module.name}` is shared with another layer"
        return None

    def _fuse(self, graph: Graph, nodes: list[Node], context: Context) -> Graph:
        modules = [graph.module(n.module or "") for n in nodes]
        others = {m.name for m in graph.modules} - {m.name for m in modules}
        fused = _concatenate(modules, others)
        first = nodes[0]
        taken = {v.name for n in graph.nodes for v in n.outputs} | {v.name for v in graph.inputs}
        name = fused.name
        while name in taken:
            name += "_all"
        whole = Value(name, first.output.type.with_width(fused.attrs.out_features))
        product = Node("linear", first.inputs, (whole,), NoAttrs(), fused.name, first.span)
        pieces = tuple(_named(n, m.name, taken) for n, m in zip(nodes, modules, strict=True))
        sizes = SplitAttrs(tuple(m.attrs.out_features for m in modules))
        split = Node("split", (("x", whole),), pieces, sizes, None, first.span)
        mapping = {n.output: p for n, p in zip(nodes, pieces, strict=True)}
        found: list[Node] = []
        for node in graph.nodes:
            if node is first:
                found += [product, split]
            elif not any(node is n for n in nodes):
                found.append(node.rewire(mapping))
        replaced = {m.name for m in modules}
        states: list[Module] = []
        for module in graph.modules:
            if module.name == modules[0].name:
                states.append(fused)
            elif module.name not in replaced:
                states.append(module)
        context.took(self.name, graph, first, f"with {', '.join(m.name for m in modules[1:])}")
        outputs = tuple(mapping.get(v, v) for v in graph.outputs)
        return graph.with_nodes(found, states, outputs)


def _named(node: Node, name: str, taken: set[str]) -> Value:
    """The piece that takes the place of a node's result, called after its module where that is
    free."""
    return replace(node.output, name=name) if name not in taken else node.output


def _concatenate(modules: list[Module], others: set[str]) -> Module:
    """One linear module whose parameters are those of `modules`, one after another."""
    names = [m.name for m in modules]
    joined = "".join(names) if all(len(n) == 1 for n in names) else "_".join(names)
    while joined in others:
        joined += "_all"
    total = sum((m.attrs.out_features for m in modules), Dim.const(0))
    attrs = LinearAttrs(modules[0].attrs.in_features, total, modules[0].attrs.bias)
    params = []
    for index, param in enumerate(modules[0].params):
        keys = tuple(key for m in modules for key in m.params[index].keys)
        pieces = [m.params[index].sizes or (m.attrs.out_features,) for m in modules]
        sizes = tuple(size for piece in pieces for size in piece)
        params.append(Param(param.name, (total, *param.shape[1:]), keys, sizes))
    return Module(joined, "linear", attrs, tuple(params), modules[0].span)
