"""Norms over the last dimension, and the residual addition that a norm reads."""

from dataclasses import dataclass
from typing import Literal

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar
from vlmspec.compiler.ops.args import Args, Number
from vlmspec.compiler.ops.registry import ModuleKind, Op, Operands, StepKind


@dataclass(frozen=True, slots=True)
class NormAttrs:
    """Width and epsilon of a norm."""

    width: Dim
    eps: Scalar


def _layer_norm_shapes(attrs: NormAttrs):
    return {"weight": (attrs.width,), "bias": (attrs.width,)}


def _rms_norm_shapes(attrs: NormAttrs):
    return {"weight": (attrs.width,)}


def _constructor(cls: str):
    def construct(module, scope):
        width = scope.dim(module.attrs.width)
        return call(cls, width, eps=scope.scalar(module.attrs.eps))

    return construct


LAYER_NORM_MODULE = ModuleKind(
    "layer_norm", NormAttrs, _layer_norm_shapes, _constructor("nn.LayerNorm")
)
RMS_NORM_MODULE = ModuleKind("rms_norm", NormAttrs, _rms_norm_shapes, _constructor("nn.RMSNorm"))


def _infer_norm(ops: Operands):
    return (ops.require_width("x", ops.state.attrs.width, f"the norm `{ops.state.name}`"),)


def _emit_norm(node, scope):
    return call(scope.module(node), scope.use(node["x"]))


def _norm_flops(per_element: int):
    def flops(ops: Operands) -> Dim:
        total = Dim.const(per_element)
        for dim in ops.tensor("x").shape:
            total = total * dim
        return total

    return flops


LAYER_NORM = Op(
    "layer_norm",
    "Layer norm (Ba et al., 2016).",
    infer=_infer_norm,
    emit=_emit_norm,
    module_kind="layer_norm",
    flops=_norm_flops(7),
)
RMS_NORM = Op(
    "rms_norm",
    "Root-mean-square norm (Zhang and Sennrich, 2019), in at least float32.",
    infer=_infer_norm,
    emit=_emit_norm,
    module_kind="rms_norm",
    flops=_norm_flops(4),
)


NORM_SHAPES = {"layer_norm": _layer_norm_shapes, "rms_norm": _rms_norm_shapes}


def add_norm(b, kind: str, x, eps: Scalar, role: str, name: str = "", width: Dim | None = None):
    """Declare a norm under `role`'s checkpoint name, and apply it; the module is called `name`,
    else as the role. `width` is another name of x's."""
    attrs = NormAttrs(x.type.width if width is None else width, eps)
    module = b.module(kind, attrs, role, NORM_SHAPES[kind](attrs), name or role)
    return b.node(kind, {"x": x}, module=module)


class NormArgs(Args):
    """Arguments of a norm."""

    eps: Number = Scalar(1e-5)


def _norm_step(kind: str, doc: str) -> StepKind:
    def lower(b, x, args: NormArgs):
        return add_norm(b, kind, x, args.eps, "norm", b.name)

    return StepKind(kind, doc, NormArgs, lower, "eps", {"norm": ""}, ("connector",))


LAYER_NORM_STEP = _norm_step("layer_norm", LAYER_NORM.doc)
RMS_NORM_STEP = _norm_step("rms_norm", RMS_NORM.doc)


class AnyNormArgs(NormArgs):
    """Arguments of `norm`."""

    kind: Literal["layer_norm", "rms_norm"]


NORM_STEP = StepKind(
    "norm",
    "The norm that `kind` names, for parts that a checkpoint has in several forms.",
    AnyNormArgs,
    lambda b, x, args: add_norm(b, args.kind, x, args.eps, "norm", b.name),
    roles={"norm": ""},
    component=("connector",),
)


def _infer_add_norm(ops: Operands):
    x = ops.require_width("x", ops.state.attrs.width, f"the norm `{ops.state.name}`")
    return x, x


def _emit_add_norm(function: str, params: tuple[str, ...]):
    def emit(node, scope):
        module = scope.module(node)
        state = [f"{module}.{p}" for p in params]
        x, y = scope.use(node["x"]), scope.use(node["y"])
        return call(scope.helper(function), x, y, *state, f"{module}.eps")

    return emit


ADD_RMS_NORM = Op(
    "add_rms_norm",
    "Residual addition and the RMS norm of the sum; gives both.",
    infer=_infer_add_norm,
    emit=_emit_add_norm("add_rms_norm", ("weight",)),
    module_kind="rms_norm",
    results=("x", "h"),
    inline=False,
)
ADD_LAYER_NORM = Op(
    "add_layer_norm",
    "Residual addition and the layer norm of the sum; gives both.",
    infer=_infer_add_norm,
    emit=_emit_add_norm("add_layer_norm", ("weight", "bias")),
    module_kind="layer_norm",
    results=("x", "h"),
    inline=False,
)
