"""The weight map of the emitted package: where each parameter lives in the public checkpoint."""

from vlmspec.compiler.emit.module import layer_tests
from vlmspec.compiler.emit.names import ConfigUse
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param, Program

INDICES = "ijkmn"


class WeightEmitter:
    """Writes the function `weight_map`."""

    def __init__(self, program: Program, configs: ConfigUse):
        self.program = program
        self.configs = configs
        self.used: set[str] = set()

    def emit(self) -> list[str]:
        lines = [
            "def weight_map(config: Config) -> list[Entry]:",
            '    """Where each parameter lives in the public checkpoint."""',
            "    entries: list[Entry] = []",
        ]
        body = self._graph(self.program.entry, "", 0, 4)
        return [*lines, *body, "    return entries"]

    def _graph(self, graph: str, path: str, depth: int, indent: int) -> list[str]:
        """Entries of a graph's own modules, then a loop for each repeat, in the order of the
        modules."""
        lines: list[str] = []
        flat: list[str] = []
        for module in self.program.graphs[graph].modules:
            name = f"{path}.{module.name}" if path else module.name
            if module.kind == "graph":
                flat += self._collect(module.graphs[0], name, depth)
            elif module.kind == "repeat":
                lines += self._flush(flat, indent)
                flat = []
                lines += self._loop(module, name, depth, indent)
            else:
                flat += self._entries(module, name, depth)
        return lines + self._flush(flat, indent)

    def _collect(self, graph: str, path: str, depth: int) -> list[str]:
        """Entries of a graph without loops; one with loops is written in place."""
        modules = self.program.graphs[graph].modules
        if any(m.kind in ("repeat", "graph") for m in modules):
            return [f"\0{line}" for line in self._graph(graph, path, depth, 0)]
        return [e for m in modules for e in self._entries(m, f"{path}.{m.name}", depth)]

    def _flush(self, entries: list[str], indent: int) -> list[str]:
        lines: list[str] = []
        pad = " " * indent
        run: list[str] = []
        for entry in [*entries, "\0"]:
            if not entry.startswith("\0"):
                run.append(entry)
                continue
            if run:
                lines += [f"{pad}entries += [", *(f"{pad}    {e}," for e in run), f"{pad}]"]
                run = []
            if len(entry) > 1:
                lines.append(pad + entry[1:])
        return lines

    def _loop(self, module: Module, path: str, depth: int, indent: int) -> list[str]:
        """A loop over a repeat; what all its names start with is written once."""
        walks = (self.program.walk(graph) for graph in module.graphs)
        if not any(inner.params for walk in walks for _, _, inner in walk):
            return []
        index = INDICES[depth]
        pad = " " * indent
        ours = f"{path}.{{{index}}}"
        theirs = self._common_key(module)
        lines = [f"{pad}for {index} in range({self._dim(module.attrs.count)}):"]
        if theirs is None:
            return [*lines, *self._kinds(module, ours, depth + 1, indent + 4, index)]
        lines.append(f"{pad}    ours, theirs = {_text(ours)}, {_text(theirs)}")
        body = self._kinds(module, "{ours}", depth + 1, indent + 4, index)
        return [*lines, *(line.replace(theirs, "{theirs}") for line in body)]

    def _kinds(self, module: Module, path: str, depth: int, indent: int, index: str) -> list[str]:
        """The body of a loop: entries of the one kind of layer, or of each kind under its test."""
        if len(module.graphs) == 1:
            return self._graph(module.graphs[0], path, depth, indent)
        lines: list[str] = []
        pad = " " * indent
        *tests, default = layer_tests(module.attrs, index)
        for word, (number, test) in zip(("if", *["elif"] * len(tests)), tests, strict=False):
            lines.append(f"{pad}{word} {test}:")
            empty = [f"{pad}    pass"]
            lines += self._graph(module.graphs[number], path, depth, indent + 4) or empty
        last = self._graph(module.graphs[default[0]], path, depth, indent + 4)
        return [*lines, f"{pad}else:", *last] if last else lines

    def _common_key(self, module: Module) -> str | None:
        """What the checkpoint names of everything in a repeat start with, its index included."""
        found = {
            key.partition("{i}")[0] + "{i}"
            for graph in module.graphs
            for _, _, inner in self.program.walk(graph)
            for param in inner.params
            for key in param.keys
        }
        return found.pop() if len(found) == 1 else None

    def _entries(self, module: Module, path: str, depth: int) -> list[str]:
        return [
            self._entry(p, f"{path}.{p.name}" if p.name else path, depth) for p in module.params
        ]

    def _entry(self, param: Param, path: str, depth: int) -> str:
        keys = [_text(key) for key in param.keys]
        if param.tied:
            self.used.add("Tied")
            return f"Tied({_text(path)}, {_text(param.tied)}, {keys[0]})"
        if param.stack is not None:
            self.used.add("Numbered")
            listed = f"({', '.join(keys)}{',' if len(keys) == 1 else ''})"
            return f"Numbered({_text(path)}, {listed}, {self._dim(param.stack)})"
        if len(keys) == 1:
            self.used.add("Weight")
            order = f", {param.permute}" if param.permute else ""
            return f"Weight({_text(path)}, {keys[0]}{order})"
        self.used.add("Concat")
        sizes = ", ".join(self._dim(size) for size in param.sizes)
        return f"Concat({_text(path)}, ({', '.join(keys)}), ({sizes}))"

    def _dim(self, dim: Dim) -> str:
        return dim.render(lambda name: self.configs.reach(self.program.entry, name, "config"))


def _text(text: str) -> str:
    """A string literal; an f-string where it has an index."""
    return f'f"{text}"' if "{" in text else f'"{text}"'
