"""What an op, a module kind and a step are. The records themselves stand in one file per subject
beside this one.

- An `Op` is a node of the IR: attributes, shape rule, cost, emission.
- A `ModuleKind` is a piece of state: its parameters' shapes and how the emitted class builds it.
- A `StepKind` is a word of the language: its arguments and how they lower to ops and modules.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Node
from vlmspec.compiler.ir.types import TensorType, Type, same_dim

if TYPE_CHECKING:
    from vlmspec.compiler.builder import StepBuilder
    from vlmspec.compiler.emit.expr import Expr
    from vlmspec.compiler.emit.scope import Scope
    from vlmspec.compiler.ops.args import Args


class ShapeError(Exception):
    """Operands that do not fit an op; the message reads as a sentence."""

    def __init__(
        self,
        message: str,
        help: str | None = None,
        code: str = "VS305",
        dims: tuple[Dim, ...] = (),
    ):
        super().__init__(message)
        self.help = help
        self.code = code
        self.dims = dims


@dataclass(frozen=True, slots=True)
class NoAttrs:
    """Attributes of an op that has none."""


@dataclass(frozen=True, slots=True)
class Operands:
    """What a shape rule may look at."""

    types: Mapping[str, Type]
    attrs: Any
    module: Module | None
    sizes: Mapping[str, int | float]

    @property
    def state(self) -> Module:
        """The op's module, of an op that has one."""
        assert self.module is not None
        return self.module

    def tensor(self, role: str) -> TensorType:
        found = self.types[role]
        if not isinstance(found, TensorType):
            raise ShapeError(f"operand `{role}` is a {found}, not a tensor")
        return found

    def require_width(self, role: str, width: Dim, owner: str) -> TensorType:
        """Return the operand's type, whose last dimension must be `width`."""
        found = self.tensor(role)
        if not same_dim(found.width, width, self.sizes):
            raise ShapeError(
                f"{owner} takes vectors of {self.show(width)} numbers, and is given "
                f"{self.show(found.width)}",
                dims=(width, found.width),
            )
        return found

    def require_same(self, a: Dim, b: Dim, what: str) -> None:
        if not same_dim(a, b, self.sizes):
            raise ShapeError(f"{what}: {self.show(a)} against {self.show(b)}", dims=(a, b))

    def show(self, dim: Dim) -> str:
        """Print a dimension with its value, as `vision.hidden_size (1024)`."""
        try:
            value = dim.value(self.sizes)  # pyright: ignore[reportArgumentType]
        except KeyError:
            return f"`{dim}`"
        return f"`{dim}` ({value})" if dim.symbols() else str(value)


Infer = Callable[[Operands], tuple[Type, ...]]
# None where the op has written its statements by itself.
Emit = Callable[[Node, "Scope"], "Expr | None"]


@dataclass(frozen=True, slots=True)
class Op:
    """An operation of the IR.

    Attributes:
        infer: result types from operand types; raises ShapeError.
        emit: the Python expression; a Call, Atom or Binary.
        flops: multiply-adds counted twice, from the same operands.
        joins: operands whose absence the op bears (their optionality ends here); the first role is
            the fallback.
        bears: operands that may be None when the op runs; it knows what to do then.
        gives_optional: from its attributes, inputs of its graph without which its results do not
            exist.
        effect: kept even though nothing reads its result.
        host: work on the model's inputs that is done before the traced forward, in the emitted
            `plan`.
        stored: last parts of the names of tensors that some checkpoints hold although the op
            computes them.
        state: how the decoding state of one layer is allocated, from the node and a printer of
            sizes.
        inline: whether its expression may be written inside its reader's.
    """

    name: str
    doc: str
    infer: Infer
    emit: Emit
    attrs: type = NoAttrs
    module_kind: str | None = None
    results: tuple[str, ...] = ("h",)
    joins: frozenset[str] = frozenset()
    bears: frozenset[str] = frozenset()
    gives_optional: Callable[[Any], frozenset[str]] | None = None
    effect: bool = False
    host: bool = False
    inline: bool = True
    flops: Callable[[Operands], Dim] | None = None
    stored: tuple[str, ...] = ()
    state: "Callable[[Node, Callable[[Dim], str]], Expr] | None" = None


@dataclass(frozen=True, slots=True)
class ModuleKind:
    """A primitive piece of state: `shapes` gives its parameters in order; `construct` the
    expression that builds it."""

    name: str
    attrs: type
    shapes: Callable[[Any], dict[str, tuple[Dim, ...]]]
    construct: Callable[[Module, "Scope"], "Expr"]


@dataclass(frozen=True, slots=True)
class StepKind:
    """A word that a body may use.

    Attributes:
        args: pydantic model of its arguments.
        lower: adds nodes and modules to the builder, gives the running value.
        module: default name of its module; a composite step becomes a class of its own inside
            layers.
        shorthand: the argument that a bare value sets (`layer_norm: 1e-5`).
        roles: default names of its weights, by role, in order.
        component: the kinds of component that this step may be alone.
        reads: roles of the operands that it may have beside the first, where it is a component.
        flow: whether it takes its component's operands by role instead of the running value.
        aside: whether its result is a named value beside the running one, which goes on unchanged.
    """

    name: str
    doc: str
    args: "type[Args]"
    lower: "Callable[[StepBuilder, Any, Any], Any]"
    shorthand: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    component: tuple[str, ...] = ()
    module: str = ""
    composite: bool = False
    flow: bool = False
    reads: tuple[str, ...] = ()
    aside: bool = False


def same_as(role: str) -> Infer:
    """Shape rule of an op whose result is like its operand `role`."""
    return lambda ops: (ops.types[role],)
