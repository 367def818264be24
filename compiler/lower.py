"""From a validated spec to a program: components in order, each one's body step by step."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic_core import PydanticCustomError

from vlmspec.compiler.body import check_steps, component_args, lower_body
from vlmspec.compiler.builder import (
    GraphBuilder,
    LoweringFailed,
    StepBuilder,
    Tap,
    Weights,
)
from vlmspec.compiler.declarations import INPUT_ORDER, Declarations, Place
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Program, Value
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops import STEPS
from vlmspec.compiler.ops.attention import model_input
from vlmspec.compiler.ops.structure import SliceAttrs, call_results
from vlmspec.compiler.settings import Overrides
from vlmspec.diagnostics.model import Diagnostics, Span, SpecError
from vlmspec.dsl.faults import near_or_list, show
from vlmspec.dsl.loader import Loaded
from vlmspec.dsl.schema import Architecture
from vlmspec.dsl.yaml_nodes import ListNode, MapNode, locate


class Lowering(Declarations):
    """Lowers one architecture, once its declarations are in order."""

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
        if self.diagnostics.has_errors:
            self._check_bodies()
        self.diagnostics.raise_if_errors()
        self._declare_inputs()
        if self.diagnostics.has_errors:
            self._check_bodies()
        self.diagnostics.raise_if_errors()
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

    def _lower(self, name: str) -> None:
        if name in self.again:
            if self.again[name] in self.failed:
                self.failed.add(name)
            else:
                self.values[name] = self._lower_again(name, self.again[name])
            return
        place = self.places[name]
        with self._collecting(place):
            if any(o in self.failed for o in self.operands(name).values()):
                self.failed.add(name)
                self._check_alone(place)
                return
            try:
                self.values[name] = self._lower_component(place)
            except LoweringFailed:
                self.failed.add(name)

    def _check_alone(self, place: Place) -> None:
        """Check the arguments of a component whose operands are not known."""
        if place.part is None:
            with suppress(LoweringFailed):
                component_args(self._step(place, self.root), place.op, place.component)
            return
        for group in ("embed", "body", "head"):
            steps = place.part.tree.get(group)
            if isinstance(steps, ListNode):
                with suppress(LoweringFailed):
                    check_steps(self._step(place, self.root, group), steps.items)

    def _lower_component(self, place: Place) -> Value:
        operands = {r: self.values[o] for r, o in self.operands(place.name).items()}
        if place.part is None and STEPS[place.op].flow:
            return self._lower_flow(place, operands)
        (first, x), *others = operands.items()
        self._check_operand(place, x, [role for role, _ in others])
        builder = self._builder(place)
        if place.part is not None and place.part.document.embed and x.type.dtype == "int":
            x = self._embed(place, x)
        source = next(iter(self.operands(place.name).values()))
        start = builder.input(source if self.values.get(source) is x else "x", x.type)
        builder.stream = start
        builder.given = {start: x}
        given = {start.name: x}
        step = self._step(place, builder)
        step.values[first] = start
        for role, value in others:
            inner = builder.input(role, self._operand_type(place, value, x))
            builder.given[inner] = value
            given[inner.name] = value
            step.values[role] = inner
        result = lower_body(step, start) if place.part else self._lower_single(place, step, start)
        result = self._finish_body(place, step, builder, result)
        results = self._results(place, step, result)
        builder.drop_unread_inputs(start, *results.values())
        names = [name.rpartition(".")[2] for name in results]
        values = call_results(self.root, builder, given, list(results.values()), place.name, names)
        self.values |= dict(zip(results, values, strict=True))
        return values[0]

    def _results(self, place: Place, step: StepBuilder, result: Value) -> dict[str, Value]:
        """What a component gives: its last value, and the named ones that the model gives."""
        outputs = [o for o in self.architecture.outputs.values() if o.startswith(f"{place.name}.")]
        found = {name: step.value(name.partition(".")[2]) for name in dict.fromkeys(outputs)}
        read = {o for name in self.architecture.graph for o in self.operands(name).values()}
        if not found or place.name in read | {*self.architecture.outputs.values()}:
            found = {place.name: result, **found}
        return found

    def _check_operand(self, place: Place, x: Value, others: list[str]) -> None:
        """An op alone computes with one stream of vectors; a part may embed ids and read
        several."""
        if place.part is not None:
            return
        span = self.spec.span("graph", place.name, "from")
        reads = STEPS[place.op].reads
        if others and not reads:
            message = f"`{place.op}` takes one operand, and is given {len(others) + 1}"
            self.program.fail("VS212", message, span, "name one input or component")
        for role in others:
            if role not in reads:
                message = f"`{place.op}` has no operand `{role}`"
                mend = near_or_list(role, reads, "beside the first it takes")
                self.program.fail("VS212", message, span, mend)
        if isinstance(x.type, TensorType) and x.type.dtype != "float":
            message = f"`{place.op}` takes vectors, and is given token ids"
            mend = "ids are embedded by a decoder; connect a component that gives vectors"
            self.program.fail("VS217", message, span, mend)

    def _lower_again(self, name: str, other: str) -> Value:
        """Call another component's module on other inputs; what it has from the plan is planned for
        them."""
        builder = self.builders[other]
        roles, others = self.operands(name), self.operands(other)
        mapping = {self.values[others[role]]: self.values[roles[role]] for role in others}
        given = {
            inner.name: mapping[outer] for inner, outer in builder.given.items() if outer in mapping
        }
        made = [v for node in self.root.nodes for v in node.outputs]
        planned = sorted(builder.captures, key=lambda v: made.index(v) if v in made else -1)
        given |= {
            builder.captures[outer].name: self.root.planned_again(outer, mapping, name)
            for outer in planned
        }
        callee = self.program.graphs[builder.name]
        operands = {v.name: given[v.name] for v in callee.inputs}
        span = self.spec.span("graph", name, key=True)
        return self.root.call(other, callee.name, operands, callee.outputs, name, span)[0]

    def _operand_type(self, place: Place, value: Value, x: Value):
        """A further operand's type inside: what may be absent where the first operand `x` is there
        may be None, but not in a head, which needs all of its operands."""
        always = x.type.optional if isinstance(x.type, TensorType) else frozenset()
        absent = isinstance(value.type, TensorType) and not value.type.optional <= always
        if absent and place.kind != "head":
            return replace(value.type, nullable=True)
        return value.type

    def _builder(self, place: Place) -> GraphBuilder:
        if place.name not in self.builders:
            title = place.part.document.title if place.part else STEPS[place.op].doc
            span = self.spec.span("graph", place.name, key=True)
            builder = self.root.child(place.name, doc=title, span=span)
            builder.decodes = place.kind == "decoder"
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
        given = place.name if given is None else given
        prefix = self._weights_prefix(given) if isinstance(given, str) else ""
        renames = given if isinstance(given, dict) and place.part is not None else {}
        tap = self._tap(place) if group == "body" else None
        return StepBuilder(
            builder,
            builder,
            place.name,
            Weights(prefix, {}, renames),
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
        span = self.spec.span("graph", place.name, "take", "layer")
        layer = self._option(place, take.layer, "take_layer", span, many=True)
        if layer is None:
            return None
        span = self._given_at(place, take.layer, "take_layer", span)
        layers = tuple(layer) if isinstance(layer, (list, tuple)) else (layer,)
        if not layers or any(isinstance(n, bool) or not isinstance(n, int) for n in layers):
            message = f"`take.layer` is {show(layer)}, not the index of a layer"
            mend = (
                "write a whole number, or a list of them; -1 is the last layer's output, -2 the "
                "one before"
            )
            self.program.fail("VS103", message, span, mend)
        return Tap(layers, span)

    def _given_at(self, place: Place, value: Any, name: str, span: Span) -> Span:
        """Where an option was given: in config.json, a variant, or where it stands."""
        origin = place.scope.origin(value, name)
        return origin.span if origin else span

    def _option(self, place: Place, value: Any, name: str, span: Span, many: bool = False) -> Any:
        try:
            return place.scope.option(value, name, many)
        except PydanticCustomError as error:
            context: Mapping[str, Any] = error.context or {}
            tree = place.tree.get("take")
            if isinstance(tree, MapNode):
                loc = (name.removeprefix("take_"), *context["path"])
                span = locate(tree, loc, context["key"])
            self.program.fail(context["code"], context["message"], span, context.get("help"))

    def _finish_body(
        self, place: Place, step: StepBuilder, builder: GraphBuilder, x: Value
    ) -> Value:
        if step.tap is not None:
            if not step.tap.values:
                message = f"`{place.op}` has no `layers` in its body, so no layer can be taken"
                self.program.fail("VS313", message, step.tap.span, "remove `take.layer`")
            x, *others = (step.tap.values[n] for n in step.tap.layers)
            if others:
                operands = {f"x{i}": v for i, v in enumerate((x, *others))}
                (x,) = builder.node("concat_channels", operands, span=step.tap.span)
        take = place.component.take
        if take is not None and take.value is not None:
            span = self.spec.span("graph", place.name, "take", "value")
            if step.tap is not None:
                message = "`take` names a layer and a value"
                self.program.fail("VS111", message, span, "keep one of the two")
            x = replace(step, span=span).value(take.value)
        if take is not None:
            span = self.spec.span("graph", place.name, "take", "drop")
            drop = self._option(place, take.drop, "take_drop", span)
            counts = {"cls": builder.prefix_tokens, "first": Dim.const(1), "none": Dim.const(0)}
            if drop not in counts:
                span = self._given_at(place, take.drop, "take_drop", span)
                mend = (
                    "write `cls` to drop the prepended tokens, `first` to drop the first token "
                    "whatever it is, `none` to keep them"
                )
                self.program.fail("VS104", f"`take.drop` is {show(drop)}", span, mend)
            if counts[drop] != Dim.const(0):
                attrs = SliceAttrs(counts[drop])
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
        """Token embeddings of `ids`, by the decoder's own `embed` steps, computed outside its
        body."""
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
        return self.root.call(path, path, {"ids": ids}, graph.outputs, "x", builder.span)[0]

    def _lower_flow(self, place: Place, operands: dict[str, Value]) -> Value:
        """A fusion: an op over several streams, in the model's own graph."""
        from vlmspec.compiler.body import lower_component_step

        span = self.spec.span("graph", place.name, "from")
        for role in ("text", "image"):
            if role not in operands:
                mend = "write `from: {text: input_ids, image: ...}`"
                self.program.fail("VS211", f"`{place.op}` needs the operand `{role}`", span, mend)
        streams = place.component.arguments.get("placeholders")
        known = {"text", "image", "at"} | {*(streams if isinstance(streams, dict) else ())}
        for role in operands.keys() - known:
            span = self.spec.span("graph", place.name, "from", role, key=True)
            message = f"`{place.op}` has no operand `{role}`"
            self.program.fail("VS212", message, span, "it takes `text` and `image`")
        ids = operands["text"]
        if ids.type.dtype != "int":
            span = self.spec.span("graph", place.name, "from", "text")
            message = f"`text` of `{place.op}` must be token ids, and is {ids.type}"
            self.program.fail("VS217", message, span, "name the input that has the ids")
        operands = operands | {"embeds": self._embed(self._reader(place), ids)}
        step = replace(self._step(place, self.root), counts=self._visual_counts(place))
        return lower_component_step(step, place.op, place.component, operands)

    def _visual_counts(self, place: Place) -> dict[str, Value]:
        """How many visual tokens each image of a stream has, where a component upstream has planned
        that."""
        found = {}
        for role, name in self.operands(place.name).items():
            while name in self.architecture.graph:
                builder = self.builders.get(name)
                if builder is not None and builder.visual_counts is not None:
                    found[role] = builder.visual_counts
                    break
                name = next(iter(self.operands(name).values()), "")
        return found

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
            owner = component.partition(".")[0]
            if component in self.values and owner in self.architecture.graph:
                if name == "logits":
                    self._check_present(name, component)
                found.append(self.values[component])
            elif owner not in self.failed:
                mend = near_or_list(component, self.architecture.graph, "there are")
                span = self.spec.span("outputs", name)
                message = f"no component is called `{component}`"
                self.diagnostics.error("VS213", message, span, help=mend)
        return found

    def _check_present(self, name: str, component: str) -> None:
        """Logits must be there whichever inputs are given: generation reads them."""
        if missing := sorted(self.values[component].type.optional):
            given = " and ".join(f"`{n}`" for n in missing)
            message = f"`{component}` is there only when {given} is given, and logits always"
            mend = "name a component that joins it, such as the decoder that reads it"
            self.diagnostics.error("VS218", message, self.spec.span("outputs", name), help=mend)

    def _order_inputs(self) -> None:
        """Ids first, then what the processor makes, then what generation passes."""
        kinds = self.architecture.input_kinds
        text = [n for n, kind in kinds.items() if kind == "text"]
        beside = [self.root.prefix + name for name in INPUT_ORDER[:2]]
        rank = [*text, *beside, *kinds, *INPUT_ORDER[2:]]
        self.root.inputs.sort(key=lambda v: rank.index(v.name))


def lower(spec: Loaded[Architecture], overrides: Overrides, diagnostics: Diagnostics) -> Program:
    """Lower an architecture to a program of typed graphs.

    Raises:
        SpecError: with every fault found.
    """
    found = Diagnostics()
    lowering = Lowering(spec, overrides, found)
    program = None
    with suppress(SpecError):
        program = lowering.run()
    diagnostics.extend(map(lowering.with_user, found))
    diagnostics.raise_if_errors()
    assert program is not None
    return program
