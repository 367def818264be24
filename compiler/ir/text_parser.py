"""The reader of the text form, a line at a time."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import ConfigKey, Graph, Module, Node, Param, Program, Value
from vlmspec.compiler.ir.text_cursor import Cursor, ParseError
from vlmspec.compiler.ir.text_values import (
    Sizes,
    read,
    read_dim,
    read_fields,
    read_name,
    read_number,
)
from vlmspec.compiler.ir.types import DTYPES, STATE_KINDS, StateType, TensorType, Type
from vlmspec.compiler.ops import MODULE_KINDS, OPS
from vlmspec.compiler.ops.structure import GraphAttrs, RepeatAttrs

_WORD = re.compile(r"[a-z_]+")
_KEYWORDS = frozenset({"input", "module", "param", "return"})
_COMPOSED: dict[str, type] = {"graph": GraphAttrs, "repeat": RepeatAttrs}


def parse_program(text: str) -> Program:
    """Read a program.

    Raises:
        ParseError: where the text is not one.
    """
    reader = _Reader.of(text)
    found = _Header()
    graphs: dict[str, Graph] = {}
    while (cursor := reader.line()) is not None:
        if cursor.peek("graph @"):
            _add_graph(graphs, reader, cursor, found.sizes)
        elif graphs:
            raise cursor.error("expected `graph @name {`")
        else:
            found.read(cursor)
    return found.program(graphs, reader)


def parse_graphs(text: str, sizes: Sizes | None = None) -> dict[str, Graph]:
    """Read graphs without the header of a program.

    Raises:
        ParseError: where the text is not made of graphs.
    """
    reader = _Reader.of(text)
    graphs: dict[str, Graph] = {}
    while (cursor := reader.line()) is not None:
        _add_graph(graphs, reader, cursor, sizes or {})
    return graphs


def parse_graph(text: str, sizes: Sizes | None = None) -> Graph:
    """Read exactly one graph.

    Raises:
        ParseError: where the text is not one.
    """
    graphs = list(parse_graphs(text, sizes).values())
    if len(graphs) != 1:
        raise ParseError(1, 1, f"expected one graph, found {len(graphs)}")
    return graphs[0]


@dataclass(slots=True)
class _Reader:
    """The lines of a text that are neither blank nor comments."""

    lines: list[str]
    next: int = 0

    @classmethod
    def of(cls, text: str) -> "_Reader":
        return cls(text.replace("\r\n", "\n").split("\n"))

    def line(self) -> Cursor | None:
        while self.next < len(self.lines):
            text = self.lines[self.next].rstrip(" \t")
            self.next += 1
            cursor = Cursor(text, self.next)
            if cursor.skip() < len(text) and not cursor.peek("#"):
                return cursor
        return None

    def inside(self, what: str) -> Cursor:
        """The next line, which must be there."""
        cursor = self.line()
        if cursor is None:
            raise ParseError(max(len(self.lines), 1), 1, f"{what} does not end")
        return cursor


@dataclass(slots=True)
class _Header:
    """What stands before the graphs."""

    name: str | None = None
    entry: str = "model"
    sizes: dict[str, int | float] = field(default_factory=dict)
    derived: dict[str, Dim] = field(default_factory=dict)
    keys: list[ConfigKey] = field(default_factory=list)
    options: list[ConfigKey] = field(default_factory=list)
    alternates: list[tuple[str, ...]] = field(default_factory=list)

    def read(self, cursor: Cursor) -> None:
        start = cursor.skip()
        word = cursor.match(_WORD, "`program`, `size`, `key` or another word of the header").group()
        match word:
            case "program":
                self.name = read_name(cursor, "the program's name")
            case "entry":
                cursor.expect("@")
                self.entry = read_name(cursor, "the name of a graph")
            case "alternate":
                self.alternates.append(read(cursor, tuple[str, ...], {}))
            case "size" | "derived":
                self._read_size(cursor, word)
            case "key" | "option":
                given = {"name": read_name(cursor, "a name")}
                found = self.keys if word == "key" else self.options
                found.append(read_fields(cursor, ConfigKey, self.sizes, given))
            case _:
                raise cursor.error(f"a header has no `{word}`", start)
        cursor.end()

    def _read_size(self, cursor: Cursor, word: str) -> None:
        start = cursor.skip()
        name = read_name(cursor, "the name of a size")
        table: dict[str, Any] = self.sizes if word == "size" else self.derived
        if name in table:
            raise cursor.error(f"`{name}` is given twice", start)
        cursor.expect("=")
        table[name] = read_number(cursor) if word == "size" else read_dim(cursor)

    def program(self, graphs: Mapping[str, Graph], reader: _Reader) -> Program:
        if self.name is None:
            raise ParseError(1, 1, "a program starts with `program` and its name")
        return Program(
            self.name,
            graphs,
            self.sizes,
            self.entry,
            tuple(self.keys),
            tuple(self.options),
            self.derived,
            tuple(self.alternates),
        )


def _add_graph(graphs: dict[str, Graph], reader: _Reader, cursor: Cursor, sizes: Sizes) -> None:
    start = cursor.skip()
    graph = _GraphReader(reader, sizes).read(cursor)
    if graph.name in graphs:
        raise cursor.error(f"the graph `{graph.name}` is defined twice", start)
    graphs[graph.name] = graph


@dataclass(slots=True)
class _GraphReader:
    """Reads one graph; operands are found by name."""

    reader: _Reader
    sizes: Sizes
    values: dict[str, Value] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def read(self, cursor: Cursor) -> Graph:
        cursor.expect("graph")
        cursor.expect("@")
        name = read_name(cursor, "the name of a graph")
        cursor.expect("{")
        cursor.end()
        outputs: tuple[Value, ...] | None = None
        while True:
            cursor = self.reader.inside(f"the graph `{name}`")
            if cursor.take("}"):
                cursor.end()
                break
            if outputs is not None:
                raise cursor.error("expected `}`: nothing may follow `return`")
            outputs = self._line(cursor)
            cursor.end()
        if outputs is None:
            raise cursor.error("a graph ends with `return`", 0)
        modules = tuple(self.modules)
        return Graph(name, tuple(self.inputs), modules, tuple(self.nodes), outputs)

    def _line(self, cursor: Cursor) -> tuple[Value, ...] | None:
        """Read one line; gives the results where it is `return`."""
        match self._keyword(cursor):
            case "input":
                self.inputs.append(self._define(cursor))
            case "module":
                self._module(cursor)
            case "param":
                self._param(cursor)
            case "return":
                return self._return(cursor)
            case _:
                self._node(cursor)
        return None

    def _keyword(self, cursor: Cursor) -> str | None:
        """The word that says what a line is; a value or op may be called the same."""
        found = _WORD.match(cursor.text, cursor.skip())
        if found is None or found.group() not in _KEYWORDS:
            return None
        following = cursor.text[found.end() :].lstrip()[:1]
        if following in (":", "("):
            return None
        cursor.position = found.end()
        return found.group()

    # ------------------------------------------------------------------------------------- values

    def _define(self, cursor: Cursor) -> Value:
        start = cursor.skip()
        name = read_name(cursor, "the name of a value")
        if name in self.values:
            raise cursor.error(f"`{name}` is defined twice", start)
        cursor.expect(":")
        self.values[name] = Value(name, read_type(cursor))
        return self.values[name]

    def _use(self, cursor: Cursor) -> Value:
        start = cursor.skip()
        name = read_name(cursor, "the name of a value")
        if name not in self.values:
            raise cursor.error(f"no value is called `{name}` here", start)
        return self.values[name]

    def _return(self, cursor: Cursor) -> tuple[Value, ...]:
        found: list[Value] = []
        while cursor.skip() < len(cursor.text):
            if found:
                cursor.expect(",")
            found.append(self._use(cursor))
        return tuple(found)

    # ------------------------------------------------------------------------------------ modules

    def _module(self, cursor: Cursor) -> None:
        name = read_name(cursor, "the name of a module")
        cursor.expect(":")
        start = cursor.skip()
        kind = read_name(cursor, "a kind of module")
        given: dict[str, Any] = {}
        if kind in _COMPOSED:
            cls = _COMPOSED[kind]
            graphs: list[str] = []
            while cursor.take("@"):
                graphs.append(read_name(cursor, "the name of a graph"))
            given["graphs"] = tuple(graphs)
        elif kind in MODULE_KINDS:
            cls = MODULE_KINDS[kind].attrs
        else:
            raise cursor.error(f"no kind of module is called `{kind}`", start)
        attrs = read_fields(cursor, cls, self.sizes, given)
        self.modules.append(Module(name, kind, attrs))

    def _param(self, cursor: Cursor) -> None:
        if not self.modules:
            raise cursor.error("a parameter stands under its module", 0)
        given = {"name": read_name(cursor, "the name of a parameter")}
        cursor.expect(":")
        given |= {"shape": read(cursor, tuple[Dim, ...], self.sizes)}
        param = read_fields(cursor, Param, self.sizes, given)
        owner = self.modules.pop()
        params = (*owner.params, param)
        self.modules.append(Module(owner.name, owner.kind, owner.attrs, params))

    # -------------------------------------------------------------------------------------- nodes

    def _node(self, cursor: Cursor) -> None:
        start = cursor.skip()
        read_name(cursor, "a node")
        defines = not cursor.peek("(")
        cursor.position = start
        waiting = self._results(cursor) if defines else []
        start = cursor.skip()
        op = read_name(cursor, "the name of an op")
        if op not in OPS:
            raise cursor.error(f"no op is called `{op}`", start)
        inputs = self._operands(cursor)
        module = read_name(cursor, "the name of a module") if cursor.take("@") else None
        attrs = read_fields(cursor, OPS[op].attrs, self.sizes)
        for value in waiting:
            self.values[value.name] = value
        self.nodes.append(Node(op, inputs, tuple(waiting), attrs, module))

    def _results(self, cursor: Cursor) -> list[Value]:
        """`a: type, b: type =`; they are not there yet for the operands of their own node."""
        before = dict(self.values)
        found = [self._define(cursor)]
        while cursor.take(","):
            found.append(self._define(cursor))
        cursor.expect("=")
        self.values = before
        return found

    def _operands(self, cursor: Cursor) -> tuple[tuple[str, Value], ...]:
        cursor.expect("(")
        found: list[tuple[str, Value]] = []
        if cursor.take(")"):
            return ()
        while True:
            role = read_name(cursor, "the role of an operand")
            cursor.expect("=")
            found.append((role, self._use(cursor)))
            if cursor.take(")"):
                return tuple(found)
            cursor.expect(",")


def read_type(cursor: Cursor) -> Type:
    """A type, as in `float[batch, tokens]?pixel_values|none` or `cache`."""
    start = cursor.skip()
    word = cursor.match(_WORD, "a type").group()
    if word in STATE_KINDS:
        return StateType(word)
    if word not in DTYPES:
        known = ", ".join((*DTYPES, *STATE_KINDS))
        raise cursor.error(f"no type is called `{word}`; there are {known}", start)
    shape = read(cursor, tuple[Dim, ...], {})
    optional: set[str] = set()
    while cursor.take("?"):
        optional.add(read_name(cursor, "the name of an optional input"))
    nullable = cursor.take("|none")
    return TensorType(shape, word, frozenset(optional), nullable)
