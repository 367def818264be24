"""Well-formedness of programs: what must hold between passes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Module, Node, Program
from vlmspec.compiler.ir.types import StateType, TensorType, Type, same_dim
from vlmspec.compiler.ops import MODULE_KINDS, OPS
from vlmspec.compiler.ops.registry import Operands, ShapeError
from vlmspec.compiler.ops.structure import GraphAttrs, RepeatAttrs

# The ops that apply another graph, and the kind of their modules.
CALLS = {"call": "graph", "repeat": "repeat"}
COMPOSED = {"graph": GraphAttrs, "repeat": RepeatAttrs}


class IllFormed(AssertionError):
    """A pass has broken a program; always a fault of the compiler."""


def verify(program: Program) -> None:
    """Check every graph, then the program as a whole.

    Raises:
        IllFormed: naming the graph and what is wrong.
    """
    for graph in program.graphs.values():
        for rule in RULES:
            problem = rule(program, graph)
            if problem:
                raise IllFormed(f"graph {graph.name}: {problem}")
    for check in PROGRAM_RULES:
        problem = check(program)
        if problem:
            raise IllFormed(f"program {program.name}: {problem}")


# --------------------------------------------------------------------------------------- structure


def defined_before_use(program: Program, graph: Graph) -> str | None:
    """Every operand is an input or the result of an earlier node."""
    known = set(graph.inputs)
    for node in graph.nodes:
        for role, value in node.inputs:
            if value not in known:
                return f"{node.op} reads `{value.name}` as {role} before it is there"
        known |= set(node.outputs)
    missing = [v.name for v in graph.outputs if v not in known]
    return f"it returns `{missing[0]}`, which is not there" if missing else None


def named_once(program: Program, graph: Graph) -> str | None:
    """Values and modules have names of their own."""
    values = [v.name for v in graph.inputs] + [v.name for n in graph.nodes for v in n.outputs]
    modules = [m.name for m in graph.modules]
    for names in (values, modules):
        twice = [n for n in names if names.count(n) > 1]
        if twice:
            return f"`{twice[0]}` is defined twice"
    return None


def modules_exist(program: Program, graph: Graph) -> str | None:
    """Every module that a node names, and every graph that a module names, is declared."""
    for module in graph.modules:
        for child in module.graphs:
            if child not in program.graphs:
                return f"module `{module.name}` is of the graph `{child}`, which is not there"
    for node in graph.nodes:
        if node.module is not None and find_module(program, graph, node.module) is None:
            return f"{node.op} uses the module `{node.module}`, which is not declared"
    return None


def kinds_match(program: Program, graph: Graph) -> str | None:
    """Ops are known, and have the attributes and the kind of module that they ask for."""
    for module in graph.modules:
        known = MODULE_KINDS.get(module.kind)
        cls = known.attrs if known else COMPOSED.get(module.kind)
        if type(module.attrs) is not cls:
            return f"module `{module.name}` has {type(module.attrs).__name__}, not {cls}"
    for node in graph.nodes:
        if node.op not in OPS:
            return f"no op is called `{node.op}`"
        op = OPS[node.op]
        if type(node.attrs) is not op.attrs:
            return f"{node.op} has {type(node.attrs).__name__}, not {op.attrs.__name__}"
        wanted = CALLS.get(node.op, op.module_kind)
        module = find_module(program, graph, node.module) if node.module else None
        if (module.kind if module else None) != wanted:
            kind = f"a module of kind {module.kind}" if module else "no module"
            return f"{node.op} has {kind}, not {wanted or 'none'}"
    return None


def find_module(program: Program, graph: Graph, path: str) -> Module | None:
    """The module at a path such as `text.embed`, or None."""
    first, _, rest = path.partition(".")
    module = next((m for m in graph.modules if m.name == first), None)
    if module is None or not rest:
        return module
    inner = program.graphs.get(module.graphs[0]) if module.graphs else None
    return find_module(program, inner, rest) if inner else None


# ------------------------------------------------------------------------------------------- types


def calls_match(program: Program, graph: Graph) -> str | None:
    """A call gives each input of its graph a value that fits, and has the types of its results."""
    for node, child in _calls(program, graph):
        wanted = [v.name for v in child.inputs]
        if [role for role, _ in node.inputs] != wanted:
            return f"{node.op} @{node.module} gives {[r for r, _ in node.inputs]}, not {wanted}"
        for (role, value), inner in zip(node.inputs, child.inputs, strict=True):
            if not fits(program, value.type, inner.type, node.op == "repeat"):
                return f"{node.op} @{node.module} gives {role} {value.type}, not {inner.type}"
        if node.op == "repeat":
            start = child.inputs[0].type
            if not fits(program, child.outputs[0].type, start):
                return f"the layers of `{node.module}` turn {start} into {child.outputs[0].type}"
            continue
        bears = frozenset(v.name for v in child.inputs if getattr(v.type, "nullable", False))
        if problem := _results_differ(program, node, [v.type for v in child.outputs], bears):
            return problem
    return None


def _calls(program: Program, graph: Graph) -> Iterator[tuple[Node, Graph]]:
    for node in graph.nodes:
        if node.op in CALLS:
            module = find_module(program, graph, node.module or "")
            assert module is not None
            for child in module.graphs:
                yield node, program.graphs[child]


def fits(program: Program, given: Type, wanted: Type, per_layer: bool = False) -> bool:
    """Whether a value of one type may be given for an input of another.

    Args:
        per_layer: whether repeated layers get it: of a cache, each one its own part.
    """
    if isinstance(given, StateType) or isinstance(wanted, StateType):
        part = StateType("kv") if per_layer and given == StateType("cache") else given
        return part == wanted
    return (
        given.dtype == wanted.dtype
        and given.nullable <= wanted.nullable
        and _same_shape(program, given, wanted)
    )


def _same_shape(program: Program, a: TensorType, b: TensorType) -> bool:
    return len(a.shape) == len(b.shape) and all(
        same_dim(x, y, program.sizes) for x, y in zip(a.shape, b.shape, strict=True)
    )


def types_match(program: Program, graph: Graph) -> str | None:
    """The types of results are those that the op's shape rule gives."""
    for node in graph.nodes:
        if node.op == "call":
            continue
        types = {role: value.type for role, value in node.inputs}
        module = find_module(program, graph, node.module) if node.module else None
        try:
            found = OPS[node.op].infer(Operands(types, node.attrs, module, program.sizes))
        except ShapeError as error:
            return f"{node.op} {node.module or ''}: {error}"
        except KeyError as error:
            return f"{node.op} lacks the operand {error}"
        except (ValueError, IndexError):
            return f"{node.op} has operands of another number of dimensions"
        borne = OPS[node.op].joins | OPS[node.op].bears
        if problem := _results_differ(program, node, found, borne):
            return problem
    return None


def _results_differ(
    program: Program, node: Node, found: Sequence[Type], joins: frozenset[str]
) -> str | None:
    """Why a node's results are not of the types `found`, which lack what is optional.

    Args:
        joins: roles of operands whose absence the node bears.
    """
    if len(node.outputs) != len(found):
        return f"{node.op} has {len(node.outputs)} results, not {len(found)}"
    optional = frozenset[str]().union(*(v.type.optional for r, v in node.inputs if r not in joins))
    if gives := OPS[node.op].gives_optional:
        optional |= gives(node.attrs)
    for value, kind in zip(node.outputs, found, strict=True):
        if isinstance(kind, TensorType):
            kind = replace(kind, optional=optional)
        if not _is(program, value.type, kind):
            return f"`{value.name}` is {value.type}, and {node.op} gives {kind}"
    return None


def _is(program: Program, stored: Type, kind: Type) -> bool:
    if isinstance(stored, StateType) or isinstance(kind, StateType):
        return stored == kind
    same = (stored.dtype, stored.nullable) == (kind.dtype, kind.nullable)
    return same and stored.optional == kind.optional and _same_shape(program, stored, kind)


# ------------------------------------------------------------------------------------------- state


def shapes_match(program: Program, graph: Graph) -> str | None:
    """Parameters are those of their module's kind, and concatenated pieces add up."""
    for module in graph.modules:
        kind = MODULE_KINDS.get(module.kind)
        wanted = kind.shapes(module.attrs) if kind else {}
        if [p.name for p in module.params] != list(wanted):
            names = [p.name for p in module.params]
            return f"module `{module.name}` has the parameters {names}, not {list(wanted)}"
        for param in module.params:
            if not _same_dims(program, param.shape, wanted[param.name]):
                shape = ", ".join(map(str, wanted[param.name]))
                return f"`{module.name}.{param.name}` is not [{shape}]"
            if len(param.keys) < 2 or param.stack is not None:
                continue
            total = sum(param.sizes, Dim.const(0))
            if len(param.sizes) != len(param.keys) or not _same_dims(
                program, (total,), param.shape[:1]
            ):
                return f"the pieces of `{module.name}.{param.name}` do not add up"
    return None


def _same_dims(program: Program, a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    return _same_shape(program, TensorType(a), TensorType(b))


def keys_given(program: Program, graph: Graph) -> str | None:
    """Every parameter comes from the checkpoint, or is another one."""
    for module in graph.modules:
        for param in module.params:
            if not param.keys and param.tied is None:
                return f"`{module.name}.{param.name}` comes from no tensor of the checkpoint"
    return None


def keys_unique(program: Program) -> str | None:
    """No tensor of a checkpoint is read twice."""
    owners: dict[tuple[str, tuple[str, ...]], str] = {}
    for path, turns, module in _walk(program, program.entry, "", ()):
        for param in module.params:
            for key in param.keys:
                other = owners.setdefault((key, turns), path)
                if other != path or param.keys.count(key) > 1:
                    return f"the tensor `{key}` is read for `{other}` and for `{path}`"
    return None


def _walk(
    program: Program, graph: str, path: str, turns: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, ...], Module]]:
    """Yield (path, turns, module) for the whole module tree.

    Graphs that take turns in a repeat have different indices, so each of them is a turn.
    """
    for module in program.graphs[graph].modules:
        name = f"{path}.{module.name}" if path else module.name
        yield name, turns, module
        several = len(module.graphs) > 1
        for child in module.graphs:
            inner = f"{name}.{child}" if several else name
            yield from _walk(program, child, inner, (*turns, child) if several else turns)


def ties_exist(program: Program) -> str | None:
    """What a parameter is tied to is a parameter of the same shape that is not tied itself."""
    known = {f"{path}.{p.name}": p for path, _, m in program.walk() for p in m.params}
    for path, param in known.items():
        if param.tied is None:
            continue
        other = known.get(param.tied)
        if other is None or other.tied is not None:
            return f"`{path}` is tied to `{param.tied}`, which is not there"
        if not _same_dims(program, param.shape, other.shape):
            return f"`{path}` is tied to `{param.tied}`, which has another shape"
    return None


RULES = (
    defined_before_use,
    named_once,
    modules_exist,
    kinds_match,
    calls_match,
    types_match,
    shapes_match,
    keys_given,
)
PROGRAM_RULES = (keys_unique, ties_exist)
