"""Names of the emitted package: classes, configs, and how sizes are reached in each of them."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Program
from vlmspec.compiler.ir.types import Scalar, Table

# The size whose value is the index of the layer that a class is; its `__init__` takes it.
LAYER = "layer"
ACRONYMS = {"mlp": "MLP", "moe": "MoE", "vit": "ViT", "vl": "VL"}


def camel(name: str) -> str:
    """`vision.block` as `VisionBlock`."""
    words = name.replace(".", "_").replace("-", "_").split("_")
    return "".join(ACRONYMS.get(word, word[:1].upper() + word[1:]) for word in words if word)


def base_name(name: str) -> str:
    """A value's name without the number that makes it unique."""
    base, _, number = name.rpartition("_")
    return base if base and number.isdigit() else name


def identifier(slug: str) -> str:
    """A package name from a slug: `llama-3.2-vision` as `llama_3_2_vision`."""
    text = "".join(c if c.isalnum() else "_" for c in slug)
    return f"_{text}" if text[:1].isdigit() else text


def component_of(graph: str) -> str:
    return graph.split(".")[0]


def class_names(program: Program, kinds: Mapping[str, str]) -> dict[str, str]:
    """The class of every graph; a component's own class carries its kind (`VisionEncoder`)."""
    names = {}
    for graph in program.graphs:
        suffix = kinds.get(graph, "")
        names[graph] = camel(f"{graph}_{suffix}")
    names[program.entry] = camel(program.name)
    return names


def config_class(component: str) -> str:
    return f"{camel(component)}Config" if component else "Config"


def symbols_of(value: Any) -> frozenset[str]:
    """Names of the sizes that an attribute value mentions."""
    if isinstance(value, Dim):
        return value.symbols()
    if isinstance(value, (Scalar, Table)):
        return frozenset({value.name}) if value.name else frozenset()
    if isinstance(value, (tuple, list)):
        return frozenset().union(*(symbols_of(v) for v in value))
    if is_dataclass(value) and not isinstance(value, type):
        return frozenset().union(*(symbols_of(getattr(value, f.name)) for f in fields(value)))
    return frozenset()


def graph_symbols(graph: Graph) -> frozenset[str]:
    """Names of the sizes that a graph's class needs: those of its modules and of its nodes'
    attributes."""
    found = [symbols_of(m.attrs) for m in graph.modules]
    found += [symbols_of(n.attrs) for n in graph.nodes]
    return frozenset().union(*found)


class ConfigUse:
    """Which config each graph's class takes, and how a size is reached from it."""

    def __init__(self, program: Program):
        self.sizes = {key.name for key in program.keys} | set(program.derived)
        self.graphs = program.graphs
        self.owner: dict[str, str] = {}
        for graph in program.graphs:
            self._decide(graph)
        self.owner[program.entry] = ""

    def _needed(self, graph: str) -> frozenset[str]:
        owner = self.graphs[graph]
        found = graph_symbols(owner) & self.sizes
        for module in owner.modules:
            for child in module.graphs:
                found |= self._needed(child)
        return found

    def needs_layer(self, graph: str) -> bool:
        """Whether a class, or one inside it, depends on the index of its layer."""
        owner = self.graphs[graph]
        inner = [m.attrs.graphs[0] for m in owner.modules if m.kind == "graph"]
        return LAYER in graph_symbols(owner) or any(map(self.needs_layer, inner))

    def _decide(self, graph: str) -> None:
        component = component_of(graph)
        own = all(name.startswith(f"{component}.") for name in self._needed(graph))
        self.owner[graph] = component if own and self.has_config(component) else ""

    def has_config(self, component: str) -> bool:
        return any(name.startswith(f"{component}.") for name in self.sizes)

    def reach(self, graph: str, size: str, root: str) -> str:
        """How the class of `graph` writes a size, `root` being its config."""
        owner = self.owner[graph]
        return f"{root}.{size.removeprefix(f'{owner}.') if owner else size}"

    def hand_down(self, graph: str, child: str, root: str) -> str:
        """The config that the class of `graph` gives the class of `child`."""
        if self.owner[graph] == self.owner[child]:
            return root
        return f"{root}.{self.owner[child]}"


def used_sizes(program: Program) -> frozenset[str]:
    """Names of the sizes that some class needs, those that derived ones follow from included."""
    found = set().union(
        *(graph_symbols(g) for g in program.graphs.values()),
        *(symbols_of((p.shape, p.sizes)) for _, _, m in program.walk() for p in m.params),
    )
    waiting = list(found)
    while waiting:
        definition = program.derived.get(waiting.pop())
        new = (definition.symbols() if definition is not None else set()) - found
        found |= new
        waiting += new
    return frozenset(found)


def unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
