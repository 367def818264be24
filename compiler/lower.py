"""From a validated spec to a program: components in order, each one's body step by step."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from vlmspec.compiler.body import check_steps, component_args, lower_body
from vlmspec.compiler.builder import (
    GraphBuilder,
    LoweringFailed,
    ProgramBuilder,
    StepBuilder,
    Tap,
    Weights,
)
from vlmspec.compiler.ir.dim import Dim, check_name
from vlmspec.compiler.ir.graph import Module, Param, Program, Value
from vlmspec.compiler.ir.types import TensorType, resolve
from vlmspec.compiler.ops import OPS, STEPS
from vlmspec.compiler.ops.attention import model_input
from vlmspec.compiler.ops.embed import ParameterAttrs
from vlmspec.compiler.ops.structure import SliceAttrs, call_results
from vlmspec.compiler.scope import Scope
from vlmspec.compiler.settings import Overrides, Setting, Settings
from vlmspec.diagnostics.model import Diagnostic, Diagnostics, Label, Span, SpecError, suggest
from vlmspec.diagnostics.text import quote
from vlmspec.dsl.faults import near_or_list, report, show
from vlmspec.dsl.loader import Loaded, load_part, part_names
from vlmspec.dsl.schema import KINDS, Architecture, Component, FromConfig, Parameter, Part
from vlmspec.dsl.yaml_nodes import ListNode, MapNode, locate

# The fields of the `Output` that emitted models return.
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
        self.program.place = self.settings.place
        self.root = GraphBuilder(self.program, "model", doc=spec.document.title)
        self.places: dict[str, Place] = {}
        self.again: dict[str, str] = {}
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

    # -------------------------------------------------------------------------------- declarations

    def _place(self, name: str) -> None:
        component = self.architecture.graph[name]
        tree = self.spec.tree.items["graph"][1].items[name][1]
        span = self.spec.tree.items["graph"][1].key_span(name)
        kinds = component.kinds
        if not kinds:
            mend = "give one of `encoder:`, `connector:`, `fusion:`, `decoder:`, `head:`"
            message = f"component `{name}` does not say what it is"
            self.diagnostics.error("VS209", message, span, help=mend)
            return
        if len(kinds) > 1:
            first, second, *_ = sorted((tree.key_span(kind) for kind, _ in kinds), key=_start)
            message = f"component `{name}` says twice what it is"
            mend, labels = "keep one of the two", [Label(first, "first here")]
            self.diagnostics.error("VS210", message, second, "", mend, secondary=labels)
            return
        ((kind, op),) = kinds
        if isinstance(op, FromConfig):
            op = self._chosen_part(name, kind, op, component.config, tree)
        if op in self.architecture.graph and not self._is_known(op):
            self._place_again(name, op, component, tree)
            return
        part = self._find_part(name, kind, op, tree.items[kind][1].span)
        if part is None and op not in STEPS:
            self.settings.opaque.add(name)
        scope = Scope(self.settings, name, component.config, span)
        if part or op in STEPS:
            self.places[name] = Place(name, component, kind, op, part, scope, tree)

    def _chosen_part(
        self, name: str, kind: str, given: FromConfig, prefix: str, tree: MapNode
    ) -> str:
        """The part that config.json, the variant or the default names, as an option of the
        component."""
        full, span = f"{name}.{kind}", tree.items[kind][1].span
        self.settings.declare(Setting(full, given, span, prefix, option=True))
        op = self.settings.option(full)
        chosen = self.architecture.graph[name].model_copy(update={kind: str(op)})
        graph = {**self.architecture.graph, name: chosen}
        self.architecture = self.architecture.model_copy(update={"graph": graph})
        return str(op)

    def _is_known(self, op: str) -> bool:
        """Whether a part or a step is called so."""
        return op in STEPS or op in part_names(self.spec.folder)

    def _place_again(self, name: str, other: str, component: Component, tree: MapNode) -> None:
        """A component that is another one, applied again: the same module on other inputs."""
        given = [*component.arguments, *component.model_fields_set - {"from_", *KINDS}]
        for key in given:
            mend = f"`{name}` is `{other}` again, which has them"
            message = f"`{name}` cannot have `{key}` of its own"
            self.diagnostics.error("VS214", message, tree.key_span(key), help=mend)
        self.again[name] = other

    def _find_part(self, name: str, kind: str, op: str, span: Span) -> Loaded[Part] | None:
        try:
            part = load_part(op, self.spec.folder)
        except SpecError as error:
            used = Label(span, f"component `{name}` uses this part")
            for found in error.diagnostics:
                self.diagnostics.add(replace(found, secondary=(*found.secondary, used)))
            return None
        steps = {n: s for n, s in STEPS.items() if s.component}
        if part is not None:
            if part.document.kind != kind:
                message = f"part `{op}` is of the kind `{part.document.kind}`, not `{kind}`"
                mend = f"write `{part.document.kind}: {op}`, or name another part"
                says = [Label(part.span("kind"), "the part says so here")]
                self.diagnostics.error("VS207", message, span, help=mend, secondary=says)
            return part
        if op not in steps:
            near = suggest(op, [*part_names(self.spec.folder), *steps])
            own = f"write the part as `parts/{op}.yaml` beside the spec, or name another one"
            mend = f"did you mean `{near}`?" if near else own
            self.diagnostics.error("VS202", f"no part or op is called `{op}`", span, help=mend)
        elif kind not in steps[op].component:
            allowed = " or ".join(f"`{k}:`" for k in steps[op].component)
            self.diagnostics.error(
                "VS207",
                f"`{op}` cannot be a component of the kind `{kind}`",
                span,
                help=f"write it under {allowed}",
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
            keys = ["from", "config", "weights", "take"]
            near = suggest(name, [*keys, *known])
            mend = f"did you mean `{near}`?" if near else near_or_list("", known, "it has")
            message = f"part `{place.op}` has no size or option called {quote(name)}"
            self.diagnostics.error("VS214", message, place.tree.key_span(name), help=mend)

    def _override(self, place: Place, name: str, definition: Any, value: Any):
        """What a spec says of a part's size: a new default, or a whole new definition."""
        span = place.tree.items[name][1].span
        if isinstance(value, dict):
            try:
                return FromConfig.model_validate(value), span
            except ValidationError as error:
                report(self.diagnostics, error, place.tree.items[name][1], FromConfig, span)
                return definition, span
        if isinstance(definition, FromConfig):
            return definition.model_copy(update={"default": value}), span
        return value, span

    def _check_overrides(self) -> None:
        """Every `--set` and every value of the variant must name something."""
        overrides = self.settings.overrides
        for name in overrides.values:
            known = name in self.settings.settings
            if not known and name.partition(".")[0] not in self.settings.opaque:
                settable = self._settable(name)
                mend = near_or_list(name, settable, "there are")
                message = f"`--set` names {quote(name)}, but no size or option is called so"
                self.diagnostics.error("VS309", message, help=mend)
        for variant, components in self.architecture.variants.items():
            for component, values in components.items():
                self._check_variant(variant, component, values)

    def _check_variant(self, variant: str, component: str, values: Any) -> None:
        names = values if isinstance(values, dict) else {None: None}
        for short in names:
            full = f"{component}.{short}" if short is not None else component
            if full in self.settings.settings or component in self.settings.opaque:
                continue
            if short in self._names_of_part(component, values):
                continue
            path = ("variants", variant, component) + (() if short is None else (short,))
            near = suggest(full, self._settable(full))
            given = {component, *components_of(self.settings.settings)}
            known = self._settable(full) if component in given else sorted(given)
            mend = f"did you mean `{near}`?" if near else near_or_list("", known, "there are")
            span = self.spec.span(*path, key=True)
            message = f"variant `{variant}` sets `{full}`, but no size or option is called so"
            self.diagnostics.error("VS310", message, span, help=mend)

    def _names_of_part(self, component: str, values: Any) -> Collection[str]:
        """What the part has that these values of a variant choose, where the spec leaves the
        choice."""
        for kind in KINDS:
            setting = self.settings.settings.get(f"{component}.{kind}")
            if setting is not None and isinstance(values, dict):
                part = load_part(str(values.get(kind, setting.default)), self.spec.folder)
                return (*part.document.sizes, *part.document.options) if part else ()
        return ()

    def _settable(self, name: str) -> list[str]:
        """Sizes and options that `name` may have meant: those of its component, if there is such a
        one."""
        owner = name.partition(".")[0]
        own = [n for n in self.settings.settings if n.startswith(f"{owner}.")]
        own = own or [n for n in self.settings.settings if suggest(name, [n])]
        return own or [n if "." not in n else f"{n.partition('.')[0]}.*" for n in self._firsts()]

    def _firsts(self) -> Iterable[str]:
        """One setting of each component, and those of the spec itself."""
        return {n.partition(".")[0]: n for n in self.settings.settings}.values()

    # --------------------------------------------------------------------------------- data flow

    def operands(self, name: str) -> dict[str, str]:
        """What a component reads, by role; a single operand's role is `x`."""
        given = self.architecture.graph[name].from_
        if isinstance(given, str):
            return {"x": given}
        if isinstance(given, dict) and given and all(isinstance(v, str) for v in given.values()):
            return given
        span = self.spec.span("graph", name, "from")
        self.diagnostics.error("VS103", "`from` is a name, or a mapping of roles to names", span)
        return {}

    def _order(self) -> list[str]:
        given = {*self.architecture.inputs, *self.architecture.parameters}
        known = {*given, *self.architecture.graph}
        edges: dict[str, list[str]] = {}
        for name in self.architecture.graph:
            edges[name] = [self.again[name]] if name in self.again else []
            for role, operand in self.operands(name).items():
                if operand in self.architecture.graph:
                    edges[name].append(operand)
                elif operand not in known:
                    self._unknown_operand(name, role, operand, known)
        used = {o for name in edges for o in self.operands(name).values()}
        used |= {source.partition(".")[0] for source in self.architecture.outputs.values()}
        for name in known - used - {*self.architecture.parameters}:
            group = "inputs" if name in self.architecture.inputs else "graph"
            code, what = ("VS206", "input") if group == "inputs" else ("VS205", "component")
            span = self.spec.span(group, name, key=True)
            self.diagnostics.warning(code, f"nothing reads {what} `{name}`", span)
        try:
            return list(TopologicalSorter(edges).static_order())
        except CycleError as error:
            circle = list(reversed(error.args[1]))
            first = min(circle, key=list(self.architecture.graph).index)
            at = circle.index(first)
            circle = [*circle[at:-1], *circle[:at], first]
            spans = {n: self.spec.span("graph", n, "from") for n in circle}
            labels = [Label(spans[n], f"`{n}` reads this") for n in circle[1:-1]]
            message = f"components read each other: {' -> '.join(reversed(circle))}"
            mend = "remove one of these references"
            label = f"`{first}` reads this"
            self.diagnostics.error("VS204", message, spans[first], label, mend, secondary=labels)
            return []

    def _check_bodies(self) -> None:
        """Where lowering cannot begin, check at least the arguments of all steps."""
        for place in self.places.values():
            with self._collecting(place):
                self._check_alone(place)

    @contextmanager
    def _collecting(self, place: Place) -> Iterator[None]:
        """Add to the faults of a component's part who uses it, and to mismatches what it reads."""
        outer = self.diagnostics
        inner = Diagnostics()
        self.program.diagnostics = self.settings.diagnostics = self.diagnostics = inner
        try:
            yield
        finally:
            self.program.diagnostics = self.settings.diagnostics = self.diagnostics = outer
            outer.extend(self._explained(place, found) for found in inner)

    def _explained(self, place: Place, found: Diagnostic) -> Diagnostic:
        labels = list(found.secondary)
        if found.code in ("VS217", "VS305") and place.name not in self.values:
            for role, operand in self.operands(place.name).items():
                loc = ("graph", place.name, "from") + (() if role == "x" else (role,))
                type = self.values[operand].type if operand in self.values else None
                if isinstance(type, TensorType):
                    text = f"`{operand}` is {self._shown(type)}"
                    labels.append(Label(self.spec.span(*loc), text))
        return replace(found, secondary=tuple(labels))

    def with_user(self, found: Diagnostic) -> Diagnostic:
        """Add to a fault in a part the component that uses it."""
        here = found.primary.span.source if found.primary else self.spec.source
        sources = {label.span.source for label in found.secondary}
        if here == self.spec.source or self.spec.source in sources:
            return found
        for place in self.places.values():
            if place.part is not None and place.part.source in {here, *sources}:
                span = place.tree.items[place.kind][1].span
                used = Label(span, f"component `{place.name}` uses this part")
                return replace(found, secondary=(*found.secondary, used))
        return found

    def _shown(self, type: TensorType) -> str:
        dims = [str(resolve(dim, self.settings.sizes)) for dim in type.shape]
        return f"{type.dtype}[{', '.join(dims)}]"

    def _unknown_operand(self, name: str, role: str, operand: str, known: set[str]) -> None:
        near = suggest(operand, known)
        listed = ", ".join(f"`{k}`" for k in sorted(known))
        mend = f"did you mean `{near}`?" if near else f"there are {listed}"
        loc = ("graph", name, "from") + (() if role == "x" else (role,))
        message = f"no input or component is called `{operand}`"
        self.diagnostics.error("VS203", message, self.spec.span(*loc), help=mend)

    def _declare_inputs(self) -> None:
        kinds = self.architecture.inputs
        optional_images = "text" in self.architecture.input_kinds.values()
        for name, declared in kinds.items():
            kind = declared if isinstance(declared, str) else declared.kind
            if isinstance(declared, str):
                type = INPUT_TYPES[kind]
                type = self._image_type(name, type) if kind == "image" else type
            else:
                shape = tuple(self._input_dim(name, d) for d in declared.shape)
                type = TensorType(shape, declared.dtype)
            if kind != "text" and optional_images:
                type = replace(type, optional=frozenset({self._companion(name, declared)}))
            if not isinstance(declared, str) and declared.optional:
                if kind == "text":
                    type = replace(type, optional=frozenset({name}))
                else:
                    type = replace(type, nullable=True)
            if kind == "text":
                self.root.prefix = name.removesuffix("input_ids") if name != "input_ids" else ""
            self.values[name] = self.root.input(name, type)
        for name, parameter in self.architecture.parameters.items():
            self._declare_parameter(name, parameter)

    def _companion(self, name: str, declared: Any) -> str:
        """The input without which this one is not there: itself, or the one that it goes with."""
        other = None if isinstance(declared, str) else declared.of
        if other is not None and other not in self.architecture.inputs:
            mend = near_or_list(other, self.architecture.inputs, "there are")
            span = self.spec.span("inputs", name, "of")
            self.diagnostics.error("VS203", f"no input is called `{other}`", span, help=mend)
        return other or name

    def _declare_parameter(self, name: str, parameter: Parameter) -> None:
        """A learned tensor in the model's own graph."""
        span = self.spec.span("parameters", name, key=True)
        shape = tuple(self._input_dim(name, d, "parameters") for d in parameter.shape)
        state = Param("", shape, (parameter.weights,))
        self.root.add_module(Module(name, "parameter", ParameterAttrs(shape), (state,), span))
        (self.values[name],) = self.root.node(
            "parameter", {}, module=name, hints=(name,), span=span
        )

    def _input_dim(self, name: str, value: int | str, group: str = "inputs") -> Dim:
        """A dimension of a declared input: a size of the spec, or a new name for what varies."""
        is_new = isinstance(value, str) and value not in self.settings.settings
        if group == "inputs" and is_new and check_name(str(value)) is None:
            return Dim.sym(str(value))
        try:
            return Scope(self.settings, "").size(value)
        except PydanticCustomError as error:
            context: Mapping[str, Any] = error.context or {}
            self.diagnostics.error(context["code"], context["message"], self.spec.span(group, name))
            return Dim.const(1)

    def _image_type(self, name: str, type: TensorType) -> TensorType:
        """The shape that the first part reading an image demands of it."""
        for place in self.places.values():
            shape = place.part.document.input if place.part else ()
            if shape and name in self.operands(place.name).values():
                return type.with_shape(*(self._part_dim(place, i, d) for i, d in enumerate(shape)))
        return type

    def _part_dim(self, place: Place, index: int, value: int | str) -> Dim:
        assert place.part is not None
        try:
            return place.scope.size(value)
        except PydanticCustomError as error:
            context: Mapping[str, Any] = error.context or {}
            span = place.part.span("input", index)
            with self._collecting(place):
                code, message = context["code"], context["message"]
                self.diagnostics.error(code, message, span, help=context.get("help"))
            return Dim.const(1)

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


def _start(span: Span) -> int:
    return span.start


def components_of(names: Iterable[str]) -> list[str]:
    """The components that the full names of sizes begin with."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))


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
