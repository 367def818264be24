"""How a body is put together: residuals, repeated layers, slices of the sequence, calls of other graphs."""

from dataclasses import dataclass
from typing import Any

from vlmspec.compiler.emit.expr import atom, call, slice_text
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module
from vlmspec.compiler.ir.types import StateType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.registry import Op, Operands, StepKind, same_as


@dataclass(frozen=True, slots=True)
class GraphAttrs:
    """Which graph a module is an instance of."""

    graphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RepeatAttrs:
    """Which graph is repeated, and how often."""

    graphs: tuple[str, ...]
    count: Dim


@dataclass(frozen=True, slots=True)
class SpanAttrs:
    """Which of the repeated layers run: from `start` up to `stop`."""

    start: Dim
    stop: Dim


def _emit_call(node, scope):
    operands = [scope.use(v) for _, v in node.inputs]
    return call(scope.module(node), *operands)


CALL = Op(
    "call",
    "Another graph, applied; its operands go by the names of that graph's inputs.",
    infer=lambda ops: (),
    emit=_emit_call,
)


def _emit_repeat(node, scope):
    """Write the loop; its result keeps the name of the value that runs through it."""
    state = {role for role, v in node.inputs if v.type == StateType("cache")}
    (_, x), *rest = node.inputs
    blocks = scope.module(node) + scope.span(node)
    name = scope.loop_variable(node, x)
    operands = [atom("layer_cache") if role in state else scope.use(v) for role, v in rest]
    if state:
        cache = scope.use(dict(node.inputs)[next(iter(state))]).flat()
        caches = f"{cache} or [None] * len({blocks})"
        scope.block(f"for block, layer_cache in zip({blocks}, {caches}, strict=True):")
    else:
        scope.block(f"for block in {blocks}:")
    scope.line(name, call("block", name, *operands), indent=4)
    return atom(name)


REPEAT = Op(
    "repeat",
    "Layers of one form, one after another; what is not the running value goes to each of them.",
    infer=same_as("x"),
    emit=_emit_repeat,
    attrs=SpanAttrs,
    results=("x",),
    inline=False,
)


def call_graph(graph, child, given: dict[str, Any], outputs, name: str, hint: str = "h"):
    """Close `child`, declare it in `graph` as module `name`, and call it; gives its first result."""
    callee = child.finish(*outputs)
    graph.add_module(Module(name, "graph", GraphAttrs((callee.name,)), (), child.span))
    operands = graph.operands_for(child, given)
    return graph.call(name, operands, callee.outputs, hint, child.span)[0]


class ResidualArgs(Args):
    """Arguments of `residual`: the steps of the branch."""

    body: tuple[Any, ...]


def _lower_residual(b, x, args: ResidualArgs):
    return b.node("add", {"x": x, "y": b.lower_body(b, x)})


RESIDUAL_STEP = StepKind(
    "residual",
    "The steps inside are a branch whose result is added to what it started from.",
    ResidualArgs,
    _lower_residual,
    shorthand="body",
)


class LayersArgs(Args):
    """Arguments of `layers`: how many, and the steps of one of them."""

    count: Size
    body: tuple[Any, ...]


def _lower_layers(b, x, args: LayersArgs):
    name = b.name
    child = b.graph.child(f"{b.graph.name}.block", per_layer=True, doc="One layer.", span=b.span)
    start = child.input("x", x.type)
    result = b.lower_body(b.inside(child, b.weights.key("layers") + ".{i}"), start)
    graph = child.finish(result)
    attrs = RepeatAttrs((graph.name,), args.count)
    b.graph.add_module(Module(name, "repeat", attrs, (), b.span))
    operands = b.graph.operands_for(child, {"x": x})
    zero = Dim.const(0)
    if b.tap is None or b.graph is not b.component:
        return b.node("repeat", operands, SpanAttrs(zero, args.count), module=name)
    stop = b.tap.depth(args.count)
    x = b.node("repeat", operands, SpanAttrs(zero, stop), module=name)
    b.tap.value = x
    return b.node("repeat", operands | {"x": x}, SpanAttrs(stop, args.count), module=name)


LAYERS_STEP = StepKind(
    "layers",
    "A stack of layers of one form.",
    LayersArgs,
    _lower_layers,
    shorthand="count",
    roles={"layers": ""},
)


@dataclass(frozen=True, slots=True)
class SliceAttrs:
    """How many tokens are dropped from the front."""

    start: Dim


def _infer_slice(ops: Operands):
    x = ops.tensor("x")
    batch, tokens, width = x.shape
    return (x.with_shape(batch, tokens - ops.attrs.start, width),)


SLICE_TOKENS = Op(
    "slice_tokens",
    "The sequence without its first tokens.",
    infer=_infer_slice,
    emit=lambda node, scope: scope.atom(
        f"{scope.name(node['x'])}[:, {slice_text(scope.dim(node.attrs.start), '')}]"
    ),
    attrs=SliceAttrs,
    results=("x",),
)


class SliceArgs(Args):
    """Arguments of `drop_tokens`."""

    count: Size


DROP_TOKENS_STEP = StepKind(
    "drop_tokens",
    "Drop the first tokens of the sequence.",
    SliceArgs,
    lambda b, x, args: b.node("slice_tokens", {"x": x}, SliceAttrs(args.count)),
    shorthand="count",
)


def _infer_last(ops: Operands):
    x = ops.tensor("x")
    return (x.with_shape(x.shape[0], Dim.sym("kept"), x.shape[2]),)


LAST_TOKENS = Op(
    "last_tokens",
    "The last `keep` tokens of the sequence; all of them where `keep` is 0.",
    infer=_infer_last,
    emit=lambda node, scope: scope.atom(
        f"{scope.name(node['x'])}[:, -{scope.use(node['keep']).flat()}:]"
    ),
    results=("x",),
    inline=False,
)
