"""The config classes of the emitted package: the sizes, how config.json gives them, and what must
agree with it."""

import itertools
import json
from contextlib import suppress
from typing import Any

from vlmspec.compiler.emit.names import config_class
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import ConfigKey, Program


class ConfigEmitter:
    """Writes `Config` and the config of each component that has sizes."""

    def __init__(self, program: Program, used: frozenset[str], model_types: dict[str, str]):
        self.keys = [key for key in program.keys if key.name in self._closure(program, used)]
        self.options = [key for key in program.options if key.paths]
        self.derived = {name: dim for name, dim in program.derived.items() if name in used}
        self.model_types = model_types
        names = dict.fromkeys(key.name.split(".")[0] for key in self.keys if "." in key.name)
        self.components = list(names)

    def _closure(self, program: Program, used: frozenset[str]) -> set[str]:
        """The used sizes, and those that the defaults of used ones mention."""
        found = set(used)
        for key in reversed(program.keys):
            if key.name in found and isinstance(key.default, Dim):
                found |= key.default.symbols()
        return found

    def own(self, component: str) -> list[ConfigKey]:
        """The keys of one component; of the model itself for an empty name."""
        return [k for k in self.keys if k.name.rpartition(".")[0] == component]

    def component(self, name: str, title: str) -> list[str]:
        """The config class of a component."""
        cls = config_class(name)
        lines = ["@dataclass(frozen=True)", f"class {cls}:", f'    """Sizes of {title}."""', ""]
        lines += [self._field(key) for key in self.own(name)]
        lines += self._properties(name)
        lines += ["", "    @classmethod", f'    def from_json(cls, data: dict) -> "{cls}":']
        lines += ['        """Read the sizes from a checkpoint\'s config.json."""']
        lines += self._reads(name)
        lines += ["        return cls("]
        lines += [f"            {_short(key)}={_short(key)}," for key in self.own(name)]
        return [*lines, "        )"]

    def whole(self, title: str) -> list[str]:
        """The config class of the model."""
        lines = ["@dataclass(frozen=True)", "class Config:", f'    """Sizes of {title}."""', ""]
        for name in self.components:
            cls = config_class(name)
            lines.append(f"    {name}: {cls} = field(default_factory={cls})")
        lines += [self._field(key) for key in self.own("")]
        lines += self._properties("")
        lines += ["", "    @classmethod", '    def from_json(cls, data: dict) -> "Config":']
        lines += [
            '        """Read the sizes from a checkpoint\'s config.json.',
            "",
            "        Raises:",
        ]
        lines += [
            "            ValueError: when the checkpoint needs other code than this package has."
        ]
        lines += ['        """']
        for key in self.options:
            values = [literal(v) for v in _raw_values(key, key.value)]
            accepted = ", ".join(values) + ("," if len(values) == 1 else "")
            default = _raw_values(key, key.default)[0]
            lines += _call(
                "check_choice", ["data", _paths(key), f"({accepted})", literal(default)], ""
            )
        lines += self._reads("")
        lines.append("        return cls(")
        for name in self.components:
            lines.append(f"            {name}={config_class(name)}.from_json(data),")
        lines += [f"            {_short(key)}={_short(key)}," for key in self.own("")]
        return [*lines, "        )", "", *self._to_json()]

    def _properties(self, component: str) -> list[str]:
        """A property for each size that follows from others."""
        lines: list[str] = []
        for name, dim in self.derived.items():
            owner, _, short = name.rpartition(".")
            if owner == component:
                text = dim.render(lambda n: f"self.{n.removeprefix(component + '.')}")
                lines += ["", "    @property", f"    def {short}(self) -> int:"]
                lines.append(f"        return {text}")
        return lines

    def _field(self, key: ConfigKey) -> str:
        kind = "float" if isinstance(key.value, float) else "int"
        if isinstance(key.value, tuple):
            return f"    {_short(key)}: tuple[tuple[int, ...], ...] = {key.value!r}"
        return f"    {_short(key)}: {kind} = {key.value!r}"

    def _reads(self, component: str) -> list[str]:
        """`name = read_size(…)` for every size, each after those that its default mentions."""
        lines: list[str] = []
        done: set[str] = set()
        waiting = self.own(component)
        while waiting:
            for key in waiting:
                needs = key.default.symbols() if isinstance(key.default, Dim) else frozenset()
                if all(n in done or n.rpartition(".")[0] != component for n in needs):
                    lines += self._read(key)
                    done.add(key.name)
                    waiting = [k for k in waiting if k is not key]
                    break
            else:
                raise AssertionError("defaults define each other")
        return lines

    def _read(self, key: ConfigKey) -> list[str]:
        default = key.default
        if isinstance(key.value, tuple):
            arguments = ["data", _paths(key), f"cls.{_short(key)}"]
            return _call("read_table", arguments, f"{_short(key)} = ")
        if isinstance(default, Dim):
            text = default.render(lambda name: name.rpartition(".")[2])
        else:
            text = literal(default)
        if not key.paths:
            return [f"        {_short(key)} = {text}"]
        return _call("read_size", ["data", _paths(key), text], f"{_short(key)} = ")

    def _to_json(self) -> list[str]:
        tree: dict[str, Any] = {}
        for path, value in self.model_types.items():
            _plant(tree, path, literal(value))
        for key in self.options:
            _plant(tree, key.paths[0], literal(_raw_values(key, key.value)[0]))
        for key in self.keys:
            if key.paths:
                _plant(tree, key.paths[0], f"self.{key.name}")
        lines = [
            "    def to_json(self) -> dict:",
            '        """The config.json of a checkpoint of these sizes."""',
        ]
        return [*lines, *_dict_lines(tree, "        return ", 8)]


def _short(key: ConfigKey) -> str:
    return key.name.rpartition(".")[2]


def _paths(key: ConfigKey) -> str:
    paths = ", ".join(map(literal, key.paths))
    return f"({paths})" if len(key.paths) > 1 else f"({paths},)"


def literal(value: Any) -> str:
    """Python source of a plain value; a text in double quotes, with whatever could end it
    escaped."""
    if isinstance(value, list):
        return _list_literal(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _list_literal(values: list[Any]) -> str:
    """Source text of a list; its repetitions are written as products."""
    total = len(values)
    for length in range(1, total // 2 + 1):
        times, rest = divmod(total, length)
        if not rest and values == values[:length] * times:
            part = _list_literal(values[:length])
            return f"({part}) * {times}" if " * " in part else f"{part} * {times}"
    runs = [(value, len(list(group))) for value, group in itertools.groupby(values)]
    if all(count == 1 for _, count in runs):
        return f"[{', '.join(map(literal, values))}]"
    pieces = [f"[{literal(value)}]" + (f" * {n}" if n > 1 else "") for value, n in runs]
    return " + ".join(pieces)


def _call(fn: str, arguments: list[str], head: str) -> list[str]:
    return [f"        {head}{fn}({', '.join(arguments)})"]


def _raw_values(key: ConfigKey, value: Any) -> list[Any]:
    """What config.json may say to mean `value`."""
    if isinstance(value, tuple):
        columns = [_raw_values(key, entry) for entry in value] if key.map else [value]
        return [list(row) for row in zip(*columns, strict=False)] if key.map else [list(value)]
    if not key.map:
        return [value]
    found = [_raw(text) for text, meant in key.map.items() if meant == value]
    return found or [value]


def _raw(text: str) -> Any:
    """What a key of a map stands for in config.json: a truth value, null, a number or a text."""
    table = {"true": True, "false": False, "none": None, "null": None}
    if text in table:
        return table[text]
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return text


def _plant(tree: dict[str, Any], path: str, value: str) -> None:
    *parents, last = path.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


def _dict_lines(tree: dict[str, Any], head: str, indent: int) -> list[str]:
    pad = " " * indent
    if tree and all(key.isdigit() for key in tree):
        items = [f"{pad}    {tree[key]}," for key in sorted(tree, key=int)]
        return [f"{head}[", *items, f"{pad}]"]
    lines = [f"{head}{{"]
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += _dict_lines(value, f"{pad}    {literal(key)}: ", indent + 4)
            lines[-1] += ","
        else:
            lines.append(f"{pad}    {literal(key)}: {value},")
    return [*lines, f"{pad}}}"]
