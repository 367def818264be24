"""What a spec declares: components in their places, sizes, options and inputs."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from vlmspec.compiler.builder import (
    GraphBuilder,
    ProgramBuilder,
)
from vlmspec.compiler.ir.dim import Dim, check_name
from vlmspec.compiler.ir.graph import Module, Param, Value
from vlmspec.compiler.ir.types import TensorType, resolve
from vlmspec.compiler.ops import OPS, STEPS
from vlmspec.compiler.ops.embed import ParameterAttrs
from vlmspec.compiler.scope import Scope
from vlmspec.compiler.settings import Overrides, Setting, Settings
from vlmspec.diagnostics.model import Diagnostic, Diagnostics, Label, Span, SpecError, suggest
from vlmspec.diagnostics.text import quote
from vlmspec.dsl.faults import near_or_list, report
from vlmspec.dsl.loader import Loaded, load_part, part_names
from vlmspec.dsl.schema import KINDS, Architecture, Component, FromConfig, Parameter, Part
from vlmspec.dsl.yaml_nodes import MapNode

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


class Declarations:
    """The declarations of one architecture. Faults of separate components are all reported."""

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


def _start(span: Span) -> int:
    return span.start


def components_of(names: Iterable[str]) -> list[str]:
    """The components that the full names of sizes begin with."""
    return list(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))
