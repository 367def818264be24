"""Counting parameters, operations and cached state of a program, without a tensor.

Operations follow the rule of `torch.utils.flop_counter`: a multiply-add is two, and attention
counts every query against every key, also where a mask hides some. Ops whose record has a `flops`
rule count, each as often as the layers around it run; what is cheap beside a matrix product
(additions, activations, rotations) does not.
"""

from collections.abc import Mapping
from math import prod

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Module, Node, Param, Program
from vlmspec.compiler.ir.types import StateType, TensorType, resolve

MAX_ELEMENTS = 2**40
MAX_PARAMETERS = 10**13

Sizes = Mapping[str, int | float]
ZERO, ONE = Dim.const(0), Dim.const(1)


def numel(param: Param, sizes: Sizes) -> int:
    """Number of elements of one tensor."""
    return prod(d.value(sizes) for d in param.shape)  # pyright: ignore[reportArgumentType]


def count(program: Program, graph: str | None = None) -> int:
    """Distinct parameters of a graph with all that it contains; of the whole model by default."""
    owner = program.graphs[graph or program.entry]
    return sum(count_module(program, module) for module in owner.modules)


def count_module(program: Program, module: Module) -> int:
    """Distinct parameters of a module with all that it contains."""
    own = sum(numel(p, program.sizes) for p in module.params if p.tied is None)
    inside = sum(count(program, child) for child in module.graphs)
    return own + inside * (repeats(module, program.sizes) if module.kind == "repeat" else 1)


def repeats(module: Module, sizes: Sizes) -> int:
    """How many instances a repeated module has."""
    return module.attrs.count.value(sizes)


def flops(program: Program) -> dict[str, dict[str, Dim]]:
    """Operations of one forward pass, by component and op, as expressions in sizes and input sizes.

    Args:
        program: as it runs, that is, without dead nodes; see `usage.live`.

    Returns:
        For each module of the model, operations by op; ops without operations are left out.
    """
    memo: dict[str, dict[str, Dim]] = {}
    entry = program.graphs[program.entry]
    found: dict[str, dict[str, Dim]] = {}
    for node in entry.nodes:
        name = (node.module or node.op).partition(".")[0]
        _add(found.setdefault(name, {}), _node_flops(program, entry, node, memo))
    return {name: ops for name, ops in found.items() if ops}


def _graph_flops(program: Program, name: str, memo: dict[str, dict[str, Dim]]) -> dict[str, Dim]:
    if name not in memo:
        graph = program.graphs[name]
        memo[name] = {}
        for node in graph.nodes:
            _add(memo[name], _node_flops(program, graph, node, memo))
    return memo[name]


def _node_flops(
    program: Program, graph: Graph, node: Node, memo: dict[str, dict[str, Dim]]
) -> dict[str, Dim]:
    from vlmspec.compiler.ops import OPS
    from vlmspec.compiler.ops.registry import Operands

    module = find_module(program, graph, node.module) if node.module else None
    if module is not None and module.graphs:
        inside: dict[str, Dim] = {}
        for child in module.graphs:
            _add(inside, _graph_flops(program, child, memo))
        times = runs(node)
        return {op: total * times for op, total in inside.items()}
    rule = OPS[node.op].flops
    if rule is None:
        return {}
    types = {role: value.type for role, value in node.inputs}
    return {node.op: rule(Operands(types, node.attrs, module, program.sizes))}


def runs(node: Node) -> Dim:
    """How often a node runs the graph that it calls."""
    return node.attrs.stop - node.attrs.start if node.op == "repeat" else ONE


def _add(totals: dict[str, Dim], more: Mapping[str, Dim]) -> None:
    for op, amount in more.items():
        totals[op] = totals.get(op, ZERO) + amount


def find_module(program: Program, graph: Graph, path: str) -> Module:
    """The module at a dotted path below a graph."""
    head, _, rest = path.partition(".")
    module = graph.module(head)
    return find_module(program, program.graphs[module.graphs[0]], rest) if rest else module


def cached_elements(program: Program) -> Dim:
    """Numbers that a cache keeps for each token of a sequence: keys and values of all layers."""
    return _cached(program, program.entry)


def _cached(program: Program, name: str) -> Dim:
    graph = program.graphs[name]
    total = ZERO
    for node in graph.nodes:
        module = find_module(program, graph, node.module) if node.module else None
        if module is not None and module.graphs:
            inside = sum((_cached(program, child) for child in module.graphs), ZERO)
            total = total + inside * runs(node)
        elif any(value.type == StateType("kv") for _, value in node.inputs):
            total = total + sum((_per_token(node, role) for role in "kv"), ZERO)
    return total


def _per_token(node: Node, role: str) -> Dim:
    """Elements of an operand [B, S, ...] for one token of one sequence."""
    value = node.get(role)
    if value is None or not isinstance(value.type, TensorType):
        return ZERO
    return prod(value.type.shape[2:], start=ONE)


def evaluate(dim: Dim, sizes: Sizes, **inputs: int) -> int | None:
    """The value under a program's sizes and some input sizes; None where one is not known."""
    try:
        return dim.value({**sizes, **inputs})  # pyright: ignore[reportArgumentType]
    except KeyError:
        return None


def in_inputs(dim: Dim, sizes: Sizes) -> str:
    """An expression with the program's sizes filled in, so that only input sizes are left."""
    return str(resolve(dim, sizes))
