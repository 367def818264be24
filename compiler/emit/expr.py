"""Python expressions as small trees."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Atom:
    """Finished source text that binds tighter than any operator: a name, a literal, a subscript."""

    text: str

    def flat(self) -> str:
        return self.text

    @property
    def depth(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Call:
    """A call or method call; `fn` is source text, keyword arguments are written `name=…`."""

    fn: str
    args: tuple["Expr", ...]
    keywords: tuple[tuple[str, "Expr"], ...] = ()

    def arguments(self) -> list[str]:
        return [a.flat() for a in self.args] + [f"{k}={v.flat()}" for k, v in self.keywords]

    def flat(self) -> str:
        return f"{self.fn}({', '.join(self.arguments())})"

    @property
    def depth(self) -> int:
        return 1 + max((e.depth for e in (*self.args, *dict(self.keywords).values())), default=0)


@dataclass(frozen=True, slots=True)
class Binary:
    """Two operands and an operator; operands that bind no tighter are put in parentheses."""

    op: str
    left: "Expr"
    right: "Expr"

    def flat(self) -> str:
        return f"{self._side(self.left)} {self.op} {self._side(self.right)}"

    def _side(self, expr: "Expr") -> str:
        tighter = isinstance(expr, Binary) and (self.op, expr.op) == ("+", "*")
        return expr.flat() if tighter else grouped(expr)

    @property
    def depth(self) -> int:
        return 1 + max(self.left.depth, self.right.depth)


Expr = Atom | Call | Binary


def grouped(expr: Expr) -> str:
    """Source text that can stand as an operand or before a dot."""
    return f"({expr.flat()})" if isinstance(expr, Binary) else expr.flat()


def call(fn: str, *args: "Expr | str", **keywords: "Expr | str") -> Call:
    """Build a call; strings are finished source text."""
    given = tuple((k, atom(v)) for k, v in keywords.items())
    return Call(fn, tuple(atom(a) for a in args), given)


def method(receiver: Expr, name: str, *args: "Expr | str", **keywords: "Expr | str") -> Call:
    """Build `receiver.name(…)`."""
    return call(f"{grouped(receiver)}.{name}", *args, **keywords)


def atom(value: "Expr | str") -> Expr:
    return Atom(value) if isinstance(value, str) else value


def statement(target: str, expr: Expr, indent: int) -> str:
    """Print `target = expr`, or `return expr`, as one line; layout wraps it."""
    return f"{' ' * indent}{target} " + ("" if target == "return" else "= ") + expr.flat()


def slice_text(first: str, last: str) -> str:
    """The inside of a slice, spaced as the formatter does."""
    if all(bound.lstrip("-").isalnum() or not bound for bound in (first, last)):
        return f"{first}:{last}"
    return f"{first} : {last}".strip()
