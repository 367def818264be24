"""Bodies: reading steps, checking their arguments, lowering them one after another."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from vlmspec.compiler.builder import LoweringFailed, StepBuilder, Weights
from vlmspec.compiler.ir.graph import Value
from vlmspec.compiler.ops import STEPS
from vlmspec.compiler.ops.registry import StepKind
from vlmspec.compiler.ops.structure import call_graph
from vlmspec.diagnostics.model import Label, Span, suggest
from vlmspec.dsl.faults import near_or_list, report, show
from vlmspec.dsl.names import MODULES
from vlmspec.dsl.schema import KINDS, Component, WeightName
from vlmspec.dsl.yaml_nodes import ListNode, MapNode, Node, ScalarNode

STEP_KEYS = ("name", "weights", "from", "as", "when")


def lower_body(b: StepBuilder, x: Value) -> Value:
    """Lower the steps that `b.tree` holds, from the running value `x`; faults of all steps are
    reported."""
    steps = body_of(b.tree)
    if steps is None or not steps.items:
        b.fail("VS102", "a body needs at least one step", "a body is a list of steps")
    for index, step in enumerate(steps.items):
        try:
            x = lower_step(b, step, x)
        except LoweringFailed:
            check_steps(b, steps.items[index:])
            raise
    return x


def check_steps(b: StepBuilder, steps: Sequence[Node]) -> None:
    """Check what can be checked of steps without lowering them: ops, arguments, names, weights."""
    for step in steps:
        try:
            kind = step_parts(b, step)[0]
        except LoweringFailed:
            continue
        if "body" in kind.args.model_fields and (inner := body_of(step)):
            check_steps(b, inner.items)


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
    if not is_wanted(b, node):
        return x
    kind, args, inner, extra = step_parts(b, node)
    running = x
    if "from" in extra:
        x = inner.value(extra["from"])
    if kind.aside:
        inner.name = check_name(b, extra.get("as", inner.name), node, "as")
    if kind.composite and (b.graph is not b.component or "name" in extra):
        result = lower_composite(inner, kind, x, args)
    else:
        result = kind.lower(inner, x, args)
    if "as" in extra:
        name = check_name(b, extra["as"], node, "as")
        b.values[name] = result
        b.graph.aliases[result] = name
    return result if not kind.aside else running


def is_wanted(b: StepBuilder, node: Node) -> bool:
    """Whether a step is there at all: one with `when:` is where that option says so."""
    if not isinstance(node, MapNode) or "when" not in node.items:
        return True
    given = node.plain()["when"]
    try:
        wanted = b.scope.option(given, "when")
    except PydanticCustomError as error:
        context: dict[str, Any] = dict(error.context or {})
        place = node.items["when"][1].span
        b.program.fail(context["code"], context["message"], place, context.get("help"))
    if not isinstance(wanted, bool):
        message = f"`when` is {show(wanted)}, not `true` or `false`"
        b.program.fail("VS103", message, node.items["when"][1].span, "name an option, as `$pool`")
    return wanted


def lower_composite(b: StepBuilder, kind: StepKind, x: Value, args: Any) -> Value:
    """A step that becomes a class of its own: lower it into a graph, and call that."""
    child = b.graph.child(f"{b.component.name}.{b.name}", doc=kind.doc, span=b.span)
    start = child.input("x", x.type)
    result = kind.lower(b.inside(child), start, args)
    return call_graph(b.graph, child, {"x": x}, [result], b.name)


def step_parts(b: StepBuilder, node: Node) -> tuple[StepKind, Any, StepBuilder, dict[str, Any]]:
    """What a step is made of: op, arguments, the builder with name and weights, other keys.

    A fault in one of them does not keep the others from being checked.
    """
    op, value = find_op(b, node)
    kind = STEPS[op]
    span = node.key_span(op) if isinstance(node, MapNode) else node.span
    check_keys(b, kind, op, node, value)
    raw, extra = step_arguments(node, op)
    found = []
    for check in (
        lambda: validate(b, kind, raw, node, value, span),
        lambda: check_name(b, default_name(kind, extra), node),
        lambda: step_weights(b, kind, extra.get("weights"), node, default_name(kind, extra)),
    ):
        with suppress(LoweringFailed):
            found.append(check())
    if len(found) < 3:
        raise LoweringFailed
    args, name, weights = found
    return kind, args, replace(b, name=name, weights=weights, tree=node, span=span), extra


def check_keys(b: StepBuilder, kind: StepKind, op: str, node: Node, value: Node | None) -> None:
    """Refuse a value that an op cannot take, and an argument that is given twice."""
    if value is None or not isinstance(node, MapNode):
        return
    is_nested = isinstance(value, MapNode) and "config" not in value.items
    given = {*(value.items if isinstance(value, MapNode) and is_nested else {})}
    if not is_nested and not (isinstance(value, ScalarNode) and value.value is None):
        if not kind.shorthand:
            fields = ", ".join(f"`{name}`" for name in kind.args.model_fields)
            mend = f"give its arguments by name: {fields}" if fields else "write the op alone"
            b.program.fail("VS103", f"`{op}` takes no bare value", value.span, mend)
        given = {kind.shorthand}
    for name in given & {*node.items}:
        message = f"`{name}` is given twice: under `{op}` and beside it"
        b.program.fail("VS111", message, node.key_span(name), "keep one of the two")


def find_op(b: StepBuilder, node: Node) -> tuple[str, Node | None]:
    """The op that a step names, and the node of its arguments."""
    if isinstance(node, ScalarNode) and isinstance(node.value, str):
        names, value = [node.value], None
    elif isinstance(node, MapNode) and node.items:
        ops = [k for k in node.items if k in STEPS]
        # The name of an op may also be an argument of the first, as `act` of `mlp`.
        ops = ops[:1] + [k for k in ops[1:] if k not in STEPS[ops[0]].args.model_fields]
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
    """Check arguments against the op's model; sizes and options resolve in the component's
    scope."""
    try:
        return kind.args.model_validate(raw, context={"scope": b.scope})
    except ValidationError as error:
        place = _argument_tree(kind, node, value)
        report(b.program.diagnostics, error, place, kind.args, span, origin_of(b, raw))
    raise LoweringFailed


def origin_of(b: StepBuilder, raw: Any) -> Callable[[tuple[str | int, ...]], Label | None]:
    """Says where the value of an argument was given, if the argument only names it."""

    def find(path: tuple[str | int, ...]) -> Label | None:
        value, name = raw, ""
        for part in path:
            if isinstance(part, str):
                name = part
            value = value[part] if isinstance(value, (dict, list)) else None
        return b.scope.origin(value, name)

    return find


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


def check_name(b: StepBuilder, name: Any, node: Node, key: str = "name") -> str:
    """A module's name must be an identifier that the emitted class can have as an attribute."""
    span = node.items[key][1].span if isinstance(node, MapNode) and key in node.items else node.span
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        mend = "a name starts with a small letter and has small letters, digits and `_`"
        b.program.fail("VS105", f"{show(name)} is not a name", span, mend)
    if name in MODULES:
        message = f"`{name}` is taken: the emitted code has something of this name already"
        b.program.fail("VS106", message, span, f"choose another name, such as `{name}_1`")
    return name


_WEIGHTS = TypeAdapter(WeightName | tuple[WeightName, ...] | dict[str, WeightName])


def default_name(kind: StepKind, extra: dict[str, Any]) -> Any:
    """What a step's module is called: its `name`, else the op's own name."""
    return extra.get("name") or kind.module or kind.name


def step_weights(b: StepBuilder, kind: StepKind, given: Any, node: Node, name: str) -> Weights:
    """Where a step's tensors live: a prefix, a list of names in the order of the roles, or names by
    role.

    Without `weights:` a step that has some is called in the checkpoint as it is here.
    """
    roles = dict(kind.roles)
    base, renames = b.weights.prefix, b.weights.renames
    if given is None and roles:
        given = name
    if given is None or given == "":
        return Weights(base, roles, renames)
    tree = node.get("weights") if isinstance(node, MapNode) else None
    try:
        _WEIGHTS.validate_python(given)
    except ValidationError as error:
        report(b.program.diagnostics, error, tree or node, None)
        raise LoweringFailed from None
    if isinstance(given, str):
        return Weights(".".join(filter(None, (base, renamed(given, renames)))), roles)
    if isinstance(given, (list, tuple)):
        names = list(roles)
        if "widths" in kind.args.model_fields and len(roles) != len(given):
            names = [f"linear_{i}" for i in range(len(given))]
        if len(names) != len(given):
            mend = near_or_list("", [r for r in roles if r], "in this order")
            message = f"{len(given)} names are given for the weights of {len(names)} roles"
            b.program.fail("VS104", message, tree.span if tree else b.span, mend)
        found = [renamed(name, renames) for name in given]
        return Weights(base, dict(zip(names, found, strict=True)))
    for role in given:
        if role not in roles:
            span = tree.key_span(role) if isinstance(tree, MapNode) else b.span
            mend = near_or_list(role, [r for r in roles if r], "there are") or "give one name"
            b.program.fail("VS101", f"this op has no weights called {show(role)}", span, mend)
    return Weights(base, roles | {role: renamed(name, renames) for role, name in given.items()})


def renamed(name: str, renames: Mapping[str, str]) -> str:
    """A name of a part's tensors, with its first words as the component says the checkpoint has
    them."""
    for old, new in renames.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def component_args(b: StepBuilder, op: str, component: Component) -> Any:
    """Check the arguments of a component that is one op."""
    kind = STEPS[op]
    try:
        return kind.args.model_validate(component.arguments, context={"scope": b.scope})
    except ValidationError as error:
        origin = origin_of(b, component.arguments)
        report(b.program.diagnostics, error, b.tree, kind.args, component_span(b, op), origin)
    raise LoweringFailed


def component_span(b: StepBuilder, op: str) -> Span:
    """Where a component says which op it is."""
    nodes = [node for key, (_, node) in b.tree.items.items() if key in KINDS]
    return next((n.span for n in nodes if isinstance(n, ScalarNode) and n.value == op), b.tree.span)


def lower_component_step(b: StepBuilder, op: str, component: Component, x: Any) -> Value:
    """Lower a component that is one op; its arguments stand in the component itself."""
    kind = STEPS[op]
    args = component_args(b, op, component)
    given = component.weights
    b = replace(b, span=component_span(b, op))
    outer = replace(b, weights=Weights("", {}))
    weights = step_weights(outer, kind, given, b.tree, b.name)
    return kind.lower(replace(b, weights=weights, name=kind.module or op), x, args)
