"""An emitted package: its files, from a program after all passes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmspec.compiler.checks import stored_names
from vlmspec.compiler.emit import runtime
from vlmspec.compiler.emit.config import ConfigEmitter
from vlmspec.compiler.emit.layout import fill, layout
from vlmspec.compiler.emit.library import functional_source
from vlmspec.compiler.emit.module import ModuleEmitter, layer_state, layer_tests
from vlmspec.compiler.emit.names import camel, class_names, identifier, used_sizes
from vlmspec.compiler.emit.weights import WeightEmitter
from vlmspec.compiler.ir.graph import Graph, Module, Program
from vlmspec.compiler.ir.types import StateType, TensorType
from vlmspec.diagnostics.text import printable

INPUT_WORDS = {
    "image": "images, as the processor gives them",
    "video": "videos, as the processor gives them",
    "sizes": "what the processor says of them",
}
STATE_CLASSES = ("Cache", "GenerationMixin", "KVCache", "RecurrentState")
RUNTIME = ("checkpoint", "configuration", "generation", "outputs", "storage")
ON_DEMAND = ("generation",)


@dataclass(frozen=True, slots=True)
class Description:
    """What the emitted files say of where they come from."""

    version: str
    spec_name: str
    spec_hash: str
    command: str
    title: str
    paper: str | None
    kinds: Mapping[str, str]
    titles: Mapping[str, str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    reference: Mapping[str, str] = field(default_factory=dict)
    model_types: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    kernels: Mapping[str, str] = field(default_factory=dict)


class PackageEmitter:
    """Writes the files of one package."""

    def __init__(self, program: Program, description: Description):
        self.program = program
        self.about = description
        self.classes = class_names(program, description.kinds)
        self.modules = ModuleEmitter(program, self.classes, dict(description.kernels))
        self.configs = ConfigEmitter(program, used_sizes(program), dict(description.model_types))
        self.weights = WeightEmitter(program, self.modules.configs)
        self.name = identifier(program.name)

    def files(self) -> dict[str, str]:
        """Every file of the package, the manifest included."""
        modeling = self._modeling()
        header = self._header("Functions that the modules are made of.")
        found = {
            "__init__.py": self._init(),
            "modeling.py": modeling,
            "functional.py": functional_source(self.modules.helpers, header),
        }
        used = modeling + found["functional.py"]
        for name in RUNTIME:
            if name not in ON_DEMAND or f"from .{name} import" in used:
                found[f"{name}.py"] = _runtime_source(name)
        return found | {"manifest.json": self._manifest(found)}

    # ------------------------------------------------------------------------------------ modeling

    def _modeling(self) -> str:
        classes: list[list[str]] = []
        for name in self.configs.components:
            classes.append(self.configs.component(name, self._title(name)))
        classes.append(self.configs.whole(self.about.title.split(":")[0]))
        bodies = [
            self.modules.emit_class(g) for g in self.modules.order() if g != self.program.entry
        ]
        weights = self.weights.emit()
        record, self.plan = self.modules.emit_plan()
        entry = self._entry()
        records = [r for r in (record, self._output_class()) if r]
        blocks = [*classes, *bodies, *records, weights, entry]
        text = "\n\n\n".join("\n".join(layout(block)) for block in blocks)
        return self._header(self._about_text(4)) + self._imports(text) + "\n\n\n" + text + "\n"

    def _title(self, component: str) -> str:
        title = self.about.titles.get(component, component).rstrip(".")
        return f"the {title}" if title else component

    def _about_text(self, room: int) -> str:
        """The title and the paper, on two lines where one has no room for `room` quotes too."""
        title, paper = self.about.title, f"({self.about.paper})." if self.about.paper else ""
        if not paper:
            return f"{title}."
        return (
            f"{title} {paper}" if len(title) + len(paper) + 1 + room <= 100 else f"{title}\n{paper}"
        )

    def _header(self, first: str) -> str:
        lines = [
            f'"""{first}',
            "",
            f"Written by vlmspec {self.about.version} from {_safe(self.about.spec_name)} "
            f"(sha256 {self.about.spec_hash[:16]}).",
            f"To write it again: {_safe(self.about.command)}",
            "",
            "Shapes: B batch, T query tokens, S key tokens, H query heads, G key/value heads, "
            "E head dimension.",
            '"""',
            "",
            "",
        ]
        return "\n".join(lines)

    def _imports(self, text: str) -> str:
        lines = [f"from dataclasses import dataclass{', field' if 'field(' in text else ''}"]
        typing = [name for name in ("Any", "NamedTuple") if _mentions(text, name)]
        lines += [*([f"from typing import {', '.join(typing)}"] if typing else []), ""]
        if "torch." in text:
            lines.append("import torch")
        if "F." in text:
            lines.append("import torch.nn.functional as F")
        lines += ["from torch import Tensor, nn", ""]
        checkpoint = ["CheckpointMixin", *sorted(self.weights.used), "Entry"]
        lines.append(_import("checkpoint", sorted(checkpoint)))
        reading = [n for n in ("check_choice", "read_size", "read_table") if f"{n}(" in text]
        if reading:
            lines.append(_import("configuration", reading))
        if self.modules.helpers:
            lines.append(_import("functional", sorted(self.modules.helpers)))
        made = [*STATE_CLASSES, *([] if self._own_output else ["Output"])]
        if made := [n for n in made if _mentions(text, n)]:
            lines.append(_import("generation", made))
        if self._own_output:
            lines.append(_import("outputs", ["OutputMixin"]))
        return "\n".join(lines)

    # -------------------------------------------------------------------------------------- output

    @property
    def _own_output(self) -> bool:
        """Whether the model gives something else than logits of tokens alone."""
        return list(self.about.outputs) != ["logits"]

    def _output_class(self) -> list[str]:
        if not self._own_output:
            return []
        values = self.program.graphs[self.program.entry].outputs
        absent = any(isinstance(v.type, TensorType) and v.type.optional for v in values)
        about = "; what needs an input that is not given is None" if absent else ""
        lines = ["@dataclass", "class Output(OutputMixin):"]
        lines += [f'    """What the model gives{about}."""', ""]
        for name, value in zip(self.about.outputs, values, strict=True):
            line = f"    {name}: {'Tensor | None = None' if absent else 'Tensor'}"
            noted = f"{line}  # {self.modules.shape(value)}"
            lines.append(noted if len(noted) <= 100 else line)
        return lines

    # --------------------------------------------------------------------------------------- entry

    def _entry(self) -> list[str]:
        graph = self.program.graphs[self.program.entry]
        cached = any(v.type == StateType("cache") for v in graph.inputs)
        bases = ["CheckpointMixin", *(["GenerationMixin"] if cached else []), "nn.Module"]
        lines = [f"class {self.classes[self.program.entry]}({', '.join(bases)}):"]
        lines += self._entry_docstring(graph)
        lines += ["", "    config_class = Config", "    weight_map = staticmethod(weight_map)"]
        every = {n.op for g in self.program.graphs.values() for n in g.nodes}
        if every & {"axis_positions", "sinusoid_positions"}:
            lines.append("    own_positions = True")
        if cached and self._ids() != "input_ids":
            lines.append(f'    generates = "{self._ids()}"')
        if self.program.alternates:
            lines += self._alternates()
        lines += self._ignored()
        lines += ["", "    def __init__(self, config: Config | None = None):"]
        lines += ["        super().__init__()", "        config = config or Config()"]
        lines += self.modules._init(graph, True)[2:]
        lines += self._ties()
        outputs = dict(zip(self.about.outputs, graph.outputs, strict=True))
        body, _ = self.modules.entry_forward(outputs)
        lines += self.plan
        signature = self.modules.signature(graph, entry=True, plan=bool(self.plan))
        lines += ["", *signature, *self._forward_docstring(graph), *body]
        return lines + (self._new_cache() if cached else [])

    def _alternates(self) -> list[str]:
        groups = [", ".join(f'"{name}."' for name in group) for group in self.program.alternates]
        flat = f"    alternates = ({', '.join(f'({g})' for g in groups)},)"
        if len(flat) <= 100:
            return [flat]
        return ["    alternates = (", *(f"        ({g})," for g in groups), "    )"]

    def _ignored(self) -> list[str]:
        """What checkpoints may hold beside the parameters, where there is more than usual."""
        names = stored_names(self.program)
        if not names:
            return []
        suffixes = ", ".join(f'".{name}"' for name in names)
        return [f"    ignored_suffixes = (*CheckpointMixin.ignored_suffixes, {suffixes})"]

    def _entry_docstring(self, graph: Graph) -> list[str]:
        first = f'    """{self.about.title}.'
        return [first + '"""']

    def _forward_docstring(self, graph: Graph) -> list[str]:
        """The arguments of the model's forward, with their shapes."""
        prefix = self._ids().removesuffix("input_ids")
        cached = any(v.type == StateType("cache") for v in graph.inputs)
        padding = "1 for real tokens, 0 for padding" + ", cached tokens included" * cached
        beside = {
            f"{prefix}attention_mask": padding,
            f"{prefix}position_ids": "positions of the tokens; "
            "counted on from the cache if not given",
        }
        about = {
            "cache": "keys and values of earlier tokens; this call's are added to it",
            "logits_to_keep": "how many positions, from the end, get logits; 0 for all",
            **{n: "token ids" for n, kind in self.about.inputs.items() if kind == "text"},
            **{n: INPUT_WORDS[k] for n, k in self.about.inputs.items() if k in INPUT_WORDS},
        }
        lines = ['        """Run the model.', "", "        Args:"]
        for value in graph.inputs:
            shape = f" {self.modules.shape(value)}" if isinstance(value.type, TensorType) else ""
            said = beside.get(value.name) or about[value.name]
            text = f"            {value.name}: {said}{shape}."
            lines += fill(text, 16)
        return [*lines, '        """']

    def _ids(self) -> str:
        """The input of the tokens that the model continues."""
        return next((n for n, k in self.about.inputs.items() if k == "text"), "input_ids")

    def _ties(self) -> list[str]:
        found = []
        for path, _, module in self.program.walk():
            for param in module.params:
                if param.tied:
                    found.append(f"        self.{path}.{param.name} = self.{param.tied}")
        return found

    def _new_cache(self) -> list[str]:
        """The method that allocates the state of every layer that decodes with one."""
        lines = ["", "    def new_cache(", "        self,", "        batch_size: int,"]
        lines += ["        max_length: int,", "        dtype: torch.dtype | None = None,"]
        lines += ["        device: torch.device | str | None = None,", "    ) -> Cache:"]
        lines += [
            '        """Allocate an empty cache for `batch_size` rows of up to '
            '`max_length` tokens."""'
        ]
        lines += ["        dtype = dtype or next(self.parameters()).dtype", "        layers = []"]
        for module in self._stateful_repeats():
            count = module.attrs.count.render(self._reach)
            lines += [f"        for {'i' if len(module.graphs) > 1 else '_'} in range({count}):"]
            states = [self._state(graph) for graph in module.graphs]
            if len(states) == 1:
                lines += [f"            layers.append({states[0]})"]
                continue
            *tests, default = layer_tests(module.attrs)
            for word, (number, test) in zip(("if", *["elif"] * len(tests)), tests, strict=False):
                lines += [
                    f"            {word} {test}:",
                    f"                layers.append({states[number]})",
                ]
            lines += ["            else:", f"                layers.append({states[default[0]]})"]
        return [*lines, "        return Cache(layers)"]

    def _reach(self, name: str) -> str:
        return self.modules.configs.reach(self.program.entry, name, "self.config")

    def _stateful_repeats(self) -> list[Module]:
        """The stacks of layers that decode with a state."""
        repeats = [m for _, _, m in self.program.walk() if m.kind == "repeat"]
        return [m for m in repeats if any(self._state(g) != "None" for g in m.graphs)]

    def _state(self, graph: str) -> str:
        """The expression that allocates the state of one layer; None for a layer without any."""
        state = layer_state(self.program, graph, lambda dim: dim.render(self._reach))
        return "None" if state is None else state.flat()

    # ---------------------------------------------------------------------------------- other files

    def _init(self) -> str:
        name = self.classes[self.program.entry]
        exported = sorted({name, "Config", "Model"})
        listed = ", ".join(f'"{n}"' for n in exported)
        imported = ", ".join(sorted({name, "Config", "weight_map"}, key=_isort))
        text = [
            f'"""{self._about_text(6)}"""',
            "",
            f"from .modeling import {imported}",
            "",
            f"Model = {name}",
            "",
            f'__all__ = [{listed}, "weight_map"]',
            "",
        ]
        return "\n".join(text)

    def _manifest(self, files: Mapping[str, str]) -> str:
        graph = self.program.graphs[self.program.entry]
        shapes = {v.name: v.type.shape for v in graph.inputs if isinstance(v.type, TensorType)}
        data = {
            "generator": "vlmspec",
            "version": self.about.version,
            "name": self.program.name,
            "package": self.name,
            "spec": self.about.spec_name,
            "spec_sha256": self.about.spec_hash,
            "options": dict(self.about.options),
            "inputs": {
                name: {"kind": kind, "shape": [_number(d) for d in shapes[name]]}
                for name, kind in self.about.inputs.items()
            },
            "outputs": dict(self.about.outputs),
            "reference": dict(self.about.reference),
            "files": {
                name: hashlib.sha256(text.encode()).hexdigest()
                for name, text in sorted(files.items())
            },
        }
        return json.dumps(data, indent=2) + "\n"


def _safe(text: str) -> str:
    """Text of the request as it may stand in a docstring: one line that does not end it."""
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')


def _number(dim: Any) -> int | str:
    value = dim.as_int()
    return str(dim) if value is None else value


def _mentions(text: str, name: str) -> bool:
    return any(f"{before}{name}{after}" in text for before in " ([|" for after in " ,()[]:")


def _isort(name: str) -> tuple[int, str]:
    """The order in which the linter wants imported names: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def _import(module: str, names: list[str]) -> str:
    names = sorted(names, key=_isort)
    flat = f"from .{module} import {', '.join(names)}"
    if len(flat) <= 100:
        return flat
    return f"from .{module} import (\n" + "".join(f"    {n},\n" for n in names) + ")"


def _runtime_source(name: str) -> str:
    folder = Path(str(runtime.__file__)).parent
    source = (folder / f"{name}.py").read_text(encoding="utf-8")
    return source


def emit_package(program: Program, description: Description) -> dict[str, str]:
    """Write every file of the package of a program."""
    return PackageEmitter(program, description).files()


__all__ = ["Description", "camel", "emit_package", "identifier"]
