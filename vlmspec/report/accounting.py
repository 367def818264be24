"""Counting parameters of a program, without a tensor."""

from collections.abc import Mapping
from math import prod

from vlmspec.compiler.ir.graph import Param, Program

MAX_ELEMENTS = 2**40
MAX_PARAMETERS = 10**13


def numel(param: Param, sizes: Mapping[str, int | float]) -> int:
    """Number of elements of one tensor."""
    return prod(d.value(sizes) for d in param.shape)  # pyright: ignore[reportArgumentType]


def count(program: Program, graph: str | None = None) -> int:
    """Distinct parameters of a graph with all that it contains; of the whole model by default."""
    owner = program.graphs[graph or program.entry]
    total = 0
    for module in owner.modules:
        total += sum(numel(p, program.sizes) for p in module.params if p.tied is None)
        times = module.attrs.count.value(program.sizes) if module.kind == "repeat" else 1
        total += times * sum(count(program, child) for child in module.graphs)
    return total
