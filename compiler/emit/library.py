"""Functions of the kernel library, cut out of its source files for an emitted package.

The library's files are ordinary tested Python; nothing of them is imported here, so compiling needs no torch.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlmspec import kernels

FAMILIES = ("activation", "norm", "rope", "attention", "splice")


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the library: its source, and the other functions of the library that it calls."""

    name: str
    source: str
    calls: tuple[str, ...]
    modules: tuple[str, ...]


@cache
def library() -> dict[str, Function]:
    """Every function of the library, families in order."""
    folder = Path(str(kernels.__file__)).parent
    trees = {f: (folder / f / "reference.py").read_text(encoding="utf-8") for f in FAMILIES}
    parsed = {family: ast.parse(text) for family, text in trees.items()}
    known = {
        n.name for tree in parsed.values() for n in tree.body if isinstance(n, ast.FunctionDef)
    }
    found: dict[str, Function] = {}
    for family, tree in parsed.items():
        lines = trees[family].splitlines()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                calls = tuple(sorted((names & known) - {node.name}))
                found[node.name] = Function(node.name, source, calls, tuple(sorted(names)))
    return found


def closure(names: set[str]) -> list[Function]:
    """The named functions and those that they call, in the library's order."""
    known = library()
    needed: set[str] = set()
    waiting = sorted(names)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += known[name].calls
    return [function for name, function in known.items() if name in needed]


def functional_source(names: set[str], header: str) -> str:
    """The file `functional.py` of a package that uses these functions."""
    functions = closure(names)
    used = {name for function in functions for name in function.modules}
    text = "\n".join(function.source for function in functions)
    imports = ["import math"] if "math" in used else []
    blank = [""] if imports else []
    torch = [
        line
        for line, wanted in (
            ("import torch", "torch" in used),
            ("import torch.nn.functional as F", "F" in used),
            ("from torch import Tensor", "Tensor" in used),
        )
        if wanted
    ]
    local = ["", "from .generation import KVCache"] if "KVCache" in text else []
    body = "\n\n\n".join(function.source for function in functions).replace(
        '"KVCache | None"', "KVCache | None"
    )
    return header + "\n".join([*imports, *blank, *torch, *local]) + "\n\n\n" + body + "\n"
