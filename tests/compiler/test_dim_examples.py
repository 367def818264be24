"""Symbolic dimensions: examples worked by hand."""

import pytest

from vlmspec.compiler.ir.dim import Dim

# Worked by hand: expression, canonical text, value at the sizes below.
SIZES = {"a": 7, "b": 3, "c": 2, "d": 10}
EXAMPLES = [
    ("0", "0", 0),
    ("-5", "-5", -5),
    ("a", "a", 7),
    ("3 * a", "a * 3", 21),
    ("b * a", "a * b", 21),
    ("1 + a", "a + 1", 8),
    ("a - a", "0", 0),
    ("b - a", "b - a", -4),
    ("a - b", "a - b", 4),
    ("1 - a", "-a + 1", -6),
    ("-a * b", "-a * b", -21),
    ("(a + b) * (a - b)", "a * a - b * b", 40),
    ("(a + 1) * (a + 1)", "a * a + a * 2 + 1", 64),
    ("7 // 2", "3", 3),
    ("-7 // 2", "-4", -4),
    ("7 // -2", "-4", -4),
    ("-7 % 3", "2", 2),
    ("7 % -3", "-2", -2),
    ("a // 1", "a", 7),
    ("a // -1", "-a", -7),
    ("a // b", "a // b", 2),
    ("-a // b", "(-a) // b", -3),
    ("-(a // b)", "-(a // b)", -2),
    ("a // -b", "(-a) // b", -3),
    ("(2 * a + 4 * b) // 2", "a + b * 2", 13),
    ("(2 * a + b) // 2", "a + b // 2", 8),
    ("a * b // a", "b", 3),
    ("a * b // (a * c)", "b // c", 1),
    ("6 * a // 4", "a * 3 // 2", 10),
    ("a * (b // c)", "a * (b // c)", 7),
    ("a // (b * c)", "a // (b * c)", 1),
    ("a // (b // c)", "a // (b // c)", 7),
    ("a // b // c", "(a // b) // c", 1),
    ("(a + b) // c", "(a + b) // c", 5),
    ("(a + b) // (a + b)", "1", 1),
    ("a % 1", "0", 0),
    ("3 * a % 3", "0", 0),
    ("(3 * a + b) % 3", "b % 3", 0),
    ("a % b", "a % b", 1),
    ("-a % b", "(-a) % b", 2),
    ("a % -b", "-((-a) % b)", -2),
    ("2 * a % (2 * b)", "(a % b) * 2", 2),
    ("2 * (a % b)", "(a % b) * 2", 2),
    ("a % b % c", "(a % b) % c", 1),
    ("0 // a", "0", 0),
    ("min(a)", "a", 7),
    ("min(3, 5)", "3", 3),
    ("max(3, 5)", "5", 5),
    ("min(b, a, 4)", "min(a, b, 4)", 3),
    ("min(a, min(b, a), 9, 4)", "min(a, b, 4)", 3),
    ("max(a, min(b, a))", "max(a, min(a, b))", 7),
    ("min(a, a + 1)", "a", 7),
    ("max(a, a + 1)", "a + 1", 8),
    ("2 * max(a, d) - 1", "max(a, d) * 2 - 1", 19),
    ("(d // b) * (d // b) + 1", "(d // b) * (d // b) + 1", 10),
    ("((d + 3) // 4) * 4", "((d + 3) // 4) * 4", 12),
]


@pytest.mark.parametrize(("source", "text", "value"), EXAMPLES)
def test_example_has_the_hand_computed_text_and_value(source: str, text: str, value: int) -> None:
    dim = Dim.of(source)
    assert str(dim) == text
    assert dim.value(SIZES) == value


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a", "b"),
        ("a", "a + 1"),
        ("a // b", "a % b"),
        ("a // b", "b // a"),
        ("a - b", "b - a"),
        ("(a // b) * c", "a // (b * c)"),
        ("(a // b) * b", "a"),
        ("min(a, b)", "max(a, b)"),
        ("-(a // b)", "-a // b"),
        ("a * b // c", "a * (b // c)"),
    ],
)
def test_different_dims_are_different(left: str, right: str) -> None:
    assert Dim.of(left) != Dim.of(right)
