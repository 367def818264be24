"""Symbolic dimensions: algebra against Python integers, identity, printing, proofs."""

import ast
import copy
import operator
import pickle
from collections.abc import Callable
from math import prod

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vlmspec.compiler.ir.dim import Dim, dim_max, dim_min, prove_equal
from vlmspec.compiler.ir.expression import MAX_INTEGER, parse_expression

NAMES = ("batch", "text", "vision.hidden_size", "vision.patch_size")
BINARY: dict[str, Callable[..., object]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}

# A tree is an integer, a name, or (operator, operands); it is independent of `Dim`.
Tree = int | str | tuple[str, list["Tree"]]


def _extend(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    pair = st.lists(children, min_size=2, max_size=2)
    some = st.lists(children, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.sampled_from(sorted(BINARY)), pair),
        st.tuples(st.just("neg"), st.lists(children, min_size=1, max_size=1)),
        st.tuples(st.sampled_from(["min", "max"]), some),
    )


trees = st.recursive(st.sampled_from(NAMES) | st.integers(-6, 12), _extend, max_leaves=8)
envs = st.fixed_dictionaries({name: st.integers(1, 40) for name in NAMES})


def compute(tree: Tree, env: dict[str, int]) -> int:
    """Evaluate a tree with Python integers only."""
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return env[tree]
    values = [compute(operand, env) for operand in tree[1]]
    match tree[0]:
        case "neg":
            return -values[0]
        case "min":
            return min(values)
        case "max":
            return max(values)
        case op:
            return BINARY[op](*values)


def build(tree: Tree) -> Dim:
    """Make the dimension of a tree."""
    if isinstance(tree, int):
        return Dim.const(tree)
    if isinstance(tree, str):
        return Dim.sym(tree)
    dims = [build(operand) for operand in tree[1]]
    match tree[0]:
        case "neg":
            return -dims[0]
        case "min":
            return dim_min(*dims)
        case "max":
            return dim_max(*dims)
        case op:
            return BINARY[op](*dims)


def build_or_reject(tree: Tree) -> Dim:
    """Make the dimension of a tree; drop examples that divide by a constant zero."""
    try:
        return build(tree)
    except ValueError:
        assume(False)
        raise


dims = trees.map(build_or_reject)


def same(left: Dim, right: Dim) -> None:
    """Assert value identity, in all the ways that a table of shapes relies on."""
    assert left == right
    assert hash(left) == hash(right)
    assert str(left) == str(right)
    assert left.terms == right.terms


@given(trees, envs)
def test_value_agrees_with_python(tree: Tree, env: dict[str, int]) -> None:
    try:
        expected = compute(tree, env)
    except ZeroDivisionError:
        assume(False)
    assert build(tree).value(env) == expected


@pytest.mark.parametrize("op", sorted(BINARY))
@given(st.integers(-60, 60), st.integers(-60, 60), st.integers(1, 9), st.integers(-5, 5))
def test_operator_agrees_with_python_on_affine_operands(
    op: str, x: int, y: int, scale: int, offset: int
) -> None:
    # Negative sizes too: only zero divisors are assumed away.
    left, right = x * scale + offset, y * scale
    assume(right != 0)
    a, b = Dim.sym("a"), Dim.sym("b")
    dim = BINARY[op](a * scale + offset, b * scale)
    assert isinstance(dim, Dim)
    assert dim.value({"a": x, "b": y}) == BINARY[op](left, right)
    mixed = BINARY[op](a * scale + offset, right)
    assert mixed == BINARY[op](a * scale + offset, Dim.const(right))
    reflected = BINARY[op](left, b * scale)
    assert reflected == BINARY[op](Dim.const(left), b * scale)
    assert isinstance(reflected, Dim)
    assert reflected.value({"b": y}) == BINARY[op](left, right)


@given(dims, dims, dims)
def test_ring_laws_hold_as_identity(a: Dim, b: Dim, c: Dim) -> None:
    same(a + b, b + a)
    same((a + b) + c, a + (b + c))
    same(a - b, -(b - a))
    same(a - a, Dim.const(0))
    same(a * b, b * a)
    same(a * (b + c), a * b + a * c)
    same(a * 1, a)
    same(a * 0, Dim.const(0))


@given(dims, dims, dims)
def test_product_is_associative(a: Dim, b: Dim, c: Dim) -> None:
    same((a * b) * c, a * (b * c))


@given(dims, dims, dims)
def test_min_and_max_are_lattice_operations(a: Dim, b: Dim, c: Dim) -> None:
    for pick in (dim_min, dim_max):
        same(pick(a, b), pick(b, a))
        same(pick(pick(a, b), c), pick(a, pick(b, c)))
        same(pick(a, b, c), pick(c, a, b, a))
        same(pick(a, a), a)


@given(dims, dims.filter(lambda dim: dim != 0), st.integers(1, 9))
def test_exact_quotients_are_simplified(a: Dim, b: Dim, k: int) -> None:
    same(a * k // k, a)
    same((a * k + 5 * k) // k, a + 5)
    same(a * k % k, Dim.const(0))
    same(b // b, Dim.const(1))
    same(b % b, Dim.const(0))
    size = Dim.sym("size")
    same((a * size) // size, a)
    same((a * size) % size, Dim.const(0))


@given(dims)
def test_text_parses_back(dim: Dim) -> None:
    assume(len(str(dim)) <= 1000)
    same(parse_expression(str(dim)), dim)


@given(dims, envs)
def test_render_is_python_of_the_same_value(dim: Dim, env: dict[str, int]) -> None:
    assume(dim.symbols())
    values = {name.replace(".", "_"): value for name, value in env.items()}
    source = dim.render(lambda name: "c." + name.replace(".", "_"))
    tree = ast.parse(source, mode="eval")
    allowed = (ast.BinOp, ast.UnaryOp, ast.Call, ast.Attribute, ast.Name, ast.Constant)
    for node in ast.walk(tree):
        assert isinstance(node, (*allowed, ast.Expression, ast.operator, ast.unaryop, ast.Load))
    code = compile(tree, "<rendered>", "eval")
    scope = {"c": type("c", (), values), "min": min, "max": max, "__builtins__": {}}
    try:
        expected = dim.value(env)
    except ValueError:
        with pytest.raises(ZeroDivisionError):
            eval(code, scope)
        return
    assert eval(code, scope) == expected


@given(dims)
def test_render_without_renaming_is_the_text(dim: Dim) -> None:
    assert dim.render(lambda name: name) == str(dim)


@given(dims, envs)
def test_subs_of_everything_is_the_value(dim: Dim, env: dict[str, int]) -> None:
    try:
        expected = dim.value(env)
    except ValueError:
        assume(False)
    assert dim.subs(env).as_int() == expected


@given(dims, dims, envs)
def test_subs_composes_with_value(dim: Dim, other: Dim, env: dict[str, int]) -> None:
    try:
        inner = other.value(env)
        expected = dim.value(env | {"batch": inner})
    except ValueError:
        assume(False)
    assert dim.subs({"batch": other}).value(env) == expected


def test_subs_replaces_at_once() -> None:
    a, b = Dim.sym("a"), Dim.sym("b")
    assert (a - b * 2).subs({"a": b, "b": a}) == b - a * 2


@given(trees, trees, envs, st.sets(st.sampled_from(NAMES)))
def test_prove_equal_is_sound(
    left: Tree, right: Tree, env: dict[str, int], known: set[str]
) -> None:
    a, b = build_or_reject(left), build_or_reject(right)
    if not prove_equal(a, b, {name: env[name] for name in known}):
        return
    try:
        values = compute(left, env), compute(right, env)
    except ZeroDivisionError:
        assume(False)
    assert values[0] == values[1]


@given(dims, envs)
def test_prove_equal_compares_values_when_all_are_known(dim: Dim, env: dict[str, int]) -> None:
    try:
        value = dim.value(env)
    except ValueError:
        assume(False)
    assert prove_equal(dim, value, env)
    assert not prove_equal(dim, value + 1, env)


def test_prove_equal_uses_what_is_known() -> None:
    grid = Dim.of("vision.image_size // vision.patch_size")
    batch = Dim.sym("batch")
    sizes = {"vision.image_size": 224, "vision.patch_size": 14}
    assert prove_equal(batch * grid * grid, batch * 256, sizes)
    assert not prove_equal(batch * grid, batch * 256, sizes)
    assert not prove_equal(batch * grid, Dim.sym("text") * 16, sizes)
    assert not prove_equal(grid, 16, {"vision.image_size": 224})
    assert not prove_equal(grid, 1, {"vision.image_size": 224, "vision.patch_size": 0})
    assert prove_equal(batch + 1, 1 + batch, {})
    assert not prove_equal(batch * grid + 1, batch * 16 + 2, sizes)
    assert not prove_equal(batch * grid + 1, batch * 16, sizes)


@given(dims)
def test_copies_are_equal(dim: Dim) -> None:
    same(pickle.loads(pickle.dumps(dim)), dim)
    same(copy.deepcopy(dim), dim)


@given(st.integers(-MAX_INTEGER, MAX_INTEGER))
def test_constants_equal_integers(value: int) -> None:
    dim = Dim.const(value)
    assert dim == value
    assert hash(dim) == hash(value)
    assert dim.is_const
    assert dim.as_int() == value
    assert dim.symbols() == frozenset()


def test_symbols_reach_into_calls() -> None:
    dim = Dim.of("min(a, b // (c + 1)) * d.e % 7")
    assert dim.symbols() == {"a", "b", "c", "d.e"}
    assert not dim.is_const
    assert dim.as_int() is None


def test_missing_symbol_is_named() -> None:
    with pytest.raises(KeyError, match=r"vision\.depth"):
        Dim.of("batch // vision.depth").value({"batch": 1})


@pytest.mark.parametrize("text", ["a // b", "a % b", "1 + min(a, a // (b * 2))"])
def test_zero_divisor_is_a_value_error_that_shows_the_division(text: str) -> None:
    with pytest.raises(ValueError, match=r"division by zero: `b.*` is 0 in `a"):
        Dim.of(text).value({"a": 4, "b": 0})


def test_constant_zero_divisor_is_refused() -> None:
    a = Dim.sym("a")
    for divide in (operator.floordiv, operator.mod):
        with pytest.raises(ValueError, match="division by zero"):
            divide(a, 0)
        with pytest.raises(ValueError, match="division by zero"):
            divide(3, a - a)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A",
        "a b",
        "a.",
        ".a",
        "a..b",
        "1a",
        "a-b",
        "min",
        "max",
        "a.if",
        "a.__class__",
        "\u0430",
    ],
)
def test_bad_symbol_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"size|keyword|function"):
        Dim.sym(name)


@pytest.mark.parametrize("value", [True, 1.0, None, (1,)])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        Dim.of(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("op", sorted(BINARY))
@pytest.mark.parametrize("other", [1.5, "1", None])
def test_operators_refuse_other_types(op: str, other: object) -> None:
    a = Dim.sym("a")
    with pytest.raises(TypeError):
        BINARY[op](a, other)
    if not isinstance(other, str):
        with pytest.raises(TypeError):
            BINARY[op](other, a)


def test_attributes_cannot_be_added_or_replaced() -> None:
    dim = Dim.sym("a")
    for attribute in ("extra", "terms", "is_const"):
        with pytest.raises(AttributeError):
            setattr(dim, attribute, 1)


def test_expansion_is_bounded() -> None:
    factors = [Dim.of(f"a{i} + b{i} + c{i}") for i in range(12)]
    with pytest.raises(ValueError, match="terms"):
        prod(factors, start=Dim.const(1))
    dim = Dim.sym("a")
    with pytest.raises(ValueError, match="nests"):
        for _ in range(100):
            dim = (dim + 1) // Dim.sym("b")
