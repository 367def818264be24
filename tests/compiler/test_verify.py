"""Each rule of the verifier refuses the program that breaks it."""

import re
from dataclasses import replace

import pytest
from programs import CASES, stages

from vlmspec.compiler.ir.graph import Graph, Program
from vlmspec.compiler.ir.text import parse_program
from vlmspec.compiler.ir.verify import IllFormed, verify
from vlmspec.compiler.ops.activation import ScaleAttrs
from vlmspec.compiler.ops.registry import NoAttrs

GOOD = """\
program good
size layers = 3
size d = 8

graph @model {
  input ids: int[batch, tokens]
  input pixels: float[images, n, d]?pixels
  input cache: cache
  module text: graph @text
  module see: linear {in_features=d, out_features=8}
    param weight: [d, d] {keys=["see.weight"]}
    param bias: [d] {keys=["see.bias"]}
  x: float[batch, tokens, d] = embedding(ids=ids) @text.embed
  v: float[images, n, d]?pixels = linear(x=pixels) @see
  x_1: float[batch, tokens, d] = splice(x=x, visual=v, ids=ids) {placeholder=3}
  h: float[batch, tokens, d] = call(x=x_1, cache=cache) @text
  return h
}

graph @text {
  input x: float[batch, tokens, d]
  input cache: cache
  module embed: embedding {rows=50, width=d}
    param weight: [50, d] {keys=["embed.weight"]}
  module blocks: repeat @text.block {count=layers}
  module head: linear {in_features=d, out_features=50, bias=False}
    param weight: [50, d] {keys=["head.weight"], tied="text.embed.weight"}
  x_1: float[batch, tokens, d] = repeat(x=x, cache=cache) @blocks {start=0, stop=layers}
  h: float[batch, tokens, 50] = linear(x=x_1) @head
  return x_1
}

graph @text.block {
  input x: float[batch, tokens, d]
  input cache: kv
  module qk: linear {in_features=d, out_features=12, bias=False}
    param weight: [12, d] {keys=["l.{i}.q", "l.{i}.k"], sizes=[d, 4]}
  module norm: rms_norm {width=d, eps=1e-05}
    param weight: [d] {keys=["l.{i}.norm"]}
  qk: float[batch, tokens, 12] = linear(x=x) @qk
  q: float[batch, tokens, d], k: float[batch, tokens, 4] = split(x=qk) {sizes=[d, 4]}
  h: float[batch, tokens, d] = rms_norm(x=q) @norm
  y: float[batch, tokens, d] = scale(x=h) {factor=2.0}
  return y
}
"""

# What is replaced, by what, and what the verifier says.
BROKEN = {
    "operand of another type": (
        "= rms_norm(x=q)",
        "= rms_norm(x=k)",
        "the norm `norm` takes vectors of `d` (8) numbers, and is given 4",
    ),
    "result of another width": (
        "h: float[batch, tokens, d] = rms_norm",
        "h: float[batch, tokens, d + 1] = rms_norm",
        "`h` is float[batch, tokens, d + 1], and rms_norm gives float[batch, tokens, d]",
    ),
    "result of another rank": (
        "h: float[batch, tokens, d] = rms_norm",
        "h: float[tokens, d] = rms_norm",
        "`h` is float[tokens, d]",
    ),
    "result of another dtype": (
        "h: float[batch, tokens, d] = rms_norm",
        "h: int[batch, tokens, d] = rms_norm",
        "`h` is int[batch, tokens, d]",
    ),
    "nullable result": (
        "h: float[batch, tokens, d] = rms_norm",
        "h: float[batch, tokens, d]|none = rms_norm",
        "`h` is float[batch, tokens, d]|none",
    ),
    "optional forgotten": (
        "v: float[images, n, d]?pixels =",
        "v: float[images, n, d] =",
        "`v` is float[images, n, d], and linear gives float[images, n, 8]?pixels",
    ),
    "optional beyond the join": (
        "x_1: float[batch, tokens, d] = splice",
        "x_1: float[batch, tokens, d]?pixels = splice",
        "`h` is float[batch, tokens, d], and call gives float[batch, tokens, d]?pixels",
    ),
    "missing operand": ("linear(x=x) @qk", "linear(y=x) @qk", "linear lacks the operand 'x'"),
    "wrong number of results": (
        "q: float[batch, tokens, d], k: float[batch, tokens, 4] =",
        "q: float[batch, tokens, d] =",
        "split has 1 results, not 2",
    ),
    "pieces that do not add up": (
        "{sizes=[d, 4]}\n  h",
        "{sizes=[d, 5]}\n  h",
        "split : the pieces do not add up",
    ),
    "operand of another rank": (
        "input x: float[batch, tokens, d]\n  input cache: kv",
        "input x: float[tokens, d]\n  input cache: kv",
        "repeat @blocks gives x float[batch, tokens, d], not float[tokens, d]",
    ),
    "call without an operand": (
        "call(x=x_1, cache=cache)",
        "call(x=x_1)",
        "call @text gives ['x'], not ['x', 'cache']",
    ),
    "call with an operand of another type": (
        "input x: float[batch, tokens, d]\n  input cache: cache",
        "input x: float[batch, tokens, 9]\n  input cache: cache",
        "call @text gives x float[batch, tokens, d], not float[batch, tokens, 9]",
    ),
    "call with a state for a tensor": (
        "call(x=x_1, cache=cache)",
        "call(x=cache, cache=cache)",
        "call @text gives x cache, not float[batch, tokens, d]",
    ),
    "call with another result": (
        "h: float[batch, tokens, d] = call",
        "h: float[batch, 1, d] = call",
        "`h` is float[batch, 1, d], and call gives float[batch, tokens, d]",
    ),
    "whole cache for one layer": (
        "input cache: kv",
        "input cache: cache",
        "gives cache cache, not cache",
    ),
    "layers that change the type": (
        "  return y",
        "  return k",
        "the layers of `blocks` turn float[batch, tokens, d] into float[batch, tokens, 4]",
    ),
    "unknown module": (
        "linear(x=x) @qk",
        "linear(x=x) @qkv",
        "linear uses the module `qkv`, which is not declared",
    ),
    "path through a module without graphs": (
        "@text.embed",
        "@see.embed",
        "embedding uses the module `see.embed`, which is not declared",
    ),
    "unknown graph": ("repeat @text.block", "repeat @text.blok", "which is not there"),
    "module of another kind": (
        "rms_norm(x=q) @norm",
        "layer_norm(x=q) @norm",
        "layer_norm has a module of kind rms_norm, not layer_norm",
    ),
    "op without its module": ("linear(x=x) @qk", "linear(x=x)", "linear has no module, not linear"),
    "module without need": (
        "scale(x=h) {",
        "scale(x=h) @norm {",
        "scale has a module of kind rms_norm, not none",
    ),
    "call of a repeat": (
        "repeat(x=x, cache=cache) @blocks {start=0, stop=layers}",
        "call(x=x, cache=cache) @blocks",
        "call has a module of kind repeat, not graph",
    ),
    "parameter of another shape": (
        'param weight: [d, d] {keys=["see',
        'param weight: [d, 9] {keys=["see',
        "`see.weight` is not [8, d]",
    ),
    "missing parameter": (
        '    param bias: [d] {keys=["see.bias"]}\n',
        "",
        "module `see` has the parameters ['weight'], not ['weight', 'bias']",
    ),
    "parameters of a module that has none": (
        "  module blocks: repeat @text.block {count=layers}\n",
        "  module blocks: repeat @text.block {count=layers}\n    param w: [d] {keys=[]}\n",
        "module `blocks` has the parameters ['w'], not []",
    ),
    "pieces of a parameter that do not add up": (
        "sizes=[d, 4]}\n  module",
        "sizes=[d, 5]}\n  module",
        "the pieces of `qk.weight` do not add up",
    ),
    "pieces without sizes": (
        ", sizes=[d, 4]}\n  module",
        "}\n  module",
        "the pieces of `qk.weight` do not add up",
    ),
    "parameter without a key": (
        '{keys=["see.bias"]}',
        "{keys=[]}",
        "`see.bias` comes from no tensor of the checkpoint",
    ),
    "key read twice": (
        '{keys=["see.bias"]}',
        '{keys=["embed.weight"]}',
        "the tensor `embed.weight` is read for `text.embed` and for `see`",
    ),
    "key twice in one parameter": (
        '"l.{i}.q", "l.{i}.k"',
        '"l.{i}.q", "l.{i}.q"',
        "the tensor `l.{i}.q` is read for",
    ),
    "tie to nothing": (
        'tied="text.embed.weight"',
        'tied="text.embedding.weight"',
        "`text.head.weight` is tied to `text.embedding.weight`, which is not there",
    ),
    "tie to a tie": (
        'tied="text.embed.weight"',
        'tied="text.head.weight"',
        "`text.head.weight` is tied to `text.head.weight`, which is not there",
    ),
    "tie to another shape": (
        'tied="text.embed.weight"',
        'tied="see.weight"',
        "`text.head.weight` is tied to `see.weight`, which has another shape",
    ),
}


@pytest.mark.parametrize(("spec", "variant"), CASES)
def test_bundled_specs_are_well_formed_after_every_pass(spec: str, variant: str | None):
    for program in stages(spec, variant).values():
        verify(program)


def test_good_program_is_accepted():
    verify(parse_program(GOOD))


def test_equal_values_are_equal_sizes():
    verify(
        parse_program(
            GOOD.replace("input x: float[batch, tokens, d]", "input x: float[batch, tokens, 8]")
        )
    )


@pytest.mark.parametrize("name", BROKEN)
def test_broken_program_is_refused(name: str):
    old, new, message = BROKEN[name]
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    with pytest.raises(IllFormed, match=re.escape(message)):
        verify(parse_program(text))


def _with_block(change) -> Program:
    program = parse_program(GOOD)
    block: Graph = program.graphs["text.block"]
    return program.with_graphs({**program.graphs, "text.block": change(block)})


def test_use_before_definition_is_refused():
    program = _with_block(lambda g: g.with_nodes(reversed(g.nodes)))
    with pytest.raises(IllFormed, match="scale reads `h` as x before it is there"):
        verify(program)


def test_stale_operand_is_refused():
    """A value is known by its name and its type."""

    def change(graph: Graph) -> Graph:
        *rest, last = graph.nodes
        (role, value), *_ = last.inputs
        stale = replace(value, type=value.type.with_width(value.type.width + 1))
        return graph.with_nodes([*rest, replace(last, inputs=((role, stale),))])

    with pytest.raises(IllFormed, match="scale reads `h` as x before it is there"):
        verify(_with_block(change))


def test_missing_result_is_refused():
    with pytest.raises(IllFormed, match="it returns `y`, which is not there"):
        verify(_with_block(lambda g: g.with_nodes(g.nodes[:-1])))


def test_name_given_twice_is_refused():
    with pytest.raises(IllFormed, match="`norm` is defined twice"):
        verify(_with_block(lambda g: replace(g, modules=(*g.modules, g.modules[-1]))))
    with pytest.raises(IllFormed, match="`y` is defined twice"):
        verify(_with_block(lambda g: replace(g, nodes=(*g.nodes, g.nodes[-1]))))


def test_attributes_of_another_class_are_refused():
    with pytest.raises(IllFormed, match="scale has NoAttrs, not ScaleAttrs"):
        verify(
            _with_block(
                lambda g: g.with_nodes([*g.nodes[:-1], replace(g.nodes[-1], attrs=NoAttrs())])
            )
        )
    with pytest.raises(IllFormed, match="module `qk` has ScaleAttrs"):
        wrong = replace(parse_program(GOOD).graphs["text.block"].modules[0], attrs=ScaleAttrs(None))
        verify(_with_block(lambda g: replace(g, modules=(wrong, *g.modules[1:]))))
    with pytest.raises(IllFormed, match="no op is called `nothing`"):
        verify(
            _with_block(lambda g: g.with_nodes([*g.nodes[:-1], replace(g.nodes[-1], op="nothing")]))
        )


def test_graphs_that_take_turns_may_have_the_same_keys():
    text = GOOD.replace("repeat @text.block {", "repeat @text.block @text.other {")
    block = text[text.index("graph @text.block") :]
    verify(parse_program(text + "\n" + block.replace("@text.block", "@text.other", 1)))


def test_operand_of_a_rank_that_the_op_does_not_take_is_refused():
    graph = "graph @model {\n  input x: float[n, d]\n"
    node = "  y: float[n, d] = slice_tokens(x=x) {start=0}\n  return y\n}\n"
    with pytest.raises(IllFormed, match="slice_tokens has operands of another number of dim"):
        verify(parse_program("program p\n" + graph + node))


def test_a_nullable_input_bears_an_absent_operand():
    text = """\
program p
graph @model {
  input x: float[n, d]
  input pixels: float[n, d]?pixels
  module inner: graph @inner
  y: float[n, d] = call(x=x, pixels=pixels) @inner
  return y
}

graph @inner {
  input x: float[n, d]
  input pixels: float[n, d]|none
  return x
}
"""
    verify(parse_program(text))
    with pytest.raises(IllFormed, match=r"call gives float\[n, d\]\?pixels"):
        verify(parse_program(text.replace("|none", "")))
