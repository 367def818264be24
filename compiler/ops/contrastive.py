"""Towers that are compared: unit vectors, their similarities, and what scales those."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import Binary, call, grouped, method
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param
from vlmspec.compiler.ir.types import Scalar
from vlmspec.compiler.ops.args import Args, NoArgs, Number
from vlmspec.compiler.ops.embed import ranked
from vlmspec.compiler.ops.registry import ModuleKind, Op, Operands, StepKind, same_as

NORMALIZE = Op(
    "normalize",
    "Vectors of length 1 in the same direction.",
    infer=same_as("x"),
    emit=lambda node, scope: call("F.normalize", scope.use(node["x"]), dim="-1"),
    results=("x",),
    inline=False,
)
NORMALIZE_STEP = StepKind(
    "normalize",
    NORMALIZE.doc,
    NoArgs,
    lambda b, x, args: b.node("normalize", {"x": x}),
    component=("connector",),
)


def _infer_similarity(ops: Operands):
    x, y = ops.tensor("x"), ops.tensor("y")
    ops.require_same(x.width, y.width, "vectors that are compared differ in width")
    return (x.with_shape(*x.shape[:-1], y.shape[0]),)


SIMILARITY = Op(
    "similarity",
    "Product of every vector of one set with every vector of another.",
    infer=_infer_similarity,
    emit=lambda node, scope: Binary(
        "@", scope.use(node["x"]), scope.atom(f"{grouped(scope.use(node['y']))}.T")
    ),
    results=("logits",),
)


class SimilarityArgs(Args):
    """Arguments of `similarity`: the named value that has the other vectors."""

    to: str


SIMILARITY_STEP = StepKind(
    "similarity",
    SIMILARITY.doc,
    SimilarityArgs,
    lambda b, x, args: b.node("similarity", {"x": x, "y": b.value(args.to)}),
    shorthand="to",
)


def _infer_transpose(ops: Operands):
    rows, columns = ops.tensor("x").shape
    return (ops.tensor("x").with_shape(columns, rows),)


TRANSPOSE = Op(
    "transpose",
    "A matrix with its rows as columns.",
    infer=_infer_transpose,
    emit=lambda node, scope: scope.atom(f"{grouped(scope.use(node['x']))}.T"),
    results=("transposed",),
)
TRANSPOSE_STEP = StepKind(
    "transpose", TRANSPOSE.doc, NoArgs, lambda b, x, args: b.node("transpose", {"x": x})
)


@dataclass(frozen=True, slots=True)
class NumberAttrs:
    """Shape of one learned number, and what it starts as."""

    shape: tuple[Dim, ...]
    init: Scalar


def _construct_number(module, scope):
    value = scope.scalar(module.attrs.init)
    for _ in module.attrs.shape:
        value = f"[{value}]"
    return call("nn.Parameter", call("torch.tensor", value))


NUMBER_MODULE = ModuleKind(
    "number", NumberAttrs, lambda attrs: {"": attrs.shape}, _construct_number
)


@dataclass(frozen=True, slots=True)
class LogitScaleAttrs:
    """The most that logits are scaled by; any factor where it is not given."""

    most: Scalar | None = None


def _emit_logit_scale(node, scope):
    log_scale, most = scope.atom(scope.module(node)), node.attrs.most
    factor = method(log_scale, "exp")
    if most is not None:
        factor = call(scope.helper("bounded_exp"), log_scale, scope.scalar(most))
    return Binary("*", scope.use(node["x"]), factor)


LOGIT_SCALE = Op(
    "logit_scale",
    "Product with the exponential of a learned number, which may be held between 1 and a bound.",
    infer=same_as("x"),
    emit=_emit_logit_scale,
    attrs=LogitScaleAttrs,
    module_kind="number",
    results=("logits",),
)
LOGIT_BIAS = Op(
    "logit_bias",
    "Sum with one learned number.",
    infer=same_as("x"),
    emit=lambda node, scope: Binary("+", scope.use(node["x"]), scope.atom(scope.module(node))),
    module_kind="number",
    results=("logits",),
)


def add_number(b, role: str, init: Scalar, rank: int) -> str:
    """Declare one learned number; `rank` counts the dimensions that it has in the checkpoint."""
    shape = ranked(rank)
    param = Param("", shape, (b.weights.key(role),))
    b.graph.add_module(Module(b.name, "number", NumberAttrs(shape, init), (param,), b.span))
    return b.name


class LogitScaleArgs(Args):
    """Arguments of `logit_scale`: what it starts as, its bound, its rank in the checkpoint."""

    init: Number = Scalar(2.6592)
    most: Number = Scalar(100.0)
    bounded: bool = False
    rank: int = 0


def _lower_logit_scale(b, x, args: LogitScaleArgs):
    module = add_number(b, "scale", args.init, args.rank)
    attrs = LogitScaleAttrs(args.most if args.bounded else None)
    return b.node("logit_scale", {"x": x}, attrs, module=module)


LOGIT_SCALE_STEP = StepKind(
    "logit_scale", LOGIT_SCALE.doc, LogitScaleArgs, _lower_logit_scale, roles={"scale": ""}
)


class LogitBiasArgs(Args):
    """Arguments of `logit_bias`: what it starts as, and its dimensions in the checkpoint."""

    init: Number = Scalar(0.0)
    rank: int = 0


def _lower_logit_bias(b, x, args: LogitBiasArgs):
    return b.node("logit_bias", {"x": x}, module=add_number(b, "bias", args.init, args.rank))


LOGIT_BIAS_STEP = StepKind(
    "logit_bias", LOGIT_BIAS.doc, LogitBiasArgs, _lower_logit_bias, roles={"bias": ""}
)
