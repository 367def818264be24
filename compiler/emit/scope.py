"""The forward of one graph: statements in order, variables by the values' names, short expressions
in place."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from vlmspec.compiler.emit.expr import Atom, Expr, atom, slice_text, statement
from vlmspec.compiler.emit.layout import WIDTH
from vlmspec.compiler.emit.library import library
from vlmspec.compiler.emit.names import LAYER, ConfigUse, base_name
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Graph, Node, Value
from vlmspec.compiler.ir.types import Scalar, Table
from vlmspec.compiler.ops.registry import Op

MAX_DEPTH = 4


@dataclass(slots=True)
class Scope:
    """What an op's `emit` works with; collects the lines of a forward."""

    graph: Graph
    configs: ConfigUse
    ops: dict[str, Op]
    helpers: set[str]
    kernels: dict[str, str] = field(default_factory=dict)
    root: str = "self.config"
    inline: bool = True
    indent: int = 8
    lines: list[str] = field(default_factory=list)
    names: dict[Value, str] = field(default_factory=dict)
    holders: dict[str, Value] = field(default_factory=dict)
    pending: dict[Value, Expr] = field(default_factory=dict)
    last_use: dict[Value, int] = field(default_factory=dict)
    uses_config: bool = False
    uses_layer: bool = False
    note: str = ""
    wanted: dict[Value, str] = field(default_factory=dict)
    current: int = 0

    # ------------------------------------------------------------------------- what `emit` may ask

    def use(self, value: Value) -> Expr:
        """The expression that stands for a value."""
        return self.pending.get(value) or Atom(self.names[value])

    def name(self, value: Value) -> str:
        """The variable of a value that is read more than once in an expression."""
        self.materialize(value)
        return self.names[value]

    def loop_variable(self, node: Node, value: Value) -> str:
        """The variable that runs through a loop: the operand's own, unless that is read again
        later."""
        index = self.graph.nodes.index(node)
        wanted = base_name(node.output.name)
        own = value not in self.graph.inputs or value.name == wanted
        if own and self.last_use.get(value, -1) <= index:
            self.wanted[value] = wanted
            return self.name(value)
        fresh = self._variable(node.output, index)
        self.line(fresh, Atom(self.name(value)))
        return fresh

    def claim(self, value: Value) -> str:
        """The variable that a result will have, for an op that writes it by itself."""
        self.wanted[value] = self._variable(value, self.current)
        return self.wanted[value]

    def module(self, node: Node) -> str:
        return f"self.{node.module}"

    def helper(self, name: str) -> str:
        """Name of a function of the kernel library, which the package will contain."""
        self.helpers.add(name)
        return name

    def dim(self, dim: Dim) -> str:
        """A dimension, in the names of the config."""
        self.uses_config |= bool(dim.symbols() - {LAYER})
        return dim.render(self._reach)

    def _reach(self, name: str) -> str:
        """How the class writes a size: the index of its layer, or an entry of its config."""
        if name != LAYER:
            return self.configs.reach(self.graph.name, name, self.root)
        self.uses_layer = True
        return self.root.replace("config", LAYER)

    def scalar(self, scalar: Scalar) -> str:
        if scalar.name is None:
            return repr(scalar.value)
        self.uses_config = True
        return self.configs.reach(self.graph.name, scalar.name, self.root)

    def table(self, table: Table) -> str:
        """Rows of numbers, in the names of the config."""
        if table.name is None:
            return repr(table.value)
        self.uses_config = True
        return self.configs.reach(self.graph.name, table.name, self.root)

    def atom(self, text: str) -> Expr:
        return atom(text)

    def kernel(self, op: str) -> str | None:
        """The kernel that was chosen for an op, which the package will contain; None for plain
        torch."""
        name = self.kernels.get(op)
        return None if name is None else self.helper(name)

    def comment(self, text: str) -> None:
        """Put a comment after the next statement."""
        self.note = text

    def line(self, target: str, expr: Expr, indent: int = 0) -> None:
        """Write an assignment before the node's own."""
        self.lines.append(statement(target, expr, self.indent + indent))

    def block(self, head: str) -> None:
        self.lines.append(" " * self.indent + head)

    def span(self, node: Node) -> str:
        """The slice of a repeated module that runs, as source text; empty for all of it."""
        count = self.graph.module(node.module or "").attrs.count
        start, stop = node.attrs.start, node.attrs.stop
        left, short = ((count - end).as_int() for end in (start, stop))
        first = f"-{left}" if left else self.dim(start)
        first = "" if start == Dim.const(0) else first
        if short == 0:
            last = ""
        else:
            last = f"-{short}" if short else self.dim(stop)
        if not first and not last:
            return ""
        return f"[{slice_text(first, last)}]"

    # ------------------------------------------------------------------------------------- writing

    def start(self) -> None:
        """Name the inputs, and find out where each value is read last."""
        for value in self.graph.inputs:
            self.names[value] = value.name
            self.holders[value.name] = value
        place: dict[int, int] = {}
        for index in reversed(range(len(self.graph.nodes))):
            node = self.graph.nodes[index]
            readers = [i for i, n in enumerate(self.graph.nodes) if self._reads(n, node.outputs)]
            inlined = self._may_inline(node) and len(readers) == 1
            place[index] = place[readers[0]] if inlined else index
        for index, node in enumerate(self.graph.nodes):
            for _, value in node.inputs:
                self.last_use[value] = max(self.last_use.get(value, -1), place[index])
        for value in self.graph.outputs:
            self.last_use[value] = len(self.graph.nodes)

    def _reads(self, node: Node, values: Iterable[Value]) -> bool:
        return any(value in values for _, value in node.inputs)

    def _may_inline(self, node: Node) -> bool:
        op = self.ops[node.op]
        return (
            self.inline
            and op.inline
            and len(node.outputs) == 1
            and self.graph.used_once(node.output)
            and not self._leaves_guard(node)
        )

    def _leaves_guard(self, node: Node) -> bool:
        """Whether a value that may be absent is read where that is borne."""
        optional = node.output.type.optional
        readers = self.graph.readers(node.output) if optional else []
        return any(not reader.output.type.optional for reader in readers)

    def settle(self) -> None:
        """Give every pending expression a variable, since an `if` begins."""
        for value in list(self.pending):
            self.materialize(value)

    def emit(self, index: int) -> None:
        """Write the node at `index`, or keep its expression for its reader."""
        node = self.graph.nodes[index]
        self.current = index
        expr = self._expression(node)
        if expr is None:
            return
        if self._may_inline(node):
            self.pending[node.output] = expr
        else:
            self._assign(index, node, expr)

    def _expression(self, node: Node) -> Expr | None:
        """The node's expression with its operands in place, or with the longest of them in
        variables."""
        operands = [v for _, v in node.inputs if v in self.pending]
        before, state = len(self.lines), (self.pending, self.names, self.holders)
        self.pending, self.names, self.holders = dict(state[0]), dict(state[1]), dict(state[2])
        expr = self.ops[node.op].emit(node, self)
        long = expr is not None and self.indent + len(expr.flat()) + 8 > WIDTH
        too_long = long or (expr is not None and expr.depth > MAX_DEPTH)
        if operands and (too_long or len(self.lines) > before):
            del self.lines[before:]
            self.pending, self.names, self.holders = state
            for value in operands:
                if self.pending[value].depth:
                    self.materialize(value)
            expr = self.ops[node.op].emit(node, self)
        for value in operands:
            self.pending.pop(value, None)
        return expr

    def materialize(self, value: Value) -> None:
        """Give a pending expression a variable of its own."""
        if value in self.pending:
            expr = self.pending.pop(value)
            name = self.wanted.get(value) or base_name(value.name)
            if any(name in _words(other.flat()) for other in self.pending.values()):
                self.wanted[value] = value.name  # the others still read what has that name
            name = self._variable(value, self.current)
            self.lines.append(statement(name, expr, self.indent))

    def _assign(self, index: int, node: Node, expr: Expr) -> None:
        if self.ops[node.op].joins:
            # Without the optional operand the result is the first one, whose variable it takes
            # over.
            self.wanted[node.output] = self.name(node.inputs[0][1])
        if _is_attribute(expr.flat()) and len(node.outputs) == 1:
            self.names[node.output] = expr.flat()
            return
        names = [self._variable(v, index) for v in node.outputs]
        if ", ".join(names) == expr.flat():
            return
        written = statement(", ".join(names), expr, self.indent)
        noted = f"{written}  # {self.note}"
        self.lines.append(noted if self.note and len(noted) <= WIDTH else written)
        self.note = ""

    def _variable(self, value: Value, index: int) -> str:
        """A variable for a value: its name without the number, where that is free again."""
        name = self.wanted.get(value) or base_name(value.name)
        if name in library():  # a function of this name may be called further on
            name = f"{name}_value"
        holder = self.holders.get(name)
        if holder is not None and self._busy(holder, value, index):
            name = self._free(value, index)
        for pending, expr in list(self.pending.items()):
            if name in _words(expr.flat()) and pending != value:
                self.materialize(pending)
        self.holders[name] = value
        self.names[value] = name
        return name

    def _free(self, value: Value, index: int) -> str:
        """The value's own name, or that with a number where another value still has it."""
        for number in count(1):
            name = value.name if number == 1 else f"{value.name}_{number}"
            holder = self.holders.get(name)
            if holder is None or not self._busy(holder, value, index):
                return name
        raise AssertionError

    def _busy(self, holder: Value, value: Value, index: int) -> bool:
        """Whether a variable's value is still read once `value` has been written."""
        if holder == value:
            return False
        if self.last_use.get(holder, -1) > index:
            return True
        node = self.graph.nodes[index]
        return value not in node.outputs and any(v == holder for _, v in node.inputs)

    def finish(self) -> None:
        """Write the return."""
        values = self.graph.outputs
        if len(values) == 1:
            self.lines.append(statement("return", self.use(values[0]), self.indent))
        else:
            self.block(f"return {', '.join(self.use(v).flat() for v in values)}")
        last = self.lines[-2:]
        if len(last) == 2 and last[1].strip().startswith("return "):
            name = last[1].strip().removeprefix("return ")
            head = f"{' ' * self.indent}{name} = "
            if last[0].startswith(head) and name.isidentifier():
                self.lines[-2:] = [f"{' ' * self.indent}return {last[0].removeprefix(head)}"]


def _is_attribute(text: str) -> bool:
    """Whether an expression only names a part of the module, as `self.newline`."""
    first, *rest = text.split(".")
    return first == "self" and bool(rest) and all(part.isidentifier() for part in rest)


def _words(text: str) -> set[str]:
    word, found = "", set()
    for character in text + " ":
        if character.isalnum() or character == "_":
            word += character
        else:
            found.add(word)
            word = ""
    return found
