"""Symbolic dimensions: integer polynomials over named sizes, `//`, `%`, `min` and `max`.

A `Dim` is kept in normal form: a sum of monomials with integer coefficients, where a monomial is a
sorted product of atoms and an atom is a symbol or an irreducible call. Equal normal forms are equal
objects, so shapes are compared with `==` and used as keys.

Division follows Python (floor). Sizes are positive, so a factor common to dividend and divisor is
cancelled: `(a * b) // a` is `b`. Wherever the expression as written is defined, its normal form has
the same value; the normal form may also have a value where the expression would divide by zero.
"""

import keyword
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache

from vlmspec.compiler.ir import polynomial
from vlmspec.compiler.ir.atom import Terms, evaluate, format_terms, symbols

_NAME = re.compile(r"[a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*", re.ASCII)


class Dim:
    """One dimension of a shape: an immutable symbolic integer in normal form.

    A constant `Dim` equals, and hashes as, the `int` of the same value.
    """

    __slots__ = ("_hash", "_terms", "_text")

    _terms: Terms
    _text: str | None
    _hash: int

    def __init__(self, value: "int | str | Dim" = 0) -> None:
        self._set(Dim.of(value)._terms)

    def _set(self, terms: Terms) -> None:
        self._terms = terms
        self._text = None
        constant = polynomial.as_int(terms)
        self._hash = hash(terms) if constant is None else hash(constant)

    @staticmethod
    def of(value: "int | str | Dim") -> "Dim":
        """Make a dimension of an integer, of the text of an expression, or of a dimension.

        Raises:
            ExpressionError: if the text is not an expression (a ValueError).
            TypeError: if `value` is of another type; booleans are not sizes.
        """
        if isinstance(value, Dim):
            return value
        if isinstance(value, str):
            # Imported late: the parser builds dimensions, so it depends on this module.
            from vlmspec.compiler.ir.expression import parse_expression

            return parse_expression(value)
        return Dim.const(value)

    @staticmethod
    def const(value: int) -> "Dim":
        """Make a constant dimension."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"a dimension is an integer or an expression, not {value!r}")
        return _const(int(value))

    @staticmethod
    def sym(name: str) -> "Dim":
        """Make the dimension of one symbol: lower-case words joined by dots.

        Raises:
            ValueError: if `name` cannot be a symbol, see `check_name`.
        """
        return _sym(name)

    @property
    def terms(self) -> Terms:
        """The normal form: (atoms, coefficient) by falling degree, none of them zero."""
        return self._terms

    @property
    def is_const(self) -> bool:
        """Whether no symbol occurs."""
        return polynomial.as_int(self._terms) is not None

    def as_int(self) -> int | None:
        """Return the value of a constant, and None where a symbol occurs."""
        return polynomial.as_int(self._terms)

    def symbols(self) -> frozenset[str]:
        """Return the names that occur, those inside calls included."""
        return symbols(self._terms)

    def value(self, env: Mapping[str, int]) -> int:
        """Evaluate with the sizes of `env`.

        Raises:
            KeyError: if a symbol has no value; the key is its name.
            ValueError: if a divisor is zero.
        """
        return evaluate(self._terms, env)

    def subs(self, mapping: Mapping[str, "Dim | int"]) -> "Dim":
        """Replace symbols, all at once; names that `mapping` does not have stay.

        Raises:
            ValueError: if a divisor becomes zero.
        """
        known = {name: Dim.of(mapping[name])._terms for name in self.symbols() if name in mapping}
        return _make(polynomial.substitute(self._terms, known)) if known else self

    def render(self, rename: Callable[[str], str]) -> str:
        """Print as a Python expression with each symbol replaced by `rename(symbol)`.

        Args:
            rename: gives the text of a symbol: a name, an attribute path or a literal, that is,
                text that needs no parentheses inside a product.
        """
        return format_terms(self._terms, rename)

    def __str__(self) -> str:
        if self._text is None:
            self._text = format_terms(self._terms)
        return self._text

    def __repr__(self) -> str:
        return f"Dim({str(self)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _make, (self._terms,)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dim):
            return self is other or self._terms == other._terms
        if isinstance(other, int):
            return polynomial.as_int(self._terms) == other
        return NotImplemented

    def __neg__(self) -> "Dim":
        return _make(polynomial.negate(self._terms))

    def __add__(self, other: "Dim | int") -> "Dim":
        terms = _operand(other)
        return NotImplemented if terms is None else _make(polynomial.add(self._terms, terms))

    def __sub__(self, other: "Dim | int") -> "Dim":
        terms = _operand(other)
        return (
            NotImplemented
            if terms is None
            else _make(polynomial.add(self._terms, polynomial.negate(terms)))
        )

    def __mul__(self, other: "Dim | int") -> "Dim":
        terms = _operand(other)
        return NotImplemented if terms is None else _make(polynomial.multiply(self._terms, terms))

    def __floordiv__(self, other: "Dim | int") -> "Dim":
        terms = _operand(other)
        return (
            NotImplemented if terms is None else _make(polynomial.floor_divide(self._terms, terms))
        )

    def __mod__(self, other: "Dim | int") -> "Dim":
        terms = _operand(other)
        return NotImplemented if terms is None else _make(polynomial.modulo(self._terms, terms))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: int) -> "Dim":
        terms = _operand(other)
        return (
            NotImplemented
            if terms is None
            else _make(polynomial.add(terms, polynomial.negate(self._terms)))
        )

    def __rfloordiv__(self, other: int) -> "Dim":
        terms = _operand(other)
        return (
            NotImplemented if terms is None else _make(polynomial.floor_divide(terms, self._terms))
        )

    def __rmod__(self, other: int) -> "Dim":
        terms = _operand(other)
        return NotImplemented if terms is None else _make(polynomial.modulo(terms, self._terms))


def dim_min(*dims: Dim | int) -> Dim:
    """Return the smallest of one or more dimensions."""
    return _make(polynomial.extremum("min", [Dim.of(dim)._terms for dim in dims]))


def dim_max(*dims: Dim | int) -> Dim:
    """Return the largest of one or more dimensions."""
    return _make(polynomial.extremum("max", [Dim.of(dim)._terms for dim in dims]))


def check_name(name: str) -> str | None:
    """Say why `name` cannot be a symbol, or return None where it can.

    Keywords and leading double underscores are refused because emitted code uses the parts of a
    name as attributes.
    """
    if not _NAME.fullmatch(name):
        return f"`{name}` is not the name of a size; names are lower-case words joined by dots"
    if name in ("min", "max"):
        return f"`{name}` is a function, not the name of a size"
    for part in name.split("."):
        if keyword.iskeyword(part):
            return f"`{part}` is a Python keyword and cannot name a size"
        if part.startswith("__"):
            return f"`{part}` starts with `__` and cannot name a size"
    return None


def prove_equal(a: Dim | int, b: Dim | int, env: Mapping[str, int]) -> bool:
    """Tell whether two dimensions are certainly equal under the known sizes.

    Args:
        a: one dimension.
        b: the other.
        env: values of the known symbols. Symbols without a value must match symbolically.

    Returns:
        True if both are equal; False if they differ, cannot be compared, or divide by zero.
    """
    left, right = Dim.of(a), Dim.of(b)
    if left == right:
        return True
    try:
        return left.subs(env) == right.subs(env)
    except ValueError:
        return False


def _make(terms: Terms) -> Dim:
    dim = Dim.__new__(Dim)
    dim._set(terms)
    return dim


@lru_cache(maxsize=4096)
def _const(value: int) -> Dim:
    return _make(polynomial.constant(value))


@lru_cache(maxsize=4096)
def _sym(name: str) -> Dim:
    fault = check_name(name)
    if fault is not None:
        raise ValueError(fault)
    return _make((((sys.intern(str(name)),), 1),))


def _operand(value: object) -> Terms | None:
    if isinstance(value, Dim):
        return value.terms
    return polynomial.constant(int(value)) if isinstance(value, int) else None
