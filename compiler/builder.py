"""Builders that lowering writes graphs with.

A nested graph may use a value of an enclosing one: the builder threads it through every boundary as
    a captured input, so
that steps deep inside the layers can ask for the mask or the rotary table that the component
computes once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Module, Node, Param, Value
from vlmspec.compiler.ir.types import StateType, TensorType, Type
from vlmspec.compiler.ops.registry import NoAttrs, Op, Operands, ShapeError
from vlmspec.diagnostics.model import Diagnostics, Label, Span, suggest

# A reader expects tensors first, then what says how to look at them.
INPUT_RANK = {
    name: rank
    for rank, name in enumerate(
        (
            "cos",
            "sin",
            "attention_mask",
            "position_ids",
            "mask",
            "valid",
            "cache",
            "logits_to_keep",
        ),
        1,
    )
}


class LoweringFailed(Exception):
    """The component cannot go on; what is wrong stands in the diagnostics."""


@dataclass(slots=True)
class ProgramBuilder:
    """What the graphs of one program share."""

    ops: Mapping[str, Op]
    sizes: dict[str, int | float]
    diagnostics: Diagnostics
    graphs: dict[str, Graph] = field(default_factory=dict)
    alternates: dict[tuple[str, ...], None] = field(default_factory=dict)
    derived: Mapping[str, Dim] = field(default_factory=dict)
    place: Callable[[str], Span | None] = lambda name: None

    def add_graph(self, graph: Graph) -> str:
        """Add a graph under its name, or under a numbered one where that is taken by a different
        graph."""
        name, number = graph.name, 1
        while name in self.graphs and replace(self.graphs[name], name=graph.name) != graph:
            number += 1
            name = f"{graph.name}_{number}"
        self.graphs[name] = replace(graph, name=name)
        return name

    def named(self, dim: Dim) -> Dim:
        """The derived size that a dimension is by definition, so that shapes read as the spec names
        them."""
        if not self.derived or dim.as_int() is not None:
            return dim
        plain = self.expanded(dim)
        for name in self.derived:
            if plain == self.expanded(Dim.sym(name)):
                return Dim.sym(name)
        return dim

    def expanded(self, dim: Dim) -> Dim:
        """The dimension with every derived size replaced by what it follows from."""
        while used := {n: self.derived[n] for n in dim.symbols() if n in self.derived}:
            dim = dim.subs(used)
        return dim

    def fail(
        self,
        code: str,
        message: str,
        span: Span | None,
        help: str | None = None,
        dims: Iterable[Dim] = (),
    ) -> NoReturn:
        """Report a fault and give up; the sizes in `dims` are shown where they are set."""
        names = sorted({name for dim in dims for name in self.expanded(dim).symbols()})
        labels = [
            Label(place, f"`{n}` is {self.sizes[n]}") for n in names if (place := self.place(n))
        ]
        self.diagnostics.error(code, message, span, help=help, secondary=labels)
        raise LoweringFailed


@dataclass(slots=True)
class GraphBuilder:
    """Collects the modules and nodes of one graph."""

    program: ProgramBuilder
    name: str
    parent: "GraphBuilder | None" = None
    per_layer: bool = False
    doc: str = ""
    span: Span | None = None
    inputs: list[Value] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    captures: dict[Value, Value] = field(default_factory=dict)
    ambient: dict[Any, Any] = field(default_factory=dict)
    prefix_tokens: Dim = field(default_factory=lambda: Dim.const(0))
    stream: Value | None = None
    prefix: str = ""
    visual_counts: Value | None = None
    decodes: bool = True
    given: dict[Value, Value] = field(default_factory=dict)
    _known: set[Value] = field(default_factory=set)
    aliases: dict[Value, str] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    def fresh(self, hint: str) -> str:
        name = hint
        while name in self._names:
            self._counts[hint] = self._counts.get(hint, 0) + 1
            name = f"{hint}_{self._counts[hint]}"
        self._names.add(name)
        return name

    def input(self, name: str, type: Type) -> Value:
        """Declare an input; inside the graph it is there, whether or not the caller's may be
        absent."""
        if isinstance(type, TensorType) and self.parent is not None:
            type = replace(type, optional=frozenset())
        value = Value(self.fresh(name), type)
        self.inputs.append(value)
        self._known.add(value)
        return value

    def drop_unread_inputs(self, *kept: Value) -> None:
        """Forget operands that only the model's plan has read."""
        read = {v for node in self.nodes for _, v in node.inputs} | set(kept)
        self.inputs = [v for v in self.inputs if v in read]

    def planned_again(self, value: Value, mapping: Mapping[Value, Value], name: str) -> Value:
        """The value that the plan makes of other inputs in the same way; itself where it depends on
        none of them.

        Args:
            mapping: the other inputs, by those that the value was made of.
            name: what the names of the new values begin with.
        """
        if value in mapping:
            return mapping[value]
        made = next((n for n in self.nodes if value in n.outputs), None)
        if made is None or not self.program.ops[made.op].host:
            return value
        operands = {role: self.planned_again(v, mapping, name) for role, v in made.inputs}
        if operands == dict(made.inputs):
            return value
        key = (made.op, tuple(operands.items()), made.attrs)
        if key not in self.ambient:
            hints = [f"{name}_{v.name}" for v in made.outputs]
            self.ambient[key] = self.node(
                made.op, operands, made.attrs, hints=hints, span=made.span
            )
        return self.ambient[key][made.outputs.index(value)]

    def is_planned(self, value: Value) -> bool:
        """Whether a value of this graph is an input, or made of inputs by host work alone."""
        made = next((n for n in self.nodes if value in n.outputs), None)
        return value in self.inputs if made is None else self.program.ops[made.op].host

    def root(self) -> "GraphBuilder":
        """The builder of the model's own graph."""
        return self if self.parent is None else self.parent.root()

    def origin(self, value: Value) -> Value:
        """The value of the model's graph that an operand of this component stands for."""
        return self.given.get(value, value)

    def own(self, value: Value) -> Value:
        """Return `value` as this graph knows it, capturing it from the enclosing graphs if need
        be."""
        if value in self._known:
            return value
        if value not in self.captures:
            if self.parent is None:
                raise AssertionError(f"{value.name} belongs to no enclosing graph of {self.name}")
            outer = self.parent.own(value)
            kind = outer.type
            if self.per_layer and kind == StateType("cache"):
                kind = StateType("kv")
            name = self.parent.aliases.get(outer, outer.name)
            self.captures[value] = self.input(name, kind)
        return self.captures[value]

    def node(
        self,
        op: str,
        inputs: Mapping[str, Value | None],
        attrs: Any = None,
        *,
        module: str | None = None,
        state: Module | None = None,
        hints: Sequence[str] | None = None,
        span: Span | None = None,
    ) -> tuple[Value, ...]:
        """Add a node; its result types come from the op's shape rule.

        Args:
            module: path of the node's module; `state` is the module itself where it belongs to
                another graph.
        """
        record = self.program.ops[op]
        operands = {role: self.own(v) for role, v in inputs.items() if v is not None}
        attrs = NoAttrs() if attrs is None else attrs
        found = state or next((m for m in self.modules if m.name == module), None)
        types = infer(record, operands, attrs, found, self.program, span)
        return self._append(op, operands, attrs, types, module, hints or record.results, span)

    def call(
        self,
        module: str,
        callee: str,
        operands: Mapping[str, Value],
        results: Sequence[Value],
        hints: str | Sequence[str],
        span: Span | None,
    ) -> tuple[Value, ...]:
        """Add a call of another graph, whose results are `results` there."""
        owned = {role: self.own(v) for role, v in operands.items()}
        bears = {v.name for v in self.program.graphs[callee].inputs if _nullable(v.type)}
        optional = frozenset().union(
            *(v.type.optional for role, v in owned.items() if role not in bears)
        )
        types = tuple(
            replace(v.type, optional=optional) if isinstance(v.type, TensorType) else v.type
            for v in results
        )
        names = [hints] * len(types) if isinstance(hints, str) else hints
        return self._append("call", owned, NoAttrs(), types, module, names, span)

    def _append(self, op, operands, attrs, types, module, hints, span) -> tuple[Value, ...]:
        outputs = tuple(Value(self.fresh(n), t) for n, t in zip(hints, types, strict=True))
        self._known.update(outputs)
        self.nodes.append(Node(op, tuple(operands.items()), outputs, attrs, module, span))
        return outputs

    def add_module(self, module: Module) -> None:
        if any(m.name == module.name for m in self.modules):
            self.program.fail(
                "VS208",
                f"two steps here are called `{module.name}`",
                module.span,
                "give one of them another name, as in `- linear: 64` with `name: gate` under it",
            )
        for param in module.params:
            self._check_known(module, param)
        self.modules.append(module)

    def _check_known(self, module: Module, param: Param) -> None:
        """A tensor of state has a fixed shape; what varies from run to run cannot be part of it."""
        names = {name for dim in param.shape for name in dim.symbols()} - self.program.sizes.keys()
        if names:
            shape = ", ".join(map(str, param.shape))
            message = (
                f"`{module.name}` would have a tensor of the shape [{shape}], but only a run "
                f"knows {' and '.join(f'`{n}`' for n in sorted(names))}"
            )
            mend = "let it read vectors of a fixed width, such as what an `embedding` gives"
            self.program.fail("VS305", message, module.span, mend)

    def child(self, name: str, *, per_layer: bool = False, doc: str = "", span: Span | None = None):
        return GraphBuilder(self.program, name, self, per_layer, doc, span)

    def finish(self, *outputs: Value) -> Graph:
        owned = tuple(self.own(v) for v in outputs)
        self.inputs.sort(key=lambda v: INPUT_RANK.get(v.name, 0))
        name = self.name
        graph = Graph(
            name,
            tuple(self.inputs),
            tuple(self.modules),
            tuple(self.nodes),
            owned,
            self.doc,
            self.span,
        )
        self.name = self.program.add_graph(graph)
        return self.program.graphs[self.name]

    def operands_for(self, child: "GraphBuilder", given: Mapping[str, Value]) -> dict[str, Value]:
        """Operands of a call of `child`: the explicit ones, and what it captured."""
        outer = {inner.name: self.own(value) for value, inner in child.captures.items()}
        return {v.name: outer[v.name] if v.name in outer else given[v.name] for v in child.inputs}


def _nullable(type: Type) -> bool:
    return isinstance(type, TensorType) and type.nullable


def infer(
    record: Op,
    operands: Mapping[str, Value],
    attrs: Any,
    module: Module | None,
    program: ProgramBuilder,
    span: Span | None,
) -> tuple[Type, ...]:
    """Apply an op's shape rule, and add which optional inputs its results depend on."""
    types = {role: v.type for role, v in operands.items()}
    try:
        results = record.infer(Operands(types, attrs, module, program.sizes))
    except ShapeError as error:
        program.fail(error.code, str(error), span, error.help, error.dims)
    except (ValueError, IndexError):
        # A rule unpacks the shapes that it is for; others have another number of dimensions.
        shown = ", ".join(f"{role}: {type}" for role, type in types.items())
        program.fail("VS305", f"`{record.name}` cannot be applied to {shown}", span)
    borne = record.joins | record.bears
    optional = frozenset().union(*(t.optional for role, t in types.items() if role not in borne))
    if record.gives_optional is not None:
        optional |= record.gives_optional(attrs)
    return tuple(
        replace(t, shape=tuple(map(program.named, t.shape)), optional=optional)
        if isinstance(t, TensorType)
        else t
        for t in results
    )


@dataclass(slots=True)
class Weights:
    """Where a step's tensors live in the checkpoint: a prefix and the names of the roles under it.

    `renames` says what names that a part starts with are called in the checkpoint, until one of
    them is met.
    """

    prefix: str
    names: Mapping[str, str]
    renames: Mapping[str, str] = field(default_factory=dict)

    def key(self, role: str, suffix: str = "") -> str:
        return ".".join(filter(None, (self.prefix, self.names.get(role, role), suffix)))


@dataclass(slots=True)
class StepBuilder:
    """What a step's lowering works with: the graph under construction and the step's own name,
    weights and place."""

    graph: GraphBuilder
    component: GraphBuilder
    name: str
    weights: Weights
    tree: Any
    span: Span | None
    lower_body: Callable[["StepBuilder", Value], Value]
    tap: "Tap | None" = None
    scope: Any = None
    values: dict[str, Value] = field(default_factory=dict)
    counts: Mapping[str, Value] = field(default_factory=dict)

    @property
    def program(self) -> ProgramBuilder:
        return self.graph.program

    def value(self, name: str) -> Value:
        """A value that the body has a name for: an operand of the component, or the result of a
        step with `as:`."""
        if not isinstance(name, str):
            self.fail("VS103", "`from` of a step is the name of a value")
        if name in self.values:
            return self.values[name]
        near = suggest(name, self.values)
        known = ", ".join(f"`{n}`" for n in self.values) or "none"
        mend = f"did you mean `{near}`?" if near else f"named values here: {known}"
        self.fail("VS203", f"no value is called `{name}`", mend)

    def plan(
        self, op: str, inputs: Mapping[str, Value], attrs: Any = None, name: str | None = None
    ) -> Value:
        """Add a node to the model's plan: host work on the model's inputs, done before the traced
        forward.

        The same request gives the same value. Operands are the component's own, followed back to
        the model's inputs.
        """
        root = self.graph.root()
        origins = {role: self.component.origin(v) for role, v in inputs.items()}
        if not all(root.is_planned(value) for value in origins.values()):
            message = f"`{op}` is worked out from the model's inputs, and this is made of them"
            self.fail("VS212", message, "place the step where an input is still as it was given")
        key = (op, tuple(origins.items()), attrs)
        if key not in root.ambient:
            hints = None if name is None else [name]
            root.ambient[key] = root.node(op, origins, attrs, hints=hints, span=self.span)
        results = root.ambient[key]
        return results[0] if len(results) == 1 else results

    def node(self, op: str, inputs: Mapping[str, Value | None], attrs: Any = None, **options: Any):
        """Add a node; gives its only result, or all of them."""
        results = self.graph.node(op, inputs, attrs, span=self.span, **options)
        return results[0] if len(results) == 1 else results

    def module(self, kind: str, attrs: Any, role: str, shapes: Mapping[str, Any], name: str = ""):
        """Declare a primitive module whose tensors are `<role's key>.<parameter>`."""
        params = tuple(
            Param(p, tuple(shape), (self.weights.key(role, p),)) for p, shape in shapes.items()
        )
        name = name or self.name
        self.graph.add_module(Module(name, kind, attrs, params, self.span))
        return name

    def fail(self, code: str, message: str, help: str | None = None) -> NoReturn:
        self.program.fail(code, message, self.span, help)

    def inside(self, graph: GraphBuilder, prefix: str | None = None) -> "StepBuilder":
        """The same step, writing into another graph; `prefix` is where the body's weights live."""
        weights = self.weights if prefix is None else Weights(prefix, {})
        return replace(self, graph=graph, weights=weights, values=dict(self.values))


@dataclass(slots=True)
class Tap:
    """The states of an encoder that are its output: after so many layers, counted from the end
    where negative."""

    layers: tuple[int, ...]
    span: Span | None
    values: dict[int, Value] = field(default_factory=dict)

    def depths(self, count: Dim) -> dict[int, Dim]:
        """How many layers run for each state; -1 is all of `count`."""
        return {n: Dim.const(n) if n >= 0 else count + (1 + n) for n in self.layers}
