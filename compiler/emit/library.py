"""Definitions of the kernel library, cut out of its source files for an emitted package.

The library's files are ordinary tested Python; nothing of them is imported here, so compiling needs
no torch.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vlmspec import kernels

FILES = (
    "linear/cpu.py",
    "activation/reference.py",
    "norm/reference.py",
    "rope/reference.py",
    "rope/axes.py",
    "positions/reference.py",
    "packed/reference.py",
    "attention/reference.py",
    "recurrence/reference.py",
    "latent/reference.py",
    "moe/reference.py",
    "splice/reference.py",
    "contrastive/reference.py",
    "sincos/reference.py",
    "tiles/reference.py",
    "cross_attention/reference.py",
    "relative_bias/reference.py",
    "spatial/reference.py",
    "patches/reference.py",
    "anyres/reference.py",
    "frames/reference.py",
)
STANDARD = ("itertools", "math")
ABSTRACT = ("Callable", "Iterable", "Iterator")
STATES = ("Cache", "KVCache", "RecurrentState")
TORCH_IMPORTS = (
    ("torch", "import torch"),
    ("F", "import torch.nn.functional as F"),
)


@dataclass(frozen=True, slots=True)
class Definition:
    """A function, class or constant of the library: its source, and every name that it mentions."""

    name: str
    source: str
    mentions: frozenset[str]
    constant: bool


@cache
def library() -> dict[str, Definition]:
    """Every definition of the library, in order."""
    folder = Path(str(kernels.__file__)).parent
    found: dict[str, Definition] = {}
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if (defined := _name(node)) is not None:
                found[defined] = _definition(defined, node, text)
    return found


def _name(node: ast.stmt) -> str | None:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name
        case _:
            return None


def _definition(name: str, node: ast.stmt, text: str) -> Definition:
    source = "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])
    # The classes of states live in a file of their own, which the library cannot import.
    for state in STATES:
        source = source.replace(f'"{state} | None"', f"{state} | None")
    mentions = frozenset(n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name))
    return Definition(name, source, mentions - {name}, isinstance(node, ast.Assign))


def closure(names: set[str]) -> list[Definition]:
    """The named definitions and those that they mention, in the library's order."""
    known = library()
    needed: set[str] = set()
    waiting = sorted(names)
    while waiting:
        name = waiting.pop()
        if name in known and name not in needed:
            needed.add(name)
            waiting += sorted(known[name].mentions)
    return [definition for name, definition in known.items() if name in needed]


def functional_source(names: set[str], header: str) -> str:
    """The file `functional.py` of a package that uses these definitions."""
    definitions = closure(names)
    used = frozenset().union(*(d.mentions for d in definitions))
    standard = [f"import {name}" for name in STANDARD if name in used]
    abstract = [name for name in ABSTRACT if name in used]
    standard += [f"from collections.abc import {', '.join(abstract)}"] if abstract else []
    groups = [standard]
    torch = [line for name, line in TORCH_IMPORTS if name in used]
    from_torch = [name for name in ("Tensor", "nn") if name in used]
    groups.append([*torch, f"from torch import {', '.join(from_torch)}"] if from_torch else torch)
    states = [name for name in STATES if name in used]
    groups.append([f"from .generation import {', '.join(states)}"] if states else [])
    imports = "\n\n".join("\n".join(group) for group in groups if group)
    constants = [d.source for d in definitions if d.constant]
    rest = [d.source for d in definitions if not d.constant]
    blocks = ["\n".join([imports, *([""] if constants else []), *constants]), *rest]
    return header + "\n\n\n".join(blocks) + "\n"
