"""Bodies: reading steps, checking their arguments, lowering them one after another."""

from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from vlmspec.compiler.builder import LoweringFailed, StepBuilder, Weights
from vlmspec.compiler.ir.graph import Value
from vlmspec.compiler.ops import STEPS
from vlmspec.compiler.ops.registry import StepKind
from vlmspec.compiler.ops.structure import call_graph
from vlmspec.compiler.settings import Scope
from vlmspec.diagnostics.model import Span, suggest
from vlmspec.dsl.loader import report
from vlmspec.dsl.schema import Component
from vlmspec.dsl.yaml_nodes import ListNode, MapNode, Node, ScalarNode

STEP_KEYS = ("name", "weights")


def lower_body(b: StepBuilder, x: Value) -> Value:
    """Lower the steps that `b.tree` holds, from the running value `x`; faults of all steps are reported."""
    steps = body_of(b.tree)
    if steps is None or not steps.items:
        b.fail("VS102", "a body needs at least one step", "a body is a list of steps")
    failed = False
    for step in steps.items:
        try:
            x = lower_step(b, step, x)
        except LoweringFailed:
            failed = True
            break
    if failed:
        raise LoweringFailed
    return x


def body_of(tree: Node) -> ListNode | None:
    """The list of steps that a step's node holds: its value, or its `body`."""
    if isinstance(tree, ListNode):
        return tree
    if isinstance(tree, MapNode):
        found = tree.get("body")
        if isinstance(found, ListNode):
            return found
        for key, (_, value) in tree.items.items():
            if key in STEPS:
                return body_of(value)
    return None


def lower_step(b: StepBuilder, node: Node, x: Value) -> Value:
    """Lower one step of a body."""
    op, value = find_op(b, node)
    kind = STEPS[op]
    span = node.key_span(op) if isinstance(node, MapNode) else node.span
    raw, extra = step_arguments(node, op)
    args = validate(b, kind, raw, node, value, span)
    name = extra.get("name") or kind.module or op
    weights = step_weights(b, kind, extra.get("weights"), node)
    inner = replace(b, name=check_name(b, name, node), weights=weights, tree=node, span=span)
    if kind.composite and b.graph is not b.component:
        child = b.graph.child(f"{b.component.name}.{name}", doc=kind.doc, span=span)
        start = child.input("x", x.type)
        result = kind.lower(inner.inside(child), start, args)
        return call_graph(b.graph, child, {"x": x}, [result], name)
    return kind.lower(inner, x, args)


def find_op(b: StepBuilder, node: Node) -> tuple[str, Node | None]:
    """The op that a step names, and the node of its arguments."""
    if isinstance(node, ScalarNode) and isinstance(node.value, str):
        names, value = [node.value], None
    elif isinstance(node, MapNode) and node.items:
        ops = [k for k in node.items if k in STEPS]
        names = ops or [next((k for k in node.items if k not in STEP_KEYS), "")]
        value = node.get(names[0])
    else:
        b.program.fail("VS103", "a step is an op's name, or a mapping with one", node.span)
    if names[0] not in STEPS:
        span = node.key_span(names[0]) if isinstance(node, MapNode) else node.span
        near = suggest(names[0], STEPS)
        mend = f"did you mean `{near}`?" if near else "`docs/ops.md` lists the ops"
        b.program.fail("VS201", f"no op is called `{names[0]}`", span, mend)
    if len(names) > 1:
        message = f"one step names several ops: {', '.join(f'`{n}`' for n in names)}"
        b.program.fail("VS111", message, node.key_span(names[1]), "start another step with `- `")
    return names[0], value


def step_arguments(node: Node, op: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a step, and its `name` and `weights`.

    Arguments stand under the op, or beside it where the op has a shorthand value.
    """
    if not isinstance(node, MapNode):
        return {}, {}
    kind = STEPS[op]
    plain = node.plain()
    extra = {k: plain.pop(k) for k in STEP_KEYS if k in plain}
    given = plain.pop(op)
    nested = given if isinstance(given, dict) and "config" not in given else None
    if nested is None and given is not None:
        nested = {kind.shorthand or "": given}
    return {**plain, **(nested or {})}, extra


def validate(
    b: StepBuilder, kind: StepKind, raw: dict[str, Any], node: Node, value: Node | None, span: Span
) -> Any:
    """Check arguments against the op's model; sizes and options resolve in the component's scope."""
    try:
        return kind.args.model_validate(raw, context={"scope": b.scope})
    except ValidationError as error:
        place = _argument_tree(kind, node, value)
        report(b.program.diagnostics, error, place, kind.args, at=span)
    raise LoweringFailed


def _argument_tree(kind: StepKind, node: Node, value: Node | None) -> Node:
    """One mapping that has every argument's place, wherever it stands."""
    if not isinstance(node, MapNode):
        return node
    items = {k: v for k, v in node.items.items() if k not in STEP_KEYS}
    if isinstance(value, MapNode):
        items |= value.items
    elif value is not None and kind.shorthand:
        items[kind.shorthand] = (value.span, value)
    return MapNode(items, node.span)


def check_name(b: StepBuilder, name: Any, node: Node) -> str:
    """A module's name must be an identifier that the emitted class can have as an attribute."""
    span = (
        node.items["name"][1].span
        if isinstance(node, MapNode) and "name" in node.items
        else node.span
    )
    if (
        not isinstance(name, str)
        or not name.isascii()
        or not name.isidentifier()
        or name != name.lower()
    ):
        b.program.fail("VS105", f"`{name}` is not a name", span, "small letters, digits and `_`")
    if name in RESERVED or name.startswith("_"):
        b.program.fail("VS106", f"`{name}` is taken: a torch module has it already", span)
    return name


RESERVED = frozenset(
    "forward self training parameters buffers modules children train eval to cuda cpu half float double "
    "bfloat16 type apply zero_grad requires_grad_ share_memory compile state_dict load_state_dict "
    "register_buffer register_parameter add_module config generate save_pretrained from_pretrained "
    "and as assert async await break class continue def del elif else except finally for from global if "
    "import in is lambda nonlocal not or pass raise return try while with yield none true false torch "
    "nn math new_cache weight_map num_parameters x cache mask cos sin positions past".split()
)


def step_weights(b: StepBuilder, kind: StepKind, given: Any, node: Node) -> Weights:
    """Where a step's tensors live: a prefix, a list of names in the order of the roles, or names by role."""
    roles = dict(kind.roles)
    base = b.weights.prefix
    join = lambda name: ".".join(filter(None, (base, name)))  # noqa: E731
    if given is None:
        own = "" if "" in roles.values() or not roles else ""
        return Weights(join(own), roles)
    if isinstance(given, str):
        return Weights(join(given), roles)
    span = node.items["weights"][1].span if isinstance(node, MapNode) else None
    if isinstance(given, list) and all(isinstance(g, str) for g in given):
        names = (
            list(roles) if len(roles) == len(given) else [f"linear_{i}" for i in range(len(given))]
        )
        return Weights(base, dict(zip(names, given, strict=True)))
    if isinstance(given, dict) and all(isinstance(g, str) for g in given.values()):
        for role in given:
            if role not in roles:
                known = ", ".join(f"`{r}`" for r in roles)
                b.program.fail("VS101", f"no weights are called `{role}`; there are {known}", span)
        return Weights(base, roles | given)
    b.program.fail("VS103", "`weights` is a name, a list of names, or a mapping of names", span)
    raise AssertionError


def lower_component_step(b: StepBuilder, op: str, component: Component, x: Any) -> Value:
    """Lower a component that is one op; its arguments stand in the component itself."""
    kind = STEPS[op]
    span = b.tree.key_span(op) if op in b.tree.items else b.span
    try:
        args = kind.args.model_validate(component.arguments, context={"scope": b.scope})
    except ValidationError as error:
        report(b.program.diagnostics, error, b.tree, kind.args, at=span)
        raise LoweringFailed from None
    given = component.weights
    given = list(given) if isinstance(given, tuple) else given
    outer = replace(b, weights=Weights("", {}))
    weights = step_weights(outer, kind, given or None, b.tree)
    return kind.lower(replace(b, weights=weights, name=kind.module or op), x, args)
