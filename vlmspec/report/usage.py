"""Which parameters of a program are read, and which are only stored."""

from collections.abc import Iterator
from typing import Any

from vlmspec.compiler.ir.graph import Program
from vlmspec.report.accounting import count_module, repeats


def live(program: Program) -> Program:
    """The program without what nothing reads, before any fusion."""
    from vlmspec.compiler.passes.eliminate_dead_code import EliminateDeadCode
    from vlmspec.compiler.pipeline import PASSES, Context

    for step in PASSES:
        program = step.run(program, Context())
        if isinstance(step, EliminateDeadCode):
            break
    return program


def reads(program: Program) -> dict[str, list[range]]:
    """Paths of the modules that live nodes use; for a repeat, which of its layers run."""
    found: dict[str, list[range]] = {}

    def visit(name: str, prefix: str) -> None:
        graph = program.graphs[name]
        for node in graph.nodes:
            if node.module is None:
                continue
            path = prefix + node.module
            spans = found.setdefault(path, [])
            inner = path + "."
            if node.op == "repeat":
                bounds = (node.attrs.start, node.attrs.stop)
                spans.append(range(*(bound.value(program.sizes) for bound in bounds)))
                inner = path + ".{i}."
            own = next((m for m in graph.modules if m.name == node.module), None)
            for child in own.graphs if own else ():
                visit(child, inner)

    visit(program.entry, "")
    for path, _, module in program.walk():
        for param in module.params:
            if path in found and param.tied:
                found.setdefault(param.tied.rpartition(".")[0], [])
    return found


def unused(program: Program) -> list[dict[str, Any]]:
    """Modules whose parameters are stored and never read, outermost first.

    Args:
        program: without dead nodes; see `live`.
    """
    return list(_unused(program, program.entry, "", reads(program), 1))


def _unused(
    program: Program, name: str, prefix: str, used: dict[str, list[range]], times: int
) -> Iterator[dict[str, Any]]:
    for module in program.graphs[name].modules:
        path = prefix + module.name
        size = count_module(program, module)
        if not any(read == path or read.startswith(f"{path}.") for read in used):
            if size:
                yield {"module": path, "parameters": size * times}
            continue
        instances, inner = 1, f"{path}."
        if module.kind == "repeat":
            instances, inner = repeats(module, program.sizes), f"{path}.{{i}}."
            idle = sorted(set(range(instances)).difference(*used[path]))
            for first, last in _groups(idle):
                label = f"{path}.{first}" + (f"-{last}" if last > first else "")
                amount = size // instances * (last - first + 1) * times
                yield {"module": label, "parameters": amount}
            instances -= len(idle)
        for child in module.graphs:
            yield from _unused(program, child, inner, used, times * instances)


def _groups(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers, as first and last."""
    first = None
    for index, number in enumerate(numbers):
        first = number if first is None else first
        if index + 1 == len(numbers) or numbers[index + 1] != number + 1:
            yield first, number
            first = None
