"""The text form of programs: what is printed reads back as the same program."""

import random
import string
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import CASES, stages

from vlmspec.cli import run
from vlmspec.compiler.ir import text_values
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import ConfigKey, Graph, Module, Node, Param, Program, Value
from vlmspec.compiler.ir.text import (
    ParseError,
    parse_graph,
    parse_graphs,
    parse_program,
    print_graph,
    print_program,
)
from vlmspec.compiler.ir.text_cursor import Cursor
from vlmspec.compiler.ir.types import DTYPES, STATE_KINDS, Scalar, StateType, TensorType

SMALL = """\
program small
entry @model
alternate ["model.text", "text"]
size a.width = 8
size a.eps = 1e-05
derived a.half = a.width // 2
key a.width {paths=["width", "n.width"], value=8, default=a.half * 2}
key a.eps {paths=["eps"], value=1e-05, default=Dim(1)}
option a.m {paths=["m"], value=None, default=[2.5, "x"], map={"on": True, "no": list[1, Dim(2)]}}

graph @model {
  input x: float[batch, tokens, a.width]?x
  input mask: bool[batch, 1, tokens, keys]|none
  input cache: cache
  module norm: rms_norm {width=a.width, eps=a.eps}
    param weight: [a.width] {keys=["norm.weight"]}
  module up: linear {in_features=a.width, out_features=a.half + a.width}
    param weight: [a.half + a.width, a.width] {keys=["q", "k"], sizes=[a.width, a.half]}
    param bias: [a.half + a.width] {keys=["b"], tied="norm.weight"}
  module table: parameter {shape=[a.width]}
    param "": [a.width] {keys=["table"]}
  h: float[batch, tokens, a.width]?x = rms_norm(x=x) @norm
  y: float[batch, tokens, a.width]?x = scale(x=h) {factor=0.5}
  z: float[batch, tokens, 4]?x, z_1: float[batch, tokens, a.half]?x = split(x=y) {sizes=[4, a.half]}
  advance_cache(cache=cache, x=x)
  return z, z_1
}
"""


# ------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(("spec", "variant"), CASES)
def test_bundled_specs_survive_the_round_trip_after_every_pass(spec: str, variant: str | None):
    for name, program in stages(spec, variant).items():
        text = print_program(program)
        again = parse_program(text)
        assert again == program, name
        assert print_program(again) == text, name
        assert list(again.sizes) == list(program.sizes)
        assert list(again.graphs) == list(program.graphs)
        assert [type(v) for v in again.sizes.values()] == [type(v) for v in program.sizes.values()]


def test_hand_written_text_is_canonical():
    program = parse_program(SMALL)
    assert print_program(program) == SMALL
    assert program.sizes == {"a.width": 8, "a.eps": 1e-05}
    assert program.options[0].map == {"on": True, "no": [1, Dim(2)]}
    assert program.keys[0].default == Dim("a.half * 2")
    norm = program.graphs["model"].module("norm")
    assert norm.attrs.eps == Scalar(1e-05, "a.eps")
    assert program.graphs["model"].nodes[3].outputs == ()


def test_comments_blank_lines_and_spacing_do_not_matter():
    loose = SMALL.replace("  ", "\t ").replace("=", " = ").replace("Dim(", "Dim( ")
    loose = "# a comment\n\n" + loose.replace(", ", " ,").replace("\n", " \r\n")
    assert parse_program(loose) == parse_program(SMALL)


def test_graph_prints_alone_and_gives_values_of_names_that_it_cannot_look_up():
    graph = parse_program(SMALL).graphs["model"]
    text = print_graph(graph)
    assert "eps=a.eps(1e-05)" in text
    assert parse_graph(text) == graph
    assert parse_graphs(text) == {"model": graph}
    assert parse_graph(print_graph(graph, {"a.eps": 1e-05}), {"a.eps": 1e-05}) == graph
    # A table with another value must not change the scalar.
    assert "a.eps(1e-05)" in print_graph(graph, {"a.eps": 2.0})


def test_values_and_modules_may_be_called_like_keywords():
    text = """\
graph @g {
  input input: float[n, d]
  module module: linear {in_features=d, out_features=d, bias=False}
    param weight: [d, d] {keys=["k"]}
  param: float[n, d] = linear(x=input) @module
  module: float[n, d] = add(x=param, y=input)
  return module
}
"""
    assert print_graph(parse_graph(text)) == text


def test_names_that_are_no_names_are_quoted():
    x = Value("a b", TensorType((Dim(1),), optional=frozenset({"ü", "x"})))
    graph = Graph('g"\n', (x,), (), (), (x,))
    program = Program("1 + 1", {graph.name: graph}, {"weird name": 3}, entry='g"\n')
    assert parse_program(print_program(program)) == program


def test_every_field_is_part_of_the_text():
    """A new field must get a place in the text form, or keep its default in the meantime."""
    names = {cls: {f.name for f in fields(cls) if f.compare} for cls in (Program, Graph, Node)}
    assert names[Program] == {
        *("name", "graphs", "sizes", "entry", "keys", "options", "derived", "alternates")
    }
    assert names[Graph] == {"name", "inputs", "modules", "nodes", "outputs"}
    assert names[Node] == {"op", "inputs", "outputs", "attrs", "module"}
    assert {f.name for f in fields(Module) if f.compare} == {"name", "kind", "attrs", "params"}
    assert {f.name for f in fields(Value)} == {"name", "type"}
    assert {f.name for f in fields(TensorType)} == {"shape", "dtype", "optional", "nullable"}
    assert {f.name for f in fields(StateType)} == {"kind"}
    # These are written field by field, whatever they have.
    assert {"name", "shape"} < {f.name for f in fields(Param)}
    assert "name" in {f.name for f in fields(ConfigKey)}


def test_dump_ir_writes_a_numbered_file_for_every_pass(tmp_path: Path):
    arguments = ["compile", "llava", "--dump-ir", str(tmp_path / "ir"), "-o", str(tmp_path / "x")]
    assert run(arguments) == 0
    files = sorted((tmp_path / "ir").glob("*.vir"))
    names = list(stages("llava", None))
    assert [f.stem for f in files] == [f"{i:02d}-{name}" for i, name in enumerate(names)]
    for file, program in zip(files, stages("llava", None).values(), strict=True):
        assert parse_program(file.read_text(encoding="utf-8")) == program


# --------------------------------------------------------------------------------- attribute values


@dataclass(frozen=True, slots=True)
class Inner:
    """A nested value."""

    size: Dim
    note: str = "-"


@dataclass(frozen=True, slots=True)
class Everything:
    """A field of every type that attributes may have."""

    dim: Dim
    scalar: Scalar
    text: str
    flag: bool
    number: int
    real: float
    maybe: Dim | None
    either: Dim | Scalar | str | int | None
    dims: tuple[Dim, ...]
    pair: tuple[int, str]
    nested: Inner
    inners: tuple[Inner, ...]
    anything: Any = None


DIMS = st.sampled_from(["0", "7", "a", "a.b // 2", "(a % 3) * b + 1", "min(a, b, 4)", "-a"])
SCALARS = st.builds(Scalar, st.floats(allow_nan=False), st.sampled_from([None, "a.eps", "other"]))
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    DIMS.map(Dim),
    SCALARS,
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    max_leaves=6,
)
INNERS = st.builds(Inner, DIMS.map(Dim), st.text())


@settings(deadline=None)
@given(
    st.builds(
        Everything,
        dim=DIMS.map(Dim),
        scalar=SCALARS,
        text=st.text(),
        flag=st.booleans(),
        number=st.integers(),
        real=st.floats(allow_nan=False),
        maybe=st.none() | DIMS.map(Dim),
        either=st.one_of(st.none(), DIMS.map(Dim), SCALARS, st.text(), st.integers()),
        dims=st.lists(DIMS.map(Dim), max_size=3).map(tuple),
        pair=st.tuples(st.integers(), st.text()),
        nested=INNERS,
        inners=st.lists(INNERS, max_size=2).map(tuple),
        anything=VALUES,
    )
)
def test_attributes_of_every_type_survive(value: Everything):
    sizes = {"a.eps": 0.5}
    text = text_values.write_fields(value, sizes)
    assert "\n" not in text
    cursor = Cursor(text, 1)
    again = text_values.read_fields(cursor, Everything, sizes)
    cursor.end()
    assert again == value
    assert _types(again) == _types(value)


def _types(value: Any) -> Any:
    """The types of a value and of everything in it: 1, 1.0 and True are equal."""
    if isinstance(value, (list, tuple)):
        return type(value), [_types(v) for v in value]
    if isinstance(value, dict):
        return type(value), {k: _types(v) for k, v in value.items()}
    if isinstance(value, (Everything, Inner)):
        return [_types(getattr(value, f.name)) for f in fields(value)]
    return type(value), _types(value.value) if isinstance(value, Scalar) else None


def test_values_without_a_text_form_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        text_values.write(float("nan"), float, {})
    with pytest.raises(TypeError, match="object"):
        text_values.write(object(), Any, {})


# ------------------------------------------------------------------------------------------- errors

# What is replaced, by what, the message, and the text where the fault is shown.
ERRORS = [
    ("program small", "program", "expected the program's name", ""),
    ("entry @model", "entry model", "expected `@`", "model"),
    ("entry @model", "shape a = 1", "a header has no `shape`", "shape"),
    ("size a.eps = 1e-05", "size a.width = 1", "`a.width` is given twice", "a.width = 1"),
    ("size a.eps = 1e-05", "size a.eps = one", "expected a number", "one"),
    ("a.width // 2", "a.width // 0", "division by zero", "0"),
    ("a.width // 2", "a.width / 2", "//", "/ 2"),
    ('["width", "n.width"]', '["width]', "this string does not end", '"width], value'),
    ("value=8,", "value=8, value=9,", "`value` is given twice", "value=9"),
    ("value=8,", "worth=8,", "no attribute is called `worth`", "worth=8"),
    ("value=8, ", "", "`value` is missing", "{paths"),
    ("graph @model {", "graph @model", "expected `{`", ""),
    ("graph @model {", "graph @model { x", "nothing more may stand on this line", "x"),
    ("float[batch, tokens, a.width]?x", "half[batch]", "no type is called `half`", "half["),
    ("cache: cache", "x: cache", "`x` is defined twice", "x: cache"),
    ("norm: rms_norm", "norm: norm", "no kind of module is called `norm`", "norm {"),
    ("eps=a.eps", "eps=a.eps2", "the size `a.eps2` has no value", "a.eps2"),
    ("= rms_norm(x=x)", "= rmsnorm(x=x)", "no op is called `rmsnorm`", "rmsnorm("),
    ("rms_norm(x=x)", "rms_norm(x=h)", "no value is called `h` here", "h) @norm"),
    ("scale(x=h) {factor=0.5}", "scale(x=h)", "`factor` is missing", ""),
    ("z_1: float", "z: float", "`z` is defined twice", "z: float[batch, tokens, a.half]?x ="),
    ("return z, z_1", "return z z_1", "expected `,`", "z_1"),
    ("  return z, z_1\n", "", "a graph ends with `return`", "}"),
    ("return z, z_1\n}", "return z, z_1", "the graph `model` does not end", ""),
    ("  return", "  return z\n  return", "nothing may follow `return`", "return z, z_1"),
    ("    param weight: [a.width] {", "    param [a.width] {", "the name of a parameter", "[a"),
    ("a.eps {paths", "a.eps [paths", "is missing", "[paths"),
]


@pytest.mark.parametrize(("old", "new", "message", "place"), ERRORS)
def test_errors_have_their_place(old: str, new: str, message: str, place: str):
    text = SMALL.replace(old, new, 1)
    assert text != SMALL
    with pytest.raises(ParseError) as caught:
        parse_program(text)
    error = caught.value
    assert message in error.message
    line = text.split("\n")[error.line - 1]
    shown = line[error.column - 1 :]
    assert shown.startswith(place) if place else not shown
    assert str(error) == f"line {error.line}, column {error.column}: {error.message}"


@pytest.mark.parametrize("text", ["", "\n", "# nothing", "graph @g {\n  return\n}\n", "size a = 1"])
def test_a_program_needs_a_name(text: str):
    with pytest.raises(ParseError, match="starts with `program`"):
        parse_program(text)


def test_wrong_kinds_of_values_are_refused():
    for old, new, message in [
        ("bias=False", "bias=3", "expected True or False"),
        ("bias=False", "bias=None", "`None` is not allowed here"),
        ("in_features=d", "in_features=True", "`True` is not allowed here"),
        ("in_features=d", 'in_features="d"', "strings are not allowed"),
    ]:
        text = "graph @g {\n  module m: linear {in_features=d, out_features=d, bias=False}\n"
        with pytest.raises(ParseError, match=message):
            parse_graph(text.replace(old, new) + "  return\n}\n")


def test_duplicate_graphs_and_wrong_counts_are_refused():
    graph = "graph @g {\n  return\n}\n"
    with pytest.raises(ParseError, match="defined twice"):
        parse_graphs(graph + graph)
    with pytest.raises(ParseError, match="expected one graph, found 0"):
        parse_graph("")


def test_known_types_are_listed():
    for kind in STATE_KINDS:
        assert kind not in DTYPES
        text = f"graph @g {{\n  input a: {kind}\n  return a\n}}\n"
        assert parse_graph(text).inputs[0].type == StateType(kind)


# --------------------------------------------------------------------------------------------- fuzz


def _mutate(text: str, generator: random.Random) -> str:
    """One random edit: characters deleted, repeated, replaced, or lines moved."""
    start = generator.randrange(len(text) + 1)
    end = min(len(text), start + generator.randrange(12))
    match generator.randrange(4):
        case 0:
            return text[:start] + text[end:]
        case 1:
            return text[:end] + text[start:]
        case 2:
            noise = "".join(generator.choice(string.printable + "é\0") for _ in range(end - start))
            return text[:start] + noise + text[end:]
        case _:
            lines = text.split("\n")
            generator.shuffle(lines[start % len(lines) :])
            i, j = generator.randrange(len(lines)), generator.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
            return "\n".join(lines)


@settings(deadline=None, max_examples=400)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_mutated_text_raises_nothing_but_parse_errors(seed: int, edits: int):
    generator = random.Random(seed)
    text = SMALL
    for _ in range(edits):
        text = _mutate(text, generator)
    _parse_or_refuse(text)


@settings(deadline=None, max_examples=200)
@given(st.text() | st.binary().map(lambda b: b.decode("latin-1")))
def test_noise_raises_nothing_but_parse_errors(text: str):
    _parse_or_refuse(text)
    _parse_or_refuse("program p\noption a {value=" + text)
    _parse_or_refuse("program p\nderived a = " + text)
    _parse_or_refuse("program p\ngraph @g {\n  " + text)


@pytest.mark.parametrize(
    "text",
    [
        "option a {value=" + "[" * 5000,
        "option a {value=" + '{"a": ' * 5000,
        "option a {value=" + "(" * 5000,
        "derived a = " + "min(" * 5000,
        "derived a = " + "9" * 5000,
        "size a = " + "9" * 5000,
        "size a = " + "1" * 400 + "e" + "9" * 400,
        "derived a = " + "(a + b) * " * 90 + "1",
    ],
)
def test_extreme_texts_are_refused_or_read(text: str):
    _parse_or_refuse("program p\n" + text)


def _parse_or_refuse(text: str) -> None:
    try:
        program = parse_program(text)
    except ParseError as error:
        assert 1 <= error.line <= text.count("\n") + 1
        assert error.column >= 1
    else:
        assert parse_program(print_program(program)) == program
