"""From a validated spec to a program: components in order, each one's body step by step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import ValidationError

from vlmspec.compiler.body import lower_body
from vlmspec.compiler.builder import (
    GraphBuilder,
    LoweringFailed,
    ProgramBuilder,
    StepBuilder,
    Tap,
    Weights,
)
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Program, Value
from vlmspec.compiler.ir.types import StateType, TensorType
from vlmspec.compiler.ops import OPS, STEPS
from vlmspec.compiler.ops.attention import model_input
from vlmspec.compiler.ops.embed import EMBEDDING_STEP
from vlmspec.compiler.ops.structure import SliceAttrs, call_graph
from vlmspec.compiler.settings import Overrides, Scope, Setting, Settings
from vlmspec.diagnostics.model import Diagnostics, Span, suggest
from vlmspec.dsl.loader import Loaded, load_part, part_names
from vlmspec.dsl.schema import Architecture, Component, FromConfig, Part
from vlmspec.dsl.yaml_nodes import ListNode, MapNode

INPUT_ORDER = ("attention_mask", "position_ids", "cache", "logits_to_keep")
INPUT_TYPES = {
    "text": TensorType((Dim.sym("batch"), Dim.sym("tokens")), "int"),
    "image": TensorType(tuple(Dim.sym(n) for n in ("images", "channels", "height", "width"))),
}


@dataclass(slots=True)
class Place:
    """A component and what belongs to it: its part, its kind, and how names resolve in it."""

    name: str
    component: Component
    kind: str
    op: str
    part: Loaded[Part] | None
    scope: Scope
    tree: MapNode


class Lowering:
    """Lowers one architecture. Faults of separate components are all reported."""

    def __init__(self, spec: Loaded[Architecture], overrides: Overrides, diagnostics: Diagnostics):
        self.spec = spec
        self.architecture = spec.document
        self.diagnostics = diagnostics
        self.settings = Settings(overrides, diagnostics)
        sizes, derived = self.settings.sizes, self.settings.derived
        self.program = ProgramBuilder(OPS, sizes, diagnostics, derived=derived)
        self.root = GraphBuilder(self.program, "model", doc=spec.document.title)
        self.places: dict[str, Place] = {}
        self.values: dict[str, Value] = {}
        self.builders: dict[str, GraphBuilder] = {}
        self.failed: set[str] = set()

    def run(self) -> Program:
        """Lower everything.

        Raises:
            SpecError: with every fault found.
        """
        for name in self.architecture.graph:
            self._place(name)
        self._declare_sizes()
        self._check_overrides()
        self.settings.resolve_all()
        order = self._order()
        self.diagnostics.raise_if_errors()
        self._declare_inputs()
        for name in order:
            self._lower(name)
        outputs = self._outputs()
        self.diagnostics.raise_if_errors()
        self._order_inputs()
        graph = self.root.finish(*outputs)
        graphs = {"model": graph, **{k: v for k, v in self.program.graphs.items() if k != "model"}}
        return Program(
            self.architecture.name,
            graphs,
            dict(self.settings.sizes),
            keys=tuple(self.settings.keys.values()),
            options=tuple(self.settings.options.values()),
            derived=dict(self.settings.derived),
            alternates=tuple(self.program.alternates),
        )

    # -------------------------------------------------------------------------------- declarations

    def _place(self, name: str) -> None:
        component = self.architecture.graph[name]
        tree = self.spec.tree.items["graph"][1].items[name][1]
        span = self.spec.tree.items["graph"][1].key_span(name)
        kinds = component.kinds
        if len(kinds) != 1:
            code, what = ("VS209", "no kind") if not kinds else ("VS210", "several kinds")
            mend = "give one of `encoder:`, `connector:`, `fusion:`, `decoder:`, `head:`"
            self.diagnostics.error(code, f"component `{name}` has {what}", span, help=mend)
            return
        ((kind, op),) = kinds
        part = self._find_part(name, kind, op, tree.items[kind][1].span)
        scope = Scope(self.settings, name, component.config, span)
        if part or op in STEPS:
            self.places[name] = Place(name, component, kind, op, part, scope, tree)

    def _find_part(self, name: str, kind: str, op: str, span: Span) -> Loaded[Part] | None:
        part = load_part(op, self.spec.folder)
        steps = {n: s for n, s in STEPS.items() if s.component}
        if part is not None:
            if part.document.kind != kind:
                message = f"part `{op}` is a {part.document.kind}, not a {kind}"
                self.diagnostics.error(
                    "VS207", message, span, help=f"write `{part.document.kind}: {op}`"
                )
            return part
        if op not in steps:
            near = suggest(op, [*part_names(self.spec.folder), *steps])
            mend = f"did you mean `{near}`?" if near else "`vlmspec list --parts` shows them"
            self.diagnostics.error("VS202", f"no part or op is called `{op}`", span, help=mend)
        elif kind not in steps[op].component:
            allowed = " or ".join(f"`{k}:`" for k in steps[op].component)
            self.diagnostics.error(
                "VS207", f"`{op}` is not a {kind}; it goes under {allowed}", span
            )
        return None

    def _declare_sizes(self) -> None:
        for name, definition in self.architecture.sizes.items():
            span = self.spec.span("sizes", name)
            self.settings.declare(Setting(name, definition, span, ""))
        for place in self.places.values():
            if place.part is not None:
                self._declare_part(place, place.part)

    def _declare_part(self, place: Place, part: Loaded[Part]) -> None:
        given = dict(place.component.arguments)
        for group in ("sizes", "options"):
            for name, definition in getattr(part.document, group).items():
                span = part.span(group, name)
                if name in given:
                    definition, span = self._override(place, name, definition, given.pop(name))
                full = f"{place.name}.{name}"
                option = group == "options"
                self.settings.declare(
                    Setting(full, definition, span, place.component.config, option)
                )
        known = [*part.document.sizes, *part.document.options]
        for name in given:
            near = suggest(name, known)
            mend = (
                f"did you mean `{near}`?"
                if near
                else f"it has {', '.join(f'`{k}`' for k in known)}"
            )
            message = f"part `{place.op}` has no size or option `{name}`"
            self.diagnostics.error("VS214", message, place.tree.key_span(name), help=mend)

    def _override(self, place: Place, name: str, definition: Any, value: Any):
        """What a spec says of a part's size: a new default, or a whole new definition."""
        span = place.tree.items[name][1].span
        if isinstance(value, dict):
            try:
                return FromConfig.model_validate(value), span
            except ValidationError as error:
                what = error.errors()[0]
                message = f"`{'.'.join(map(str, what['loc']))}`: {what['msg'].lower()}"
                self.diagnostics.error("VS103", message, span)
                return definition, span
        if isinstance(definition, FromConfig):
            return definition.model_copy(update={"default": value}), span
        return value, span

    def _check_overrides(self) -> None:
        """Every `--set` and every value of the variant must name something."""
        overrides = self.settings.overrides
        for name in overrides.values:
            if name not in self.settings.settings:
                near = suggest(name, self.settings.settings)
                mend = f"did you mean `{near}`?" if near else None
                self.diagnostics.error(
                    "VS309", f"`--set {name}`: no such size or option", help=mend
                )
        for variant, components in self.architecture.variants.items():
            for component, values in components.items():
                self._check_variant(variant, component, values)

    def _check_variant(self, variant: str, component: str, values: Any) -> None:
        names = values if isinstance(values, dict) else {None: None}
        for short in names:
            full = f"{component}.{short}" if short is not None else component
            if full in self.settings.settings:
                continue
            path = ("variants", variant, component) + (() if short is None else (short,))
            near = suggest(full, self.settings.settings)
            mend = f"did you mean `{near}`?" if near else None
            span = self.spec.span(*path, key=True)
            self.diagnostics.error(
                "VS310", f"variant `{variant}` sets `{full}`, which is not there", span, help=mend
            )

    # --------------------------------------------------------------------------------- data flow

    def operands(self, name: str) -> dict[str, str]:
        """What a component reads, by role; a single operand's role is `x`."""
        given = self.architecture.graph[name].from_
        if isinstance(given, str):
            return {"x": given}
        if isinstance(given, dict) and all(isinstance(v, str) for v in given.values()):
            return given
        span = self.spec.span("graph", name, "from")
        self.diagnostics.error("VS103", "`from` is a name, or a mapping of roles to names", span)
        return {}

    def _order(self) -> list[str]:
        known = {*self.architecture.inputs, *self.architecture.graph}
        edges: dict[str, list[str]] = {}
        for name in self.architecture.graph:
            edges[name] = []
            for role, operand in self.operands(name).items():
                if operand in self.architecture.graph:
                    edges[name].append(operand)
                elif operand not in known:
                    self._unknown_operand(name, role, operand, known)
        used = {o for name in edges for o in self.operands(name).values()}
        used |= set(self.architecture.outputs.values())
        for name in known - used:
            group = "inputs" if name in self.architecture.inputs else "graph"
            code, what = ("VS206", "input") if group == "inputs" else ("VS205", "component")
            span = self.spec.span(group, name, key=True)
            self.diagnostics.warning(code, f"nothing reads {what} `{name}`", span)
        try:
            return list(TopologicalSorter(edges).static_order())
        except CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            span = self.spec.span("graph", error.args[1][0], key=True)
            self.diagnostics.error("VS204", f"components read each other: {circle}", span)
            return []

    def _unknown_operand(self, name: str, role: str, operand: str, known: set[str]) -> None:
        near = suggest(operand, known)
        listed = ", ".join(f"`{k}`" for k in sorted(known))
        mend = f"did you mean `{near}`?" if near else f"there are {listed}"
        loc = ("graph", name, "from") + (() if role == "x" else (role,))
        message = f"no input or component is called `{operand}`"
        self.diagnostics.error("VS203", message, self.spec.span(*loc), help=mend)

    def _declare_inputs(self) -> None:
        kinds = self.architecture.inputs
        optional_images = "text" in kinds.values()
        for name, kind in kinds.items():
            type = INPUT_TYPES[kind]
            if kind == "image":
                type = self._image_type(name, type)
                if optional_images:
                    type = replace(type, optional=frozenset({name}))
            self.values[name] = self.root.input(name, type)

    def _image_type(self, name: str, type: TensorType) -> TensorType:
        """The shape that the first part reading an image demands of it."""
        for place in self.places.values():
            shape = place.part.document.input if place.part else ()
            if shape and name in self.operands(place.name).values():
                return type.with_shape(*(place.scope.size(d) for d in shape))
        return type

    def _lower(self, name: str) -> None:
        place = self.places[name]
        if any(o in self.failed for o in self.operands(name).values()):
            self.failed.add(name)
            return
        try:
            self.values[name] = self._lower_component(place)
        except LoweringFailed:
            self.failed.add(name)

    def _lower_component(self, place: Place) -> Value:
        operands = {r: self.values[o] for r, o in self.operands(place.name).items()}
        if place.part is None and STEPS[place.op].flow:
            return self._lower_flow(place, operands)
        x = next(iter(operands.values()))
        builder = self._builder(place)
        if place.part is not None and place.part.document.embed and x.type.dtype == "int":
            x = self._embed(place, x)
        source = next(iter(self.operands(place.name).values()))
        start = builder.input(source if source in self.architecture.inputs else "x", x.type)
        builder.stream = start
        step = self._step(place, builder)
        result = lower_body(step, start) if place.part else self._lower_single(place, step, start)
        result = self._finish_body(place, step, builder, result)
        given = {start.name: x}
        return call_graph(self.root, builder, given, [result], place.name, place.name)

    def _builder(self, place: Place) -> GraphBuilder:
        if place.name not in self.builders:
            title = place.part.document.title if place.part else STEPS[place.op].doc
            span = self.spec.span("graph", place.name, key=True)
            builder = self.root.child(place.name, doc=title, span=span)
            self.builders[place.name] = builder
        return self.builders[place.name]

    def _step(self, place: Place, builder: GraphBuilder, group: str = "body") -> StepBuilder:
        """The builder of a component's body (or its `embed` or `head`)."""
        if place.part is not None:
            steps = place.part.tree.get(group)
            assert isinstance(steps, ListNode)
        else:
            steps = place.tree
        given = place.component.weights
        prefix = self._weights_prefix(given) if isinstance(given, str) else ""
        tap = self._tap(place) if group == "body" else None
        return StepBuilder(
            builder,
            builder,
            place.name,
            Weights(prefix, {}),
            steps,
            builder.span,
            lower_body,
            tap,
            place.scope,
        )

    def _weights_prefix(self, text: str) -> str:
        """The canonical prefix of `a | b`; the alternatives are remembered for the loader."""
        names = tuple(part.strip() for part in text.split("|"))
        if len(names) > 1:
            self.program.alternates[names] = None
        return names[0]

    def _lower_single(self, place: Place, step: StepBuilder, x: Value) -> Value:
        """A component that is one op: its arguments stand in the component itself."""
        from vlmspec.compiler.body import lower_component_step

        return lower_component_step(step, place.op, place.component, x)

    def _tap(self, place: Place) -> Tap | None:
        take = place.component.take
        if take is None:
            return None
        span = self.spec.span("graph", place.name, "take")
        layer = self._option(place, take.layer, "take_layer", span)
        if layer is None:
            return None
        if isinstance(layer, bool) or not isinstance(layer, int):
            message = f"`take.layer` must be a layer's index, not {layer!r}"
            self.program.fail("VS103", message, span)
        return Tap(layer, span)

    def _option(self, place: Place, value: Any, name: str, span: Span) -> Any:
        from pydantic_core import PydanticCustomError

        try:
            return place.scope.option(value, name)
        except PydanticCustomError as error:
            context: Mapping[str, Any] = error.context or {}
            self.program.fail(context["code"], context["message"], span, context.get("help"))

    def _finish_body(
        self, place: Place, step: StepBuilder, builder: GraphBuilder, x: Value
    ) -> Value:
        if step.tap is not None:
            if step.tap.value is None:
                self.program.fail("VS313", "`take.layer` needs a body with `layers`", step.tap.span)
            x = step.tap.value
        take = place.component.take
        if take is not None:
            span = self.spec.span("graph", place.name, "take")
            drop = self._option(place, take.drop, "take_drop", span)
            if drop not in ("cls", "none"):
                self.program.fail("VS104", f"`take.drop` is `cls` or `none`, not {drop!r}", span)
            if drop == "cls" and builder.prefix_tokens != Dim.const(0):
                attrs = SliceAttrs(builder.prefix_tokens)
                (x,) = builder.node("slice_tokens", {"x": x}, attrs, span=span)
        if "past" in builder.ambient:
            operands = {"x": x, "cache": model_input(builder, "cache")}
            builder.node("advance_cache", operands, span=builder.span)
        if place.part is not None and place.part.document.head:
            keep = model_input(builder, "logits_to_keep")
            (x,) = builder.node("last_tokens", {"x": x, "keep": keep}, span=builder.span)
            x = lower_body(self._step(place, builder, "head"), x)
        return x

    # ----------------------------------------------------------------------------- text and fusion

    def _embed(self, place: Place, ids: Value) -> Value:
        """Token embeddings of `ids`, by the decoder's own `embed` steps, computed outside its body."""
        builder = self._builder(place)
        path = f"{place.name}.embed"
        child = builder.child(path, doc="Token embeddings.", span=builder.span)
        start = child.input("ids", ids.type)
        step = self._step(place, child, "embed")
        result = lower_body(replace(step, component=child), start)
        graph = child.finish(result)
        if len(graph.nodes) == 1 and graph.nodes[0].op == "embedding":
            del self.program.graphs[path]
            table = replace(graph.modules[0], name="embed")
            builder.add_module(table)
            operands = {"ids": ids}
            return self.root.node("embedding", operands, module=path, state=table, span=table.span)[
                0
            ]
        from vlmspec.compiler.ops.structure import GraphAttrs

        builder.add_module(Module("embed", "graph", GraphAttrs((path,)), (), builder.span))
        return self.root.call(path, {"ids": ids}, graph.outputs, "x", builder.span)[0]

    def _lower_flow(self, place: Place, operands: dict[str, Value]) -> Value:
        """A fusion: an op over several streams, in the model's own graph."""
        from vlmspec.compiler.body import lower_component_step

        span = self.spec.span("graph", place.name, "from")
        for role in ("text", "image"):
            if role not in operands:
                mend = "write `from: {text: input_ids, image: …}`"
                self.program.fail("VS211", f"`{place.op}` needs the operand `{role}`", span, mend)
        ids = operands["text"]
        if ids.type.dtype == "int":
            operands = operands | {"embeds": self._embed(self._reader(place), ids)}
        step = self._step(place, self.root)
        return lower_component_step(step, place.op, place.component, operands)

    def _reader(self, place: Place) -> Place:
        """The decoder that reads a fusion, and so embeds its text."""
        for other in self.places.values():
            if place.name in self.operands(other.name).values() and other.part:
                if other.part.document.embed:
                    return other
        span = self.spec.span("graph", place.name, key=True)
        self.program.fail(
            "VS211",
            f"no decoder that embeds text reads `{place.name}`",
            span,
            "a fusion's `text` is embedded by the decoder whose `from` names the fusion",
        )
        raise AssertionError

    def _outputs(self) -> list[Value]:
        found = []
        for name, component in self.architecture.outputs.items():
            if component in self.values:
                found.append(self.values[component])
            elif component not in self.failed:
                near = suggest(component, self.values)
                mend = f"did you mean `{near}`?" if near else None
                span = self.spec.span("outputs", name)
                self.diagnostics.error(
                    "VS213", f"no component is called `{component}`", span, help=mend
                )
        return found

    def _order_inputs(self) -> None:
        """Ids first, then what the processor makes, then what generation passes."""
        kinds = self.architecture.inputs
        text = [n for n, kind in kinds.items() if kind == "text"]
        rank = [*text, "attention_mask", "position_ids", *kinds, *INPUT_ORDER[2:]]
        self.root.inputs.sort(key=lambda v: rank.index(v.name))


def lower(spec: Loaded[Architecture], overrides: Overrides, diagnostics: Diagnostics) -> Program:
    """Lower an architecture to a program of typed graphs.

    Raises:
        SpecError: with every fault found.
    """
    return Lowering(spec, overrides, diagnostics).run()
