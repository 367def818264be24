"""How a body is put together: residuals, repeated layers, slices of the sequence, calls of other
graphs."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from vlmspec.compiler.emit.expr import atom, call, method, slice_text
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module
from vlmspec.compiler.ir.types import StateType, same_dim
from vlmspec.compiler.ops.activation import ScaledAddAttrs
from vlmspec.compiler.ops.args import Args, Number, Size
from vlmspec.compiler.ops.registry import Op, Operands, StepKind
from vlmspec.diagnostics.model import suggest
from vlmspec.diagnostics.text import quote
from vlmspec.dsl.schema import ComponentName, Name, Title


@dataclass(frozen=True, slots=True)
class GraphAttrs:
    """Which graph a module is an instance of."""

    graphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RepeatAttrs:
    """Which graphs are repeated, how often, and which of them each layer is.

    Layer i is graph number `cycle[i % len(cycle)]`, unless `places` lists i for another one:
    `places[k]` are the layers of
    graph number k + 1.
    """

    graphs: tuple[str, ...]
    count: Dim
    cycle: tuple[int, ...] = (0,)
    places: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class SpanAttrs:
    """Which of the repeated layers run, from `start` up to `stop`, and which of their states are
    kept.

    The states that enter (`before`) or leave the layers `taps` come out side by side: those of one
    layer after another, or
    with the layers' channels in turns (`interleave`).
    """

    start: Dim
    stop: Dim
    taps: tuple[int, ...] = ()
    before: bool = False
    interleave: bool = False


def _emit_call(node, scope):
    operands = [scope.use(v) for _, v in node.inputs]
    return call(scope.module(node), *operands)


CALL = Op(
    "call",
    "Another graph, applied; its operands go by the names of that graph's inputs.",
    infer=lambda ops: (),
    emit=_emit_call,
)


def _infer_repeat(ops: Operands):
    x, taps = ops.tensor("x"), ops.attrs.taps
    return (x, x.with_width(x.width * len(taps))) if taps else (x,)


def _emit_repeat(node, scope):
    """Write the loop; its result keeps the name of the value that runs through it."""
    state = {role for role, v in node.inputs if v.type == StateType("cache")}
    (_, x), *rest = node.inputs
    blocks = scope.module(node) + scope.span(node)
    name = scope.loop_variable(node, x)
    operands = [atom("layer_cache") if role in state else scope.use(v) for role, v in rest]
    target, source = "block", blocks
    if state:
        cache = scope.use(dict(node.inputs)[next(iter(state))]).flat()
        target = "block, layer_cache"
        source = f"zip({blocks}, {cache} or [None] * len({blocks}), strict=True)"
    step = call("block", name, *operands)
    if node.attrs.taps:
        return _emit_taps(node, scope, name, step, (target, source))
    scope.block(f"for {target} in {source}:")
    scope.line(name, step, indent=4)
    return atom(name)


def _emit_taps(node, scope, name: str, step, loop: tuple[str, str]):
    """Write the loop so that it also keeps the states of some layers."""
    attrs, states = node.attrs, scope.claim(node.outputs[1])
    target, source = loop
    scope.block(f"{states} = []")
    scope.block(f"for i, {f'({target})' if ',' in target else target} in enumerate({source}):")
    if not attrs.before:
        scope.line(name, step, indent=4)
    layers = ", ".join(map(str, attrs.taps)) + ("," if len(attrs.taps) == 1 else "")
    scope.block(f"    if i in ({layers}):")
    scope.block(f"        {states}.append({name})")
    if attrs.before:
        scope.line(name, step, indent=4)
    if attrs.interleave:
        scope.line(states, method(call("torch.stack", states, dim="-1"), "flatten", "-2"))
    else:
        scope.line(states, call("torch.cat", states, dim="-1"))
    return atom(f"{name}, {states}")


REPEAT = Op(
    "repeat",
    "Layers of one form, one after another; what is not the running value goes to each of them.",
    infer=_infer_repeat,
    emit=_emit_repeat,
    attrs=SpanAttrs,
    results=("x",),
    inline=False,
)


def call_graph(graph, child, given: dict[str, Any], outputs, name: str, hint: str = "h"):
    """Close `child`, declare it in `graph` as module `name`, and call it; gives its first
    result."""
    return call_results(graph, child, given, outputs, name, [hint])[0]


def call_results(graph, child, given: dict[str, Any], outputs, name: str, hints):
    """The same for a graph of several results, which are named after `hints`."""
    callee = child.finish(*outputs)
    graph.add_module(Module(name, "graph", GraphAttrs((callee.name,)), (), child.span))
    operands = graph.operands_for(child, given)
    return graph.call(name, callee.name, operands, callee.outputs, hints, child.span)


class ResidualArgs(Args):
    """Arguments of `residual`: the steps of the branch, and factors on what it starts from and on
    its result."""

    body: tuple[Any, ...]
    alpha: Number | None = None
    beta: Number | None = None


def _lower_residual(b, x, args: ResidualArgs):
    y = b.lower_body(b, x)
    if args.alpha is None and args.beta is None:
        return b.node("add", {"x": x, "y": y})
    return b.node("scaled_add", {"x": x, "y": y}, ScaledAddAttrs(args.alpha, args.beta))


RESIDUAL_STEP = StepKind(
    "residual",
    "The steps inside are a branch whose result is added to what it started from; "
    "`alpha` scales the latter, `beta` the branch.",
    ResidualArgs,
    _lower_residual,
    shorthand="body",
)


def _listed(value: Any) -> Any:
    """One index as a list of one."""
    return (value,) if type(value) is int else value


class TapsArgs(Args):
    """States of several layers, side by side under a name: those that enter or leave the listed
    layers."""

    layers: Annotated[tuple[int, ...], BeforeValidator(_listed)]
    name: ComponentName
    when: Literal["before", "after"] = "after"
    interleave: bool = False


class BlockArgs(Args):
    """Arguments of `block`: the steps inside, and what they are."""

    body: tuple[Any, ...]
    title: Title = "Steps that belong together."


def _lower_block(b, x, args: BlockArgs):
    path = f"{b.component.name}.{b.name}"
    child = b.graph.child(path, doc=args.title, span=b.span)
    start = child.input("x", x.type)
    result = b.lower_body(b.inside(child, b.weights.prefix), start)
    return call_graph(b.graph, child, {"x": x}, [result], b.name)


BLOCK_STEP = StepKind(
    "block",
    "The steps inside are a module of their own.",
    BlockArgs,
    _lower_block,
    shorthand="body",
    roles={"block": ""},
)


class AgainArgs(Args):
    """Arguments of `again`: the name of an earlier step of this body that is a module."""

    step: str


def _lower_again(b, x, args: AgainArgs):
    found = next((m for m in b.graph.modules if m.name == args.step and m.kind == "graph"), None)
    if found is None:
        named = [m.name for m in b.graph.modules if m.kind == "graph"]
        near = suggest(args.step, named)
        mend = f"did you mean `{near}`?" if near else "name a `block` that stands before it"
        b.fail("VS203", f"no step here is the module {quote(args.step)}", mend)
    callee = b.program.graphs[found.graphs[0]]
    start, *others = callee.inputs
    if others:
        b.fail("VS212", f"{quote(args.step)} reads more than the running value")
    given = {start.name: x}
    return b.graph.call(args.step, callee.name, given, callee.outputs, args.step, b.span)[0]


AGAIN_STEP = StepKind(
    "again",
    "An earlier step that is a module, applied once more with the same weights.",
    AgainArgs,
    _lower_again,
    shorthand="step",
)


class LayersArgs(Args):
    """Arguments of `layers`: how many, and the steps of one of them, or of each kind and which
    layers are of it."""

    count: Size
    body: tuple[Any, ...] = ()
    kinds: dict[Name, Any] = {}
    pattern: tuple[str, ...] = ()
    at: dict[str, tuple[int, ...]] = {}
    leading: dict[str, int] = {}
    taps: TapsArgs | None = None


def _lower_layers(b, x, args: LayersArgs):
    children, places, cycle = _layer_kinds(b, args)
    builders = []
    prefix = b.weights.key("layers") + ".{i}"
    for name, tree in children.items():
        stack = "block" if b.name == "blocks" else b.name.removesuffix("s")
        suffix = stack if len(children) == 1 else f"{name}_{stack}"
        doc = "One layer." if len(children) == 1 else f"One layer, of the kind `{name}`."
        child = b.graph.child(f"{b.graph.name}.{suffix}", per_layer=True, doc=doc, span=b.span)
        start = child.input("x", x.type)
        inner = b.inside(child, prefix)
        inner.tree = tree
        result = b.lower_body(inner, start)
        _check_repeatable(b, start, result)
        builders.append((child, result))
    for child, _ in builders:
        for other, _ in builders:
            for value in list(other.captures):
                child.own(value)
    order = {value.name: place for place, value in enumerate(builders[0][0].inputs)}
    for child, _ in builders:
        child.inputs.sort(key=lambda value: order[value.name])
    graphs = tuple(child.finish(result).name for child, result in builders)
    attrs = RepeatAttrs(graphs, args.count, cycle, places)
    b.graph.add_module(Module(b.name, "repeat", attrs, (), b.span))
    operands = b.graph.operands_for(builders[0][0], {"x": x})
    zero = Dim.const(0)
    if args.taps is not None:
        return _lower_taps(b, args, operands)
    if b.tap is None or b.graph is not b.component:
        return b.node("repeat", operands, SpanAttrs(zero, args.count), module=b.name)
    start = zero
    for layer, stop in _taps(b, args.count):
        if stop != start:
            x = b.node("repeat", operands | {"x": x}, SpanAttrs(start, stop), module=b.name)
        b.tap.values[layer] = x
        start = stop
    return b.node("repeat", operands | {"x": x}, SpanAttrs(start, args.count), module=b.name)


def _taps(b, count: Dim) -> list[tuple[int, Dim]]:
    """The layers after which the state is taken, the first ones first, and how many have run
    there."""
    sizes, depths = b.program.sizes, b.tap.depths(count)
    total = count.value(sizes)
    for layer, depth in depths.items():
        if not 0 <= depth.value(sizes) <= total:
            message = f"layer {layer} is asked for, but there are {total} layers"
            mend = f"choose an index from {-total - 1} to {total}; -1 is the last layer's output"
            b.program.fail("VS313", message, b.tap.span, mend, (count,))
    return sorted(depths.items(), key=lambda item: item[1].value(sizes))


def _lower_taps(b, args: LayersArgs, operands):
    """The layers, and a named value of the states of some of them."""
    taps, total = args.taps, args.count.value(b.program.sizes)
    for layer in taps.layers:
        if not 0 <= layer < total:
            mend = f"choose indices from 0 to {total - 1}"
            b.fail("VS313", f"layer {layer} is tapped, but there are {total} layers", mend)
    before = taps.when == "before"
    attrs = SpanAttrs(Dim.const(0), args.count, taps.layers, before, taps.interleave)
    x, states = b.node("repeat", operands, attrs, module=b.name, hints=("x", taps.name))
    b.values[taps.name] = states
    return x


def _check_repeatable(b, start, result) -> None:
    """A layer gives what the next one takes, so it must keep the shape."""
    before, after = start.type.shape, result.type.shape
    sizes = b.program.sizes
    if len(before) == len(after):
        if all(same_dim(x, y, sizes) for x, y in zip(before, after, strict=True)):
            return
    message = f"a layer takes {start.type} and gives {result.type}"
    mend = "a layer must keep the shape, as the next one takes what it gives"
    b.program.fail("VS305", message, b.span, mend, (*before, *after))


def _layer_kinds(b, args: LayersArgs):
    """The body of each kind, the layers that `at` gives to all but the first, and the cycle of
    `pattern`."""
    if bool(args.body) == bool(args.kinds):
        b.fail("VS102", "`layers` needs a `body`, or `kinds` with `pattern` or `at`")
    if args.body:
        return {"": b.tree}, (), (0,)
    trees = _find_kinds(b.tree)
    order = list(args.kinds)
    words = [word for entry in args.pattern for word in _repeated(b, entry)]
    for word in [*words, *args.at, *args.leading]:
        if word not in order:
            known = ", ".join(f"`{k}`" for k in order)
            b.fail("VS104", f"no kind of layer is called `{word}`; there are {known}")
    given = args.at | {name: tuple(range(count)) for name, count in args.leading.items()}
    places = tuple(given.get(name, ()) for name in order[1:]) if given else ()
    if not places and not words:
        b.fail("VS102", "`kinds` needs `pattern` or `at` to say which layers are of which kind")
    if words:
        total = args.count.value(b.program.sizes)
        layers = tuple(words[i % len(words)] for i in range(total))
        b.scope.settings.spell_out(args.pattern, layers)
        words = _cycle(words)
    return {name: trees[name] for name in order}, places, tuple(map(order.index, words)) or (0,)


def _cycle(words: list[str]) -> list[str]:
    """The shortest beginning that the rest repeats."""
    for length in range(1, len(words)):
        if all(a == b for a, b in zip(words, words[length:], strict=False)):
            return words[:length]
    return words


def _repeated(b, entry: str) -> list[str]:
    """`lightning * 7` as seven words."""
    word, star, times = entry.partition("*")
    if not star:
        return [word.strip()]
    if not re.fullmatch(r" *[1-9][0-9]{0,3} *", times, re.ASCII):
        mend = "write how often, as in `local * 5`, with a number from 1 to 9999"
        b.fail("VS104", f"{quote(entry)} is not an entry of a pattern", mend)
    return [word.strip()] * int(times)


def _find_kinds(tree):
    """The nodes of the kinds' bodies, which stand under the step or under its op."""
    found = tree.get("kinds") or tree.get("layers").get("kinds")
    return {name: node for name, (_, node) in found.items.items()}


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


def _infer_concat(ops: Operands):
    tensors = [ops.tensor(role) for role in ops.types]
    for other in tensors[1:]:
        for a, b in zip(tensors[0].shape[:-1], other.shape[:-1], strict=True):
            ops.require_same(a, b, "what is put side by side differs")
    return (tensors[0].with_width(sum((t.width for t in tensors), Dim.const(0))),)


CONCAT_CHANNELS = Op(
    "concat_channels",
    "Tensors side by side along the channels.",
    infer=_infer_concat,
    emit=lambda node, scope: call(
        "torch.cat", f"[{', '.join(scope.name(v) for _, v in node.inputs)}]", dim="-1"
    ),
    results=("x",),
    inline=False,
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
