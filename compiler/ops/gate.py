"""Learned scalars and masks on a branch."""

from dataclasses import dataclass
from typing import Literal

from vlmspec.compiler.emit.expr import Binary, atom, call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ops.args import Args, NoArgs
from vlmspec.compiler.ops.embed import add_parameter
from vlmspec.compiler.ops.registry import Op, Operands, StepKind, same_as


@dataclass(frozen=True, slots=True)
class GateAttrs:
    """What the learned scalar goes through; `none` for nothing."""

    act: str


def _emit_gate(node, scope):
    gate = atom(scope.module(node))
    if node.attrs.act != "none":
        gate = call(f"torch.{node.attrs.act}", gate)
    return Binary("*", gate, scope.use(node["x"]))


GATE = Op(
    "gate",
    "Product with a learned scalar, or with a function of it (Alayrac et al., 2022).",
    infer=same_as("x"),
    emit=_emit_gate,
    attrs=GateAttrs,
    module_kind="parameter",
)


class GateArgs(Args):
    """Arguments of `gate`."""

    act: Literal["tanh", "sigmoid", "none"] = "tanh"


def _lower_gate(b, x, args: GateArgs):
    module = add_parameter(b, (Dim.const(1),), "gate")
    return b.node("gate", {"x": x}, GateAttrs(args.act), module=module)


GATE_STEP = StepKind("gate", GATE.doc, GateArgs, _lower_gate, "act", {"gate": ""})


def _infer_shift(ops: Operands):
    return (ops.require_width("x", ops.state.attrs.shape[-1], "the added vector"),)


SHIFT = Op(
    "shift",
    "A learned vector added to every vector.",
    infer=_infer_shift,
    emit=lambda node, scope: Binary("+", scope.use(node["x"]), atom(scope.module(node))),
    module_kind="parameter",
)
SHIFT_STEP = StepKind(
    "shift",
    SHIFT.doc,
    NoArgs,
    lambda b, x, args: b.node("shift", {"x": x}, module=add_parameter(b, (x.type.width,), "shift")),
    roles={"shift": ""},
)


def _infer_mask_rows(ops: Operands):
    x, rows = ops.tensor("x"), ops.tensor("rows")
    for a, c in zip(x.shape[:-1], rows.shape, strict=True):
        ops.require_same(a, c, "the mask has other rows than the tokens")
    return (x,)


MASK_ROWS = Op(
    "mask_rows",
    "Zero vectors at the tokens that a mask leaves out; all stay where there is no mask.",
    infer=_infer_mask_rows,
    emit=lambda node, scope: call(
        scope.helper("mask_rows"), scope.use(node["x"]), scope.use(node["rows"])
    ),
    bears=frozenset({"rows"}),
)


class MaskRowsArgs(Args):
    """Arguments of `mask_rows`: a named value, which tokens stay [B, T]."""

    rows: str


MASK_ROWS_STEP = StepKind(
    "mask_rows",
    MASK_ROWS.doc,
    MaskRowsArgs,
    lambda b, x, args: b.node("mask_rows", {"x": x, "rows": b.value(args.rows)}),
    "rows",
)
