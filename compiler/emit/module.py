"""The classes of the emitted package: one for each graph, innermost first."""

from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

from vlmspec.compiler.emit.expr import Call, call, statement
from vlmspec.compiler.emit.layout import fill
from vlmspec.compiler.emit.names import LAYER, ConfigUse, config_class
from vlmspec.compiler.emit.scope import Scope
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Module, Node, Program, Value
from vlmspec.compiler.ir.types import StateType, TensorType
from vlmspec.compiler.ops import MODULE_KINDS, OPS
from vlmspec.diagnostics.text import printable

ANNOTATIONS = {
    "cache": "Cache | None",
    "host_int": "int",
    "runs": "tuple[tuple[int, int], ...]",
}


class ModuleEmitter:
    """Writes the classes of one program."""

    def __init__(self, program: Program, classes: dict[str, str], kernels: dict[str, str]):
        self.program = program
        self.kernels = kernels
        self.classes = classes
        self.configs = ConfigUse(program)
        self.helpers: set[str] = set()

    def order(self) -> list[str]:
        """Graphs, each after those that it contains; the entry last."""
        found: dict[str, None] = {}

        def visit(name: str) -> None:
            for module in self.program.graphs[name].modules:
                for child in module.graphs:
                    visit(child)
            found[name] = None

        visit(self.program.entry)
        return list(found)

    def emit_class(self, name: str) -> list[str]:
        """The source lines of the class of graph `name`."""
        graph = self.program.graphs[name]
        body, scope = self._forward(graph)
        lines = [f"class {self.classes[name]}(nn.Module):", *self._docstring(graph), ""]
        if graph.span is not None:
            place = f"{printable(graph.span.source.name)}:{graph.span.line}"
            lines.append(f"    # spec: {graph.name} ({place})")
        lines += self._init(graph, scope.uses_config, scope.uses_layer)
        signature = self.signature(graph)
        lines += ["", *signature, *body]
        return lines

    def _docstring(self, graph: Graph) -> list[str]:
        text = graph.doc.rstrip(".") + "."
        if "." in graph.name:
            return [f'    """{text}"""']
        shapes = [f"{v.name}: {self.shape(v)}" for v in graph.inputs if _is_data(v)]
        result = ", ".join(self.shape(v) for v in graph.outputs)
        lines = [f'    """{text}', "", "    Shapes:"]
        for line in [*shapes, f"returns: {result}"]:
            lines += fill(f"        {line}", 12)
        return [*lines, '    """']

    def shape(self, value: Value) -> str:
        """A shape for a reader: sizes of the graph's own component without its name."""
        assert isinstance(value.type, TensorType)
        return f"[{', '.join(str(d) for d in value.type.shape)}]"

    # ---------------------------------------------------------------------------------------- init

    def _init(self, graph: Graph, keep_config: bool, keep_layer: bool = False) -> list[str]:
        owner = self.configs.owner[graph.name]
        layer = f", {LAYER}: int" if self.configs.needs_layer(graph.name) else ""
        lines = [
            f"    def __init__(self, config: {config_class(owner)}{layer}):",
            "        super().__init__()",
        ]
        if keep_config:
            lines.append("        self.config = config")
        if keep_layer:
            lines.append(f"        self.{LAYER} = {LAYER}")
        scope = Scope(graph, self.configs, OPS, self.helpers, self.kernels, root="config")
        for module in graph.modules:
            lines += self._construct(graph, module, scope)
        return lines

    def _construct(self, graph: Graph, module: Module, scope: Scope) -> list[str]:
        target = f"self.{module.name}"
        if module.kind in ("graph", "repeat"):
            if module.kind == "graph":
                return [f"        {target} = {self._made(graph, module.graphs[0], LAYER)}"]
            count = scope.dim(module.attrs.count)
            if len(module.graphs) > 1:
                return self._construct_kinds(graph, module, target, count)
            made = self._made(graph, module.graphs[0])
            index = "i" if self.configs.needs_layer(module.graphs[0]) else "_"
            expr: Call = call("nn.ModuleList", f"{made} for {index} in range({count})")
            return [statement(target, expr, 8)]
        return [statement(target, MODULE_KINDS[module.kind].construct(module, scope), 8)]

    def _made(self, graph: Graph, child: str, index: str = "i") -> str:
        layer = f", {index}" if self.configs.needs_layer(child) else ""
        config = self.configs.hand_down(graph.name, child, "config")
        return f"{self.classes[child]}({config}{layer})"

    def _construct_kinds(self, graph: Graph, module: Module, target: str, count: str) -> list[str]:
        """A stack of layers of several kinds, built one by one."""
        lines = [f"        {target} = nn.ModuleList()", f"        for i in range({count}):"]
        *tests, default = layer_tests(module.attrs)
        for word, (number, test) in zip(("if", *["elif"] * len(tests)), tests, strict=False):
            lines.append(f"            {word} {test}:")
            lines.append(
                f"                {target}.append({self._made(graph, module.graphs[number])})"
            )
        lines.append("            else:")
        made = self._made(graph, module.graphs[default[0]])
        return [*lines, f"                {target}.append({made})"]

    # ------------------------------------------------------------------------------------- forward

    def signature(self, graph: Graph, entry: bool = False, plan: bool = False) -> list[str]:
        """The `def forward` of a graph's class."""
        arguments = ["self", *(self._argument(v, entry, graph) for v in graph.inputs)]
        arguments += ["plan: Plan | None = None"] if plan else []
        kinds = [_annotation(value) for value in graph.outputs]
        result = kinds[0] if len(kinds) == 1 else f"tuple[{', '.join(kinds)}]"
        result = "Output" if entry else result
        return [f"    def forward({', '.join(arguments)}) -> {result}:"]

    def _argument(self, value: Value, entry: bool, graph: Graph | None = None) -> str:
        text = f"{value.name}: {_annotation(value)}"
        if value.type == StateType("kv") and graph is not None:
            state = layer_state(self.program, graph.name, str)
            text = f"{value.name}: {state.fn if state else 'Any'} | None"
        optional = bool(value.type.optional) or "None" in text
        if entry and isinstance(value.type, StateType) and value.type.kind == "host_int":
            return f"{text} = 0"
        return f"{text} = None" if entry and optional else text

    def _forward(self, graph: Graph) -> tuple[list[str], Scope]:
        scope = Scope(graph, self.configs, OPS, self.helpers, self.kernels)
        scope.start()
        self._emit_guarded(scope, list(range(len(graph.nodes))), set())
        scope.finish()
        return scope.lines, scope

    def entry_forward(self, outputs: dict[str, Value]) -> tuple[list[str], Scope]:
        """The forward of the whole model: what depends on an optional input stands under one
        `if`."""
        graph = self.program.graphs[self.program.entry]
        scope = self._entry_scope(graph)
        fields = self.plan_fields()
        if fields:
            given = ", ".join(v.name for v in self.plan_inputs())
            scope.block(f"plan = plan or self.plan({given})")
        for value in fields:
            scope.names[value] = f"plan.{value.name}"
        nodes = [i for i, n in enumerate(graph.nodes) if not OPS[n.op].host]
        self._emit_guarded(scope, nodes, set())
        given = ", ".join(f"{name}={scope.use(v).flat()}" for name, v in outputs.items())
        scope.block(f"return Output({given})")
        return scope.lines, scope

    def _entry_scope(self, graph: Graph) -> Scope:
        scope = Scope(graph, self.configs, OPS, self.helpers, self.kernels, inline=False)
        scope.start()
        return scope

    def _emit_guarded(self, scope: Scope, nodes: list[int], kept: set[Value]) -> None:
        """Emit nodes in order; those that need optional inputs stand under `if … is not None:`.

        What is read where it may be absent is None there; so are the values in `kept`.
        """
        graph = scope.graph
        guard: frozenset[str] = frozenset()
        mark, absent = 0, []
        for position, index in enumerate(nodes):
            needed = _needed(graph.nodes[index])
            scope.indent = 8
            if needed != guard:
                self._close_guard(scope, mark, absent)
                absent = []
            if needed != guard and needed:
                rest = (graph.nodes[i] for i in nodes[position:])
                group = list(takewhile(lambda n, now=needed: _needed(n) == now, rest))
                absent = self._absent(graph, group, kept)
                scope.settle()
                mark = len(scope.lines)
                test = " and ".join(f"{name} is not None" for name in sorted(needed))
                scope.block(f"if {test}:")
            scope.indent = 12 if needed else 8
            guard = needed
            scope.emit(index)
        self._close_guard(scope, mark, absent)
        scope.indent = 8

    def _close_guard(self, scope: Scope, mark: int, absent: list[Value]) -> None:
        """Before an `if` whose end is reached, say what its results are without it."""
        lines = [f"        {scope.names[value]} = None" for value in absent]
        scope.lines[mark:mark] = lines

    def _absent(self, graph: Graph, group: list[Node], kept: set[Value]) -> list[Value]:
        """The group's results that somebody outside of it may read."""
        inside = {id(n) for n in group}
        found = []
        alone = [n for n in group if not OPS[n.op].joins]
        for value in (v for n in alone for v in n.outputs if _may_be_absent(v)):
            read = any(id(n) not in inside for n in graph.readers(value))
            if read or value in kept or value in graph.outputs:
                found.append(value)
        return found

    # ---------------------------------------------------------------------------------------- plan

    def plan_fields(self) -> list[Value]:
        """What the plan hands to the forward: results of host work that other nodes read."""
        graph = self.program.graphs[self.program.entry]
        traced = [n for n in graph.nodes if not OPS[n.op].host]
        read = {v for n in traced for _, v in n.inputs} | set(graph.outputs)
        return [v for n in graph.nodes if OPS[n.op].host for v in n.outputs if v in read]

    def plan_inputs(self) -> list[Value]:
        """The model's inputs that the plan looks at."""
        graph = self.program.graphs[self.program.entry]
        nodes = [n for n in graph.nodes if OPS[n.op].host]
        read = {v for n in nodes for _, v in n.inputs}
        guards = frozenset().union(*map(_needed, nodes))
        return [v for v in graph.inputs if v in read or v.name in guards]

    def emit_plan(self) -> tuple[list[str], list[str]]:
        """The class `Plan`, and the method that makes one; nothing where no op works on the
        host."""
        fields = self.plan_fields()
        if not fields:
            return [], []
        record = [
            "class Plan(NamedTuple):",
            '    """What the host works out before the forward; see `plan`."""',
            "",
        ]
        graph = self.program.graphs[self.program.entry]
        for value in fields:
            made = graph.producer(value)
            absent = made is not None and bool(_needed(made))
            kind = _annotation(value).removesuffix(" | None")
            nullable = absent or _annotation(value) != kind
            record.append(f"    {value.name}: {kind}{' | None' if nullable else ''}")
        arguments = ", ".join(["self", *(self._argument(v, True) for v in self.plan_inputs())])
        scope = self._entry_scope(graph)
        for value in fields:
            scope.last_use[value] = len(graph.nodes)
        host = [i for i, n in enumerate(graph.nodes) if OPS[n.op].host]
        guards = list(dict.fromkeys(_needed(graph.nodes[i]) for i in host))
        nodes = sorted(host, key=lambda i: guards.index(_needed(graph.nodes[i])))
        self._emit_guarded(scope, nodes, set(fields))
        scope.block(f"return Plan({', '.join(f'{v.name}={scope.names[v]}' for v in fields)})")
        head = f"    def plan({arguments}) -> Plan:"
        text = (
            "Work out what depends on the values of the inputs; give it to `forward` to trace that."
        )
        about = f'        """{text}"""'
        return record, ["", head, about, *scope.lines]


def _needed(node: Node) -> frozenset[str]:
    """The optional inputs without which a node does not run."""
    bears = OPS[node.op].joins
    borne = OPS[node.op].bears
    found = [v.type.optional for role, v in node.inputs if role not in bears | borne]
    outputs = [v.type.optional for v in node.outputs]
    if node.op == "call":
        return frozenset().union(*outputs)
    if bears:
        return frozenset().union(*(v.type.optional for _, v in node.inputs))
    return frozenset().union(*found, *outputs)


def _may_be_absent(value: Value) -> bool:
    """Whether a result under a guard is not there without it; those that join have a fallback."""
    return not isinstance(value.type, TensorType) or bool(value.type.optional)


def layer_tests(attrs: Any, index: str = "i") -> list[tuple[int, str]]:
    """For each kind of layer its number and the test that layer `index` is of it; the commonest
    kind last."""
    if attrs.places:
        found = [(k + 1, f"{index} in {_tuple(p)}") for k, p in enumerate(attrs.places)]
        return [*found, (0, "")]
    length = len(attrs.cycle)
    by_kind = {k: [i for i, c in enumerate(attrs.cycle) if c == k] for k in set(attrs.cycle)}
    order = sorted(by_kind, key=lambda k: (len(by_kind[k]), k))
    found = []
    for kind in order:
        places = by_kind[kind]
        test = f"== {places[0]}" if len(places) == 1 else f"in {_tuple(places)}"
        found.append((kind, f"{index} % {length} {test}"))
    return found


def layer_state(program: Program, graph: str, render: Callable[[Dim], str]) -> Call | None:
    """The expression that allocates the decoding state of one layer; None for a layer without
    any."""
    found = [n for n in _nodes_under(program, graph) if OPS[n.op].state and n.get("cache")]
    # A memory is kept in the state of the layer's own attention, where it has one.
    node = min(found, key=lambda n: n.op == "memory_attention", default=None)
    allocate = None if node is None else OPS[node.op].state
    return None if allocate is None else allocate(node, render)


def _nodes_under(program: Program, graph: str) -> Iterator[Node]:
    """Every node of a graph and of those that it contains."""
    owner = program.graphs[graph]
    yield from owner.nodes
    for module in owner.modules:
        for child in module.graphs:
            yield from _nodes_under(program, child)


def _tuple(values: Any) -> str:
    listed = ", ".join(map(str, values))
    return f"({listed},)" if len(values) == 1 else f"({listed})"


def _is_data(value: Value) -> bool:
    return isinstance(value.type, TensorType) and not value.type.nullable


def _annotation(value: Value) -> str:
    if isinstance(value.type, StateType):
        return ANNOTATIONS.get(value.type.kind, "Any")
    return "Tensor | None" if value.type.nullable or value.type.optional else "Tensor"
