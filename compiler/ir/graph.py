"""The program: typed graphs of nodes over declared modules.

A `Graph` becomes one emitted class. Its `modules` are the state (parameters, in the order in which
they are built) and its
`nodes` the data flow. Both are immutable by habit: passes return new graphs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Type
from vlmspec.diagnostics.model import Span


@dataclass(frozen=True, slots=True)
class Value:
    """An SSA value: named once in its graph."""

    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class Param:
    """One tensor of state and the checkpoint tensors that it is made of.

    `keys` has one entry for a plain tensor, several for a concatenation along dimension 0 (`sizes`
    gives each one's extent);
    `{i}` stands for the index of the enclosing repeat. With `stack`, that many sets of `keys` are
    stacked, `*` being the
    number of a set; `permute` gives the order in which the checkpoint's tensor has our dimensions.
    A `tied` parameter is the same object as another one, named by path.
    """

    name: str
    shape: tuple[Dim, ...]
    keys: tuple[str, ...]
    sizes: tuple[Dim, ...] = ()
    tied: str | None = None
    stack: Dim | None = None
    permute: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Module:
    """A piece of state in a graph: a primitive (`linear`, `rms_norm`, …), another graph, or a
    repeated graph."""

    name: str
    kind: str
    attrs: Any
    params: tuple[Param, ...] = ()
    span: Span | None = field(default=None, compare=False)

    @property
    def graphs(self) -> tuple[str, ...]:
        return getattr(self.attrs, "graphs", ())


@dataclass(frozen=True, slots=True)
class Node:
    """One operation: named operands, results, attributes and, where it has state, a module."""

    op: str
    inputs: tuple[tuple[str, Value], ...]
    outputs: tuple[Value, ...]
    attrs: Any
    module: str | None = None
    span: Span | None = field(default=None, compare=False)

    def __getitem__(self, role: str) -> Value:
        return dict(self.inputs)[role]

    def get(self, role: str) -> Value | None:
        return dict(self.inputs).get(role)

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def rewire(self, mapping: Mapping[Value, Value]) -> "Node":
        """Return the node with operands replaced."""
        if not any(value in mapping for _, value in self.inputs):
            return self
        return replace(self, inputs=tuple((role, mapping.get(v, v)) for role, v in self.inputs))


@dataclass(frozen=True, slots=True)
class Graph:
    """A function over tensors with state: one class of the emitted package."""

    name: str
    inputs: tuple[Value, ...]
    modules: tuple[Module, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    doc: str = field(default="", compare=False)
    span: Span | None = field(default=None, compare=False)

    def module(self, name: str) -> Module:
        return next(m for m in self.modules if m.name == name)

    def readers(self, value: Value) -> list[Node]:
        return [n for n in self.nodes if any(v == value for _, v in n.inputs)]

    def producer(self, value: Value) -> Node | None:
        return next((n for n in self.nodes if value in n.outputs), None)

    def used_once(self, value: Value) -> bool:
        """Whether exactly one node reads `value` and the graph does not return it."""
        uses = sum(v == value for n in self.nodes for _, v in n.inputs)
        return uses == 1 and value not in self.outputs

    def with_nodes(self, nodes, modules=None, outputs=None) -> "Graph":
        return replace(
            self,
            nodes=tuple(nodes),
            modules=self.modules if modules is None else tuple(modules),
            outputs=self.outputs if outputs is None else tuple(outputs),
        )


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """How a size or option is read from a checkpoint's config.json: the paths tried in order, then
    the default;
    `map` says what the values found there mean."""

    name: str
    paths: tuple[str, ...]
    value: Any
    default: Any
    map: Mapping[str, Any] | None = None
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Program:
    """A whole architecture: its graphs, the entry among them, and the values of its sizes.

    `keys` are the sizes that a checkpoint's config may set, `options` the choices that are baked
    into the code, `derived` the
    sizes that follow from others, `alternates` prefixes by which checkpoints call the same tensors.
    """

    name: str
    graphs: Mapping[str, Graph]
    sizes: Mapping[str, int | float]
    entry: str = "model"
    keys: tuple[ConfigKey, ...] = ()
    options: tuple[ConfigKey, ...] = ()
    derived: Mapping[str, Dim] = field(default_factory=dict)
    alternates: tuple[tuple[str, ...], ...] = ()

    def with_graphs(self, graphs: Mapping[str, Graph]) -> "Program":
        return replace(self, graphs=dict(graphs))

    def map_graphs(self, fn) -> "Program":
        return self.with_graphs({name: fn(graph) for name, graph in self.graphs.items()})

    def walk(self, graph: str = "", path: str = "") -> Iterator[tuple[str, Graph, Module]]:
        """Yield (path, graph, module) for the whole module tree, parents first; a repeat adds
        `.{i}` to the path."""
        owner = self.graphs[graph or self.entry]
        for module in owner.modules:
            name = f"{path}.{module.name}" if path else module.name
            yield name, owner, module
            for child in module.graphs:
                inner = f"{name}.{{i}}" if module.kind == "repeat" else name
                yield from self.walk(child, inner)
