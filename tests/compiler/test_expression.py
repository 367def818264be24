"""The expression parser: what it accepts, and where it says that text is wrong."""

import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vlmspec.compiler.ir.dim import Dim, dim_max, dim_min
from vlmspec.compiler.ir.expression import (
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_LENGTH,
    ExpressionError,
    parse_expression,
)

A, B, C = (Dim.sym(name) for name in "abc")


@pytest.mark.parametrize(
    ("text", "dim"),
    [
        ("0", Dim.const(0)),
        (str(MAX_INTEGER), Dim.const(2**63)),
        ("vision.blocks.count", Dim.sym("vision.blocks.count")),
        ("_x1", Dim.sym("_x1")),
        ("min_pixels", Dim.sym("min_pixels")),
        ("a + b * c", A + (B * C)),
        ("(a + b) * c", (A + B) * C),
        ("a - b - c", (A - B) - C),
        ("a - (b - c)", A - (B - C)),
        ("a // b * c", (A // B) * C),
        ("a * b // c", (A * B) // C),
        ("a // b // c", (A // B) // C),
        ("a % b * c", (A % B) * C),
        ("-a // b", (-A) // B),
        ("-a % b", (-A) % B),
        ("a - -b", A + B),
        ("--a", A),
        ("a * 0 + b", B),
        ("a * -b", -(A * B)),
        ("min(a, b + 1, 4)", dim_min(A, B + 1, 4)),
        ("max(a, min(b, c)) * 2", dim_max(A, dim_min(B, C)) * 2),
        ("min(a)", A),
        (" a\n +\t1\r\n", A + 1),
        ("a+1", A + 1),
    ],
)
def test_expression_is_parsed_as_python_would(text: str, dim: Dim) -> None:
    assert parse_expression(text) == dim
    assert Dim.of(text) == dim


# text, offset, length, a part of the message
REFUSALS = [
    ("", 0, 1, "empty"),
    ("   ", 3, 1, "empty"),
    ("a ** 2", 2, 2, "`**` is not supported; multiply"),
    ("a / 2", 2, 1, "use `//`"),
    ("2 * 1.5", 4, 3, "not an integer"),
    ("a + .5", 4, 2, "not an integer"),
    ("1e5", 0, 3, "not an integer"),
    ("1.", 0, 2, "not an integer"),
    ("0x10", 0, 4, "neither"),
    ("1_000", 0, 5, "neither"),
    ("2a", 0, 2, "neither"),
    ("a * 007", 4, 3, "write `7`"),
    ("00", 0, 2, "write `0`"),
    ("abs(a)", 0, 3, "only `min` and `max`"),
    ("1 + a.bit_length()", 4, 12, "only `min` and `max`"),
    ("(a)(b)", 3, 1, "only `min` and `max`"),
    ("2(a)", 1, 1, "only `min` and `max`"),
    ("min", 0, 3, "is a function"),
    ("a + max", 4, 3, "is a function"),
    ("min()", 0, 3, "at least one"),
    ("min(a,)", 6, 1, "before `)`"),
    ("min(a b)", 6, 1, "operator before `b`"),
    ("min(a, b", 3, 1, "never closed"),
    ("(a, b)", 2, 1, "`,`"),
    ("a, b", 1, 1, "`,`"),
    ("a.__class__", 0, 11, "`__class__`"),
    ("__import__", 0, 10, "`__import__`"),
    ("(a).b", 3, 1, "`.`"),
    ("a.", 1, 1, "`.`"),
    ("a..b", 1, 1, "`.`"),
    ("a . b", 2, 1, "`.`"),
    ("a < b", 2, 1, "comparison"),
    ("a == b", 2, 2, "comparison"),
    ("a >= b", 2, 2, "comparison"),
    ("a = 1", 2, 1, "assignment"),
    ("'a'", 0, 1, "strings"),
    ('1 + "a"', 4, 1, "strings"),
    ("\u0430 + 1", 0, 1, "U+0430 CYRILLIC SMALL LETTER A"),
    ("a\u0430", 1, 1, "U+0430"),
    ("a * \u0662", 4, 1, "U+0662 ARABIC-INDIC DIGIT TWO"),
    ("a\u00a0+ 1", 1, 1, "U+00A0"),
    ("a \u2212 1", 2, 1, "U+2212 MINUS SIGN"),
    ("\ud800", 0, 1, "U+D800"),
    ("a\x00", 1, 1, "U+0000"),
    ("a[0]", 1, 1, "`[`"),
    ("${a}", 0, 1, "`$`"),
    ("a ^ b", 2, 1, "`^`"),
    ("Hidden", 0, 6, "lower-case"),
    ("a.B", 0, 3, "lower-case"),
    ("a + if", 4, 2, "keyword"),
    ("a.class", 0, 7, "keyword"),
    ("lambda: 1", 6, 1, "`:`"),
    ("a b", 2, 1, "operator before `b`"),
    ("a 2", 2, 1, "operator before `2`"),
    ("+a", 0, 1, "unary `+`"),
    ("a +", 3, 1, "ends too early"),
    ("-", 1, 1, "ends too early"),
    ("a + * b", 4, 1, "before `*`"),
    ("(a", 0, 1, "never closed"),
    ("(a + (b)", 0, 1, "never closed"),
    ("a)", 1, 1, "closes nothing"),
    ("()", 1, 1, "before `)`"),
    ("a // 0", 5, 1, "division by zero"),
    ("a % (b - b)", 4, 7, "division by zero"),
    ("7 // -0 + 1", 5, 2, "division by zero"),
    (str(MAX_INTEGER + 1), 0, 19, "greater than 2**63"),
    (f"{MAX_INTEGER} + 1", 20, 1, "greater than 2**63"),
    ("a * 4294967296 * 4294967296", 15, 1, "greater than 2**63"),
    ("9" * MAX_LENGTH, 0, MAX_LENGTH, "greater than 2**63"),
    ("a" * (MAX_LENGTH + 5), MAX_LENGTH, 5, "1005 characters"),
    ("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), MAX_DEPTH, 1, "nests"),
    ("min(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), 4 * MAX_DEPTH + 3, 1, "nests"),
    ("(" * MAX_LENGTH, MAX_DEPTH, 1, "nests"),
]


@pytest.mark.parametrize(("text", "offset", "length", "part"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusal_points_at_the_fault(text: str, offset: int, length: int, part: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse_expression(text)
    error = caught.value
    assert (error.offset, error.length) == (offset, length)
    assert part in error.message
    assert str(error) == error.message


def test_limits_are_reachable() -> None:
    assert parse_expression("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH) == A
    assert parse_expression("-" * (MAX_LENGTH - 2) + "a") == A
    assert parse_expression("a" * MAX_LENGTH) == Dim.sym("a" * MAX_LENGTH)
    # Depth is that of nesting, not the number of parentheses.
    assert parse_expression("+".join(["(a)"] * 200)) == A * 200


@pytest.mark.parametrize(
    "text",
    [
        "*".join(f"(a{i}+b{i}+c{i})" for i in range(50)),
        "*".join(["(a//b+c)"] * 100),
        "(" * 31 + "a" + "*(a+b//c)+d)//e" * 31,
        "*".join(["(a+b+c+d+e)"] * 80),
    ],
)
def test_hostile_expansion_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError, match=r"terms|too large|nests|2\*\*63"):
        parse_expression(text)


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ExpressionError("wrong", 3, 2)))
    assert (error.message, error.offset, error.length) == ("wrong", 3, 2)


@st.composite
def token_soup(draw: st.DrawFn) -> str:
    words = ["a", "vision.b", "3", "0", "+", "-", "*", "//", "%", "(", ")", ",", "min(", "max("]
    words += ["**", "/", ".", "1.5", "<", " ", "\n", "'", "A", "\u0430", "if", "9" * 20]
    return "".join(draw(st.lists(st.sampled_from(words), max_size=40)))


@given(st.text() | st.text("ab.0123+-*/%(), min", max_size=60) | token_soup())
@example("(" * 20000)
@example("-" * 20000)
@example("9" * 5000)
def test_random_text_raises_nothing_else(text: str) -> None:
    try:
        dim = parse_expression(text)
    except ExpressionError as error:
        assert 0 <= error.offset <= len(text)
        assert error.length >= 1
        # Only "ends too early" points past the text.
        assert error.offset == len(text) or error.offset + error.length <= len(text)
        assert error.message
    else:
        assert isinstance(dim, Dim)
        if len(str(dim)) <= MAX_LENGTH:
            assert parse_expression(str(dim)) == dim
