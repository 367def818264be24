"""Elementwise ops: activations and arithmetic."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator

from vlmspec.compiler.emit.expr import Binary, atom, call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar
from vlmspec.compiler.ops.args import Args, Number, Size
from vlmspec.compiler.ops.registry import Op, Operands, ShapeError, StepKind, same_as

# What public configurations call the same functions.
ACTIVATION_ALIASES = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "swish": "silu",
    "relu2": "squared_relu",
}
ActivationName = Annotated[
    Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "squared_relu", "tanh", "sigmoid"],
    BeforeValidator(lambda name: ACTIVATION_ALIASES.get(name, name) if type(name) is str else name),
]


@dataclass(frozen=True, slots=True)
class ActivationAttrs:
    """Which function."""

    kind: str


def _emit_activation(node, scope):
    x = scope.use(node["x"])
    match node.attrs.kind:
        case "gelu_tanh":
            return call("F.gelu", x, approximate='"tanh"')
        case "tanh" | "sigmoid" as kind:
            return call(f"torch.{kind}", x)
        case "quick_gelu" | "squared_relu" as kind:
            return call(scope.helper(kind), x)
        case kind:
            return call(f"F.{kind}", x)


ACTIVATION = Op(
    "activation",
    "An activation function, elementwise.",
    infer=same_as("x"),
    emit=_emit_activation,
    attrs=ActivationAttrs,
)


class ActArgs(Args):
    """Arguments of `act`."""

    kind: ActivationName


ACT_STEP = StepKind(
    "act",
    "An activation function, elementwise.",
    ActArgs,
    lambda b, x, args: b.node("activation", {"x": x}, ActivationAttrs(args.kind)),
    shorthand="kind",
)


def _infer_elementwise(ops: Operands):
    x, y = ops.tensor("x"), ops.tensor("y")
    if len(x.shape) != len(y.shape):
        raise ShapeError(f"the two operands differ: {x} against {y}")
    for a, b in zip(x.shape, y.shape, strict=True):
        ops.require_same(a, b, "the two operands differ")
    return (x,)


def _binary(symbol: str):
    return lambda node, scope: Binary(symbol, scope.use(node["x"]), scope.use(node["y"]))


ADD = Op(
    "add",
    "Sum of two tensors of one shape; `x` is the residual where there is one.",
    infer=_infer_elementwise,
    emit=_binary("+"),
    results=("x",),
    inline=False,
)
MUL = Op("mul", "Product of two tensors of one shape.", infer=_infer_elementwise, emit=_binary("*"))


@dataclass(frozen=True, slots=True)
class ScaleAttrs:
    """The factor, or the size whose square root it is."""

    factor: Scalar | None
    root_of: Dim | None = None


def _emit_scale(node, scope):
    attrs = node.attrs
    if attrs.root_of is None:
        factor = scope.scalar(attrs.factor)
    else:
        size = scope.dim(attrs.root_of)
        factor = f"{size}**0.5" if size.replace(".", "").isidentifier() else f"({size}) ** 0.5"
    return Binary("*", scope.use(node["x"]), atom(factor))


SCALE = Op(
    "scale",
    "Product with a number.",
    infer=same_as("x"),
    emit=_emit_scale,
    attrs=ScaleAttrs,
)


@dataclass(frozen=True, slots=True)
class ScaledAddAttrs:
    """Factors of the residual and of the branch; 1 where there is none."""

    alpha: Scalar | None = None
    beta: Scalar | None = None


def _emit_scaled_add(node, scope):
    """Write `x * alpha + y * beta`, the branch having a name of its own."""
    if "y" not in scope.holders:
        scope.wanted[node["y"]] = "y"
    terms = []
    for role, factor in (("x", node.attrs.alpha), ("y", node.attrs.beta)):
        name = scope.name(node[role])
        terms.append(name if factor is None else f"{name} * {scope.scalar(factor)}")
    return Binary("+", *map(atom, terms))


SCALED_ADD = Op(
    "scaled_add",
    "Sum of a residual and a branch, each with a factor.",
    infer=_infer_elementwise,
    emit=_emit_scaled_add,
    attrs=ScaledAddAttrs,
    results=("x",),
    inline=False,
)


class ScaleArgs(Args):
    """Arguments of `scale`: the factor, or a size whose square root it is."""

    factor: Number | None = None
    root_of: Size | None = None


def _lower_scale(b, x, args: ScaleArgs):
    if (args.factor is None) == (args.root_of is None):
        b.fail("VS102", "`scale` needs either a factor or `root_of`")
    return b.node("scale", {"x": x}, ScaleAttrs(args.factor, args.root_of))


SCALE_STEP = StepKind(
    "scale",
    "Product with a number.",
    ScaleArgs,
    _lower_scale,
    shorthand="factor",
)


class AddArgs(Args):
    """Arguments of `add`: the name of the other value."""

    value: str


ADD_STEP = StepKind(
    "add",
    "Sum with a named value of the same shape.",
    AddArgs,
    lambda b, x, args: b.node("add", {"x": b.value(args.value), "y": x}),
    shorthand="value",
)
