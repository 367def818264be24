"""Atoms of symbolic dimensions, their normal form as plain tuples, and how it is printed."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

# A monomial is a sorted product of atoms; terms are sorted by falling degree, none of them zero.
Monomial: TypeAlias = tuple[str, ...]
Terms: TypeAlias = tuple[tuple[Monomial, int], ...]

# Expansion is exponential in the worst case; these bounds turn a hostile spec into an error.
MAX_TEXT = 8000
MAX_DEPTH = 64


class Call(str):
    """An irreducible `//`, `%`, `min` or `max`, identified by its canonical text.

    Being a string makes it sort, hash and compare beside symbol names at the speed of strings; no
    symbol has the text of a call.
    """

    __slots__ = ("args", "depth", "op", "symbols")

    op: str
    args: tuple[Terms, ...]
    depth: int
    symbols: frozenset[str]

    def __new__(cls, op: str, args: tuple[Terms, ...]) -> "Call":
        depth = 1 + max(_depth(arg) for arg in args)
        if depth > MAX_DEPTH:
            raise ValueError(f"expression nests more than {MAX_DEPTH} `//`, `%`, `min` and `max`")
        check_size(*args)
        self = super().__new__(cls, _format_call(op, args, _itself))
        self.op = op
        self.args = args
        self.depth = depth
        self.symbols = frozenset[str]().union(*(symbols(arg) for arg in args))
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return Call, (self.op, self.args)

    def evaluate(self, env: Mapping[str, int]) -> int:
        """Compute the value of the call."""
        if self.op == "min":
            return min([evaluate(arg, env) for arg in self.args])
        if self.op == "max":
            return max([evaluate(arg, env) for arg in self.args])
        left, right = self.args
        divisor = evaluate(right, env)
        if divisor == 0:
            raise ValueError(f"division by zero: `{format_terms(right)}` is 0 in `{str(self)}`")
        value = evaluate(left, env)
        return value // divisor if self.op == "//" else value % divisor


def evaluate(terms: Terms, env: Mapping[str, int]) -> int:
    """Compute the value of a sum; a KeyError names a symbol without value."""
    total = 0
    for monomial, product in terms:
        for atom in monomial:
            product *= atom.evaluate(env) if isinstance(atom, Call) else env[atom]
        total += product
    return total


def symbols(terms: Terms) -> frozenset[str]:
    """Return the names that occur, those inside calls included."""
    found: set[str] = set()
    for monomial, _ in terms:
        for atom in monomial:
            if isinstance(atom, Call):
                found |= atom.symbols
            else:
                found.add(atom)
    return frozenset(found)


def check_size(*sums: Terms) -> None:
    """Refuse sums whose text would be unreasonably long, before the text is made."""
    size = sum([len(atom) + 3 for terms in sums for monomial, _ in terms for atom in monomial])
    if size > MAX_TEXT:
        raise ValueError("expression is too large once multiplied out")


def format_terms(terms: Terms, rename: Callable[[str], str] | None = None) -> str:
    """Print a sum as canonical text, or as Python with each symbol renamed."""
    return _format_sum(terms, _itself if rename is None else _renderer(rename))


def _depth(terms: Terms) -> int:
    depths = [atom.depth for mono, _ in terms for atom in mono if isinstance(atom, Call)]
    return max(depths, default=0)


def _itself(atom: str) -> str:
    return atom


def _renderer(rename: Callable[[str], str]) -> Callable[[str], str]:
    def render(atom: str) -> str:
        if isinstance(atom, Call):
            return _format_call(atom.op, atom.args, render)
        return rename(atom)

    return render


def _format_sum(terms: Terms, write: Callable[[str], str]) -> str:
    # Positive terms lead so that a difference reads `a - b`; constants come last.
    ordered = sorted(terms, key=lambda term: (not term[0], term[1] < 0))
    parts: list[str] = []
    for monomial, coefficient in ordered:
        if coefficient > 0:
            lead = " + " if parts else ""
            parts.append(lead + _format_product(monomial, coefficient, write))
        else:
            lead = " - " if parts else "-"
            # A bare `a // b` behind a leading minus would negate `a` before it divides.
            tight = not parts
            parts.append(lead + _format_product(monomial, -coefficient, write, tight))
    return "".join(parts) or "0"


def _format_product(
    monomial: Monomial, scale: int, write: Callable[[str], str], tight: bool = False
) -> str:
    tight = tight or len(monomial) + (scale != 1) > 1
    factors: list[str] = []
    for atom in monomial:
        text = write(atom)
        factors.append(f"({text})" if tight and _divides(atom) else text)
    if scale != 1 or not factors:
        factors.append(str(scale))
    return " * ".join(factors)


def _divides(atom: str) -> bool:
    return isinstance(atom, Call) and atom.op in ("//", "%")


def _format_call(op: str, args: tuple[Terms, ...], write: Callable[[str], str]) -> str:
    if op in ("min", "max"):
        return f"{op}({', '.join([_format_sum(arg, write) for arg in args])})"
    left, right = args
    return f"{_format_side(left, write, True)} {op} {_format_side(right, write, False)}"


def _format_side(terms: Terms, write: Callable[[str], str], dividend: bool) -> str:
    # `a * b // c` reads from the left as it should; a product that divides needs parentheses.
    if len(terms) == 1 and terms[0][1] > 0:
        monomial, scale = terms[0]
        text = _format_product(monomial, scale, write, True)
        product = len(monomial) + (scale != 1) > 1
        return f"({text})" if product and not dividend else text
    text = _format_sum(terms, write)
    return f"({text})" if terms else text
