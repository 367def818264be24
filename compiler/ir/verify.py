"""Well-formedness of programs: what must hold between passes."""

from vlmspec.compiler.ir.graph import Graph, Program


class IllFormed(AssertionError):
    """A pass has broken a program; always a fault of the compiler."""


def verify(program: Program) -> None:
    """Check every graph.

    Raises:
        IllFormed: naming the graph and what is wrong.
    """
    for graph in program.graphs.values():
        for rule in RULES:
            problem = rule(program, graph)
            if problem:
                raise IllFormed(f"graph {graph.name}: {problem}")


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
    for node in graph.nodes:
        if node.module is not None and find_module(program, graph, node.module) is None:
            return f"{node.op} uses the module `{node.module}`, which is not declared"
    for module in graph.modules:
        for child in module.graphs:
            if child not in program.graphs:
                return f"module `{module.name}` is of the graph `{child}`, which is not there"
    return None


def calls_match(program: Program, graph: Graph) -> str | None:
    """A call gives each input of its graph a value."""
    for node in graph.nodes:
        if node.op not in ("call", "repeat"):
            continue
        module = find_module(program, graph, node.module or "")
        assert module is not None
        for child in module.graphs:
            wanted = [v.name for v in program.graphs[child].inputs]
            if [role for role, _ in node.inputs] != wanted:
                return f"{node.op} @{node.module} gives {[r for r, _ in node.inputs]}, not {wanted}"
    return None


def find_module(program: Program, graph: Graph, path: str):
    """The module at a path such as `text.embed`, or None."""
    first, _, rest = path.partition(".")
    module = next((m for m in graph.modules if m.name == first), None)
    if module is None or not rest:
        return module
    return find_module(program, program.graphs[module.graphs[0]], rest)


RULES = (defined_before_use, named_once, modules_exist, calls_match)
