"""Arithmetic on the normal form of symbolic dimensions.

Every rewrite is exact over the integers under floor division, on the assumption that a factor
common to dividend and divisor is not zero.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import gcd
from typing import Literal

from vlmspec.compiler.ir.atom import Call, Monomial, Terms, check_size, format_terms

# Expansion is exponential in the worst case; these bounds turn a hostile spec into an error.
MAX_TERMS = 256
MAX_PRODUCTS = 4096

ZERO: Terms = ()
ONE: Terms = (((), 1),)


def constant(value: int) -> Terms:
    """Return the normal form of an integer."""
    return (((), value),) if value else ZERO


def as_int(terms: Terms) -> int | None:
    """Return the value of a constant, and None where an atom occurs."""
    if not terms:
        return 0
    return None if terms[0][0] else terms[0][1]


def negate(terms: Terms) -> Terms:
    """Return the terms with their signs turned."""
    return tuple([(monomial, -coefficient) for monomial, coefficient in terms])


def add(left: Terms, right: Terms) -> Terms:
    """Add two sums."""
    if not left or not right:
        return left or right
    sums = dict(left)
    for monomial, coefficient in right:
        sums[monomial] = sums.get(monomial, 0) + coefficient
    return _collect(sums)


def multiply(left: Terms, right: Terms) -> Terms:
    """Multiply two sums out."""
    products = len(left) * len(right)
    if products > MAX_PRODUCTS:
        raise ValueError(f"expression has more than {MAX_TERMS} terms once multiplied out")
    sums: dict[Monomial, int] = {}
    for a, m in left:
        for b, n in right:
            key = tuple(sorted(a + b)) if a and b else a or b
            sums[key] = sums.get(key, 0) + m * n
    result = _collect(sums)
    # Small products cannot grow faster than the text that asks for them.
    if products > 8:
        check_size(result)
    return result


@lru_cache(maxsize=4096)
def floor_divide(left: Terms, right: Terms) -> Terms:
    """Divide and round down."""
    _check_divisor(left, right, "//")
    _, left, right = _cancel(left, right)
    whole, rest = _split(left, right)
    a, b = as_int(rest), as_int(right)
    if a == 0:
        return whole
    if a is not None and b is not None:
        return add(whole, constant(a // b))
    if whole:
        # The rest may share a factor with the divisor that the whole dividend did not.
        return add(whole, floor_divide(rest, right))
    return _atom("//", (rest, right))


@lru_cache(maxsize=4096)
def modulo(left: Terms, right: Terms) -> Terms:
    """Return the remainder of the floor division; it has the sign of the divisor."""
    _check_divisor(left, right, "%")
    factor, left, right = _cancel(left, right)
    whole, rest = _split(left, right)
    a, b = as_int(rest), as_int(right)
    if a == 0:
        return ZERO
    if a is not None and b is not None:
        return multiply(factor, constant(a % b))
    if whole:
        return multiply(factor, modulo(rest, right))
    return multiply(factor, _atom("%", (rest, right)))


def extremum(op: Literal["min", "max"], operands: Iterable[Terms]) -> Terms:
    """Return the smallest or the largest operand."""
    pick = min if op == "min" else max
    # Operands that differ only by a constant are comparable, so one of them stays for each sum of
    # the other terms; constants are the operands whose sum is empty.
    best: dict[Terms, int] = {}
    for terms in _flatten(op, operands):
        offset = 0
        if terms and not terms[-1][0]:
            terms, offset = terms[:-1], terms[-1][1]
        best[terms] = pick(best[terms], offset) if terms in best else offset
    if not best:
        raise ValueError(f"`{op}` needs at least one operand")
    left = [add(terms, constant(offset)) for terms, offset in best.items()]
    if len(left) == 1:
        return left[0]
    check_size(*left)
    left.sort(key=lambda terms: (as_int(terms) is not None, format_terms(terms)))
    return _atom(op, tuple(left))


def substitute(terms: Terms, mapping: Mapping[str, Terms]) -> Terms:
    """Replace symbols, all at once; names that `mapping` does not have stay."""
    total = ZERO
    for monomial, coefficient in terms:
        product = constant(coefficient)
        for atom in monomial:
            product = multiply(product, _substitute_atom(atom, mapping))
        total = add(total, product)
    return total


def _substitute_atom(atom: str, mapping: Mapping[str, Terms]) -> Terms:
    if not isinstance(atom, Call):
        return mapping[atom] if atom in mapping else (((atom,), 1),)
    if atom.symbols.isdisjoint(mapping):
        return (((atom,), 1),)
    args = [substitute(arg, mapping) for arg in atom.args]
    match atom.op:
        case "min" | "max" as op:
            return extremum(op, args)
        case "//":
            return floor_divide(args[0], args[1])
        case _:
            return modulo(args[0], args[1])


def _atom(op: str, args: tuple[Terms, ...]) -> Terms:
    return (((Call(op, args),), 1),)


def _order(term: tuple[Monomial, int]) -> tuple[int, Monomial]:
    return -len(term[0]), term[0]


def _collect(sums: dict[Monomial, int]) -> Terms:
    terms = [term for term in sums.items() if term[1]]
    if len(terms) > MAX_TERMS:
        raise ValueError(f"expression has more than {MAX_TERMS} terms once multiplied out")
    if len(terms) > 1:
        terms.sort(key=_order)
    return tuple(terms)


def _check_divisor(left: Terms, right: Terms, op: str) -> None:
    if not right:
        # The text of a dividend may be long; its beginning is enough to find it.
        raise ValueError(f"division by zero in `{format_terms(left)[:200]} {op} 0`")


def _cancel(left: Terms, right: Terms) -> tuple[Terms, Terms, Terms]:
    """Divide both sides by their greatest common monomial; the divisor ends up leading positive.

    Exact for either operator: `ka // kb` is `a // b` and `ka % kb` is `k * (a % b)` for any nonzero
    `k`, negative ones included.

    Returns:
        The common monomial, the dividend and the divisor.
    """
    terms = right + left
    scale = gcd(*[coefficient for _, coefficient in terms])
    if right[0][1] < 0:
        scale = -scale
    common = terms[0][0]
    for monomial, _ in terms[1:]:
        if not common:
            break
        common = _shared(common, monomial)
    if scale == 1 and not common:
        return ONE, left, right
    factor: Terms = ((common, scale),)
    return factor, _split(left, factor)[0], _split(right, factor)[0]


def _split(left: Terms, right: Terms) -> tuple[Terms, Terms]:
    """Write `left` as `whole * right + rest`, `whole` from the terms that divide exactly."""
    if len(right) != 1:
        return (ONE, ZERO) if left == right else (ZERO, left)
    ((divisor, scale),) = right
    whole: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, coefficient in left:
        quotient = _without(monomial, divisor) if coefficient % scale == 0 else None
        if quotient is None:
            rest[monomial] = coefficient
        else:
            whole[quotient] = coefficient // scale
    return _collect(whole), _collect(rest)


def _shared(left: Monomial, right: Monomial) -> Monomial:
    rest = list(right)
    shared: list[str] = []
    for atom in left:
        if atom in rest:
            rest.remove(atom)
            shared.append(atom)
    return tuple(shared)


def _without(monomial: Monomial, divisor: Monomial) -> Monomial | None:
    if not divisor:
        return monomial
    rest = list(monomial)
    for atom in divisor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _flatten(op: str, operands: Iterable[Terms]) -> Iterable[Terms]:
    for terms in operands:
        inner = terms[0][0] if len(terms) == 1 and terms[0][1] == 1 else ()
        if len(inner) == 1 and isinstance(inner[0], Call) and inner[0].op == op:
            yield from inner[0].args
        else:
            yield terms
