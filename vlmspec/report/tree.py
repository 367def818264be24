"""What `vlmspec show` tells of an architecture: components, shapes, visual tokens, costs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Module, Node, Program, Value
from vlmspec.compiler.ir.types import TensorType, Type, resolve
from vlmspec.dsl.schema import Architecture, Component
from vlmspec.report import accounting, usage

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
TEXT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Located:
    """A component of the spec and the node of the model that computes it."""

    name: str
    component: Component
    node: Node | None

    @property
    def reads(self) -> dict[str, str]:
        """The names that it reads, by role."""
        given = self.component.from_
        return dict(given) if isinstance(given, Mapping) else {"x": given}

    @property
    def value(self) -> Value | None:
        return self.node.output if self.node else None


def describe(
    architecture: Architecture, program: Program, places: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Describe an architecture as data.

    Args:
        architecture: the spec.
        program: what it lowers to, before any pass.
        places: file and line of each component in the spec; of its graph if not given.

    Returns:
        JSON-ready facts. A shape is given with the sizes' values, and as `..._formula` with their
        names.
    """
    located = locate(architecture, program)
    live = usage.live(program)
    idle = usage.unused(live)
    tokens = visual_tokens(architecture, located, program)
    return {
        "name": architecture.name,
        "title": architecture.title,
        "total_parameters": accounting.count(program),
        "unused_parameters": sum(entry["parameters"] for entry in idle),
        "unused_modules": idle,
        "inputs": _inputs(architecture, program),
        "components": [_component(program, p, idle, places or {}) for p in located.values()],
        "outputs": dict(architecture.outputs),
        "visual_tokens": tokens,
        "kv_cache": _kv_cache(live),
        "flops": _flops(live, tokens),
        "sizes": dict(program.sizes),
    }


def locate(architecture: Architecture, program: Program) -> dict[str, Located]:
    """Find the node of every component: a call of its graph, or an op in the model's own graph."""
    root = program.graphs[program.entry]
    calls = {node.module: node for node in root.nodes if node.op == "call"}
    free = [node for node in root.nodes if node.op != "call"]
    found: dict[str, Located] = {}
    for name, component in architecture.graph.items():
        found[name] = Located(name, component, calls.get(name))
    for name, place in found.items():
        ((_, op),) = place.component.kinds
        if place.node is None:
            operands = {found[n].value for n in place.reads.values() if n in found} - {None}
            match = [n for n in free if n.op == op and operands <= {v for _, v in n.inputs}]
            found[name] = replace(place, node=match[0] if match else None)
            free = [node for node in free if node not in match[:1]]
    return found


def shape(type: Type, program: Program) -> str:
    """A shape with the sizes' values, as `[images, 576, 4096]`."""
    if not isinstance(type, TensorType):
        return str(type)
    return f"[{', '.join(str(resolve(dim, program.sizes)) for dim in type.shape)}]"


def formula(type: Type) -> str:
    """A shape in the sizes' names."""
    return f"[{', '.join(map(str, type.shape))}]" if isinstance(type, TensorType) else str(type)


def expanded(dim: Dim, program: Program) -> Dim:
    """A dimension with every derived size replaced by what it follows from."""
    while used := {n: program.derived[n] for n in dim.symbols() if n in program.derived}:
        dim = dim.subs(used)
    return dim


def _inputs(architecture: Architecture, program: Program) -> dict[str, Any]:
    types = {value.name: value.type for value in program.graphs[program.entry].inputs}
    return {
        name: {"kind": kind, "shape": shape(types[name], program), "formula": formula(types[name])}
        for name, kind in architecture.input_kinds.items()
        if name in types
    }


def _component(
    program: Program, place: Located, idle: list[dict[str, Any]], places: Mapping[str, str]
) -> dict[str, Any]:
    root = program.graphs[program.entry]
    ((kind, op),) = place.component.kinds
    module = next((m for m in root.modules if m.name == place.name), None)
    graph = program.graphs[module.graphs[0]] if module and module.graphs else None
    span = graph.span if graph else None
    facts: dict[str, Any] = {"name": place.name, "kind": kind, "op": op}
    facts["parameters"] = accounting.count_module(program, module) if module else 0
    facts |= {"reads": place.reads, "input": None, "output": None}
    if place.node is not None:
        taken, given = place.node.inputs[0][1].type, place.node.output.type
        facts["input"], facts["output"] = shape(taken, program), shape(given, program)
        facts["input_formula"], facts["output_formula"] = formula(taken), formula(given)
    own = f"{span.source.name}:{span.line}" if span else None
    facts["spec"] = places.get(place.name, own)
    names = {entry["module"] for entry in idle}
    facts["children"] = _children(program, graph, f"{place.name}.", names) if graph else []
    return facts


def _children(program: Program, graph: Graph, prefix: str, idle: set[str]) -> list[dict[str, Any]]:
    return [_child(program, graph, module, prefix, idle) for module in graph.modules]


def _child(
    program: Program, graph: Graph, module: Module, prefix: str, idle: set[str]
) -> dict[str, Any]:
    path = prefix + module.name
    node = next((n for n in graph.nodes if n.module == module.name), None)
    if node is None:
        # A decoder's token embedding is applied outside its graph, where a fusion reads it.
        root = program.graphs[program.entry]
        node = next((n for n in root.nodes if n.module == path), None)
    facts: dict[str, Any] = {"name": module.name, "op": module.kind}
    if node is not None and module.kind == "parameter":
        facts["op"] = node.op
    facts["parameters"] = accounting.count_module(program, module)
    facts["output"] = shape(node.output.type, program) if node else None
    inner = f"{path}."
    if module.kind == "graph":
        facts["op"] = module.graphs[0].rpartition(".")[2]
    elif module.kind == "repeat":
        number = accounting.repeats(module, program.sizes)
        facts["op"] = f"{number} x {module.graphs[0].rpartition('.')[2]}"
        facts |= {"count": number, "parameters_each": facts["parameters"] // max(number, 1)}
        inner = f"{path}.{{i}}."
    facts |= {"unused": True} if path in idle else {}
    facts |= {"tied": True} if any(param.tied for param in module.params) else {}
    children = [_children(program, program.graphs[name], inner, idle) for name in module.graphs]
    facts["children"] = [child for group in children for child in group]
    return facts


def visual_tokens(
    architecture: Architecture, located: Mapping[str, Located], program: Program
) -> dict[str, Any]:
    """How many visual tokens every fusion takes into the text, by the type of what it takes."""
    types = {value.name: value.type for value in program.graphs[program.entry].inputs}
    found: dict[str, Any] = {}
    for name, place in located.items():
        visual = place.node.get("visual") if place.node else None
        if visual is None or not isinstance(visual.type, TensorType):
            continue
        dims = visual.type.shape[:-1]
        images = Dim.sym("images")
        whole = prod((dim for dim in dims if dim != images), start=Dim.const(1))
        source = _image_input(architecture, located, place)
        image = types.get(source) if source else None
        entry: dict[str, Any] = {"input": source, "per": "image" if images in dims else "batch"}
        entry["formula"] = str(expanded(whole, program))
        entry["value"] = accounting.evaluate(whole, program.sizes)
        if isinstance(image, TensorType):
            inner = image.with_shape(*image.shape[1:])
            entry |= {"image": shape(inner, program), "image_formula": formula(inner)}
        found[name] = entry
    return found


def _image_input(
    architecture: Architecture, located: Mapping[str, Located], place: Located
) -> str | None:
    """The image input that a component depends on, found upstream."""
    waiting, seen = list(place.reads.values()), set()
    while waiting:
        name = waiting.pop()
        if architecture.input_kinds.get(name) not in (None, "text"):
            return name
        if name in located and name not in seen:
            seen.add(name)
            waiting += located[name].reads.values()
    return None


def _kv_cache(program: Program) -> dict[str, Any]:
    elements = accounting.cached_elements(program)
    value = accounting.evaluate(elements, program.sizes)
    sizes = DTYPE_BYTES.items()
    return {
        "elements_per_token": value,
        "formula": str(elements),
        "bytes_per_token": {n: None if value is None else value * size for n, size in sizes},
    }


def _flops(program: Program, tokens: Mapping[str, Any]) -> dict[str, Any]:
    """Operations by component, and their number for one image and a short text."""
    visual = [entry["value"] for entry in tokens.values()]
    known = None not in visual
    length = TEXT_TOKENS + sum(visual) if known else None
    inputs: dict[str, int] = {"batch": 1, "images": 1 if tokens else 0, "kept": 1}
    if length is not None:
        inputs |= {"tokens": length, "keys": length}
    components: dict[str, Any] = {}
    for name, ops in accounting.flops(program).items():
        total = sum(ops.values(), Dim.const(0))
        values = {op: accounting.evaluate(dim, program.sizes, **inputs) for op, dim in ops.items()}
        components[name] = {
            "formula": accounting.in_inputs(total, program.sizes),
            "value": accounting.evaluate(total, program.sizes, **inputs),
            "by_op": values,
        }
    totals = [entry["value"] for entry in components.values()]
    total = None if None in totals else sum(totals)
    return {"total": total, "inputs": inputs, "components": components}
