"""Attention within maps [images, rows, columns, channels]: windows, offsets along each axis."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.attention import AttentionAttrs, HeadsAttrs, check_divides
from vlmspec.compiler.ops.embed import ParameterAttrs
from vlmspec.compiler.ops.linear import SplitAttrs, add_linear
from vlmspec.compiler.ops.maps import require_map
from vlmspec.compiler.ops.registry import Op, Operands, StepKind
from vlmspec.compiler.ops.shape import FlattenAttrs, UnflattenAttrs


@dataclass(frozen=True, slots=True)
class WindowAttrs:
    """Side of a window."""

    side: Dim


def _infer_windows(ops: Operands):
    x, side = require_map(ops), ops.attrs.side
    images, rows, columns, width = x.shape
    count = images * ((rows + side - 1) // side) * ((columns + side - 1) // side)
    return (x.with_shape(count, side, side, width),)


WINDOWS = Op(
    "windows",
    "A map cut into square windows, filled up with zeros where they reach beyond it.",
    infer=_infer_windows,
    emit=lambda node, scope: call(
        scope.helper("cut_windows"), scope.use(node["x"]), scope.dim(node.attrs.side)
    ),
    attrs=WindowAttrs,
    results=("h",),
)
JOIN_WINDOWS = Op(
    "join_windows",
    "Windows put back where the map `like` had them, without what reaches beyond it.",
    infer=lambda ops: (require_map(ops, "like").with_width(require_map(ops).width),),
    emit=lambda node, scope: call(
        scope.helper("join_windows"),
        scope.use(node["x"]),
        f"{scope.name(node['like'])}.shape[1]",
        f"{scope.name(node['like'])}.shape[2]",
    ),
    results=("h",),
)


def _infer_axis_bias(ops: Operands):
    q, rows, columns = (ops.tensor(role) for role in ("q", "rows", "columns"))
    for table in (rows, columns):
        ops.require_same(table.width, q.width, "heads and tables of positions differ in width")
    batch, tokens, heads, _ = q.shape
    return (TensorType((batch, heads, tokens, tokens)),)


AXIS_BIAS = Op(
    "axis_bias",
    "Scores of the offsets between queries and keys along each axis (Li et al., MViTv2, 2022).",
    infer=_infer_axis_bias,
    emit=lambda node, scope: call(
        scope.helper("axis_bias"), *(scope.use(node[r]) for r in ("q", "rows", "columns"))
    ),
    results=("bias",),
    inline=False,
)


class MapAttentionArgs(Args):
    """Arguments of `map_attention`; without `window` the whole map is one."""

    num_heads: Size
    window: Size | None = None
    bias: bool = True


def _lower_map_attention(b, x, args: MapAttentionArgs):
    width = x.type.width
    check_divides(b, width, args.num_heads)
    head_dim = width // args.num_heads
    h = x
    if args.window is not None:
        h = b.node("windows", {"x": x}, WindowAttrs(args.window))
    _, rows, columns, _ = h.type.shape
    h = b.node("flatten", {"x": h}, FlattenAttrs(1, 2))
    qkv = add_linear(b, h, width * 3, bias=args.bias, role="qkv", name="qkv")
    pieces = b.node("split", {"x": qkv}, SplitAttrs((width,) * 3), hints=(*"qkv",))
    attrs = HeadsAttrs(args.num_heads, head_dim)
    heads = {
        role: b.node("split_heads", {"x": piece}, attrs, hints=(role,))
        for role, piece in zip("qkv", pieces, strict=True)
    }
    tables = {
        axis: _offset_table(b, axis, extent * 2 - 1, head_dim)
        for axis, extent in (("rows", rows), ("columns", columns))
    }
    bias = b.node("axis_bias", {"q": heads["q"], **tables})
    h = b.node("attention", {**heads, "mask": bias}, AttentionAttrs(head_dim))
    h = b.node("merge_heads", {"x": h})
    h = add_linear(b, h, width, bias=True, role="out", name="out")
    h = b.node("unflatten", {"x": h}, UnflattenAttrs(1, (columns,)), hints=("h",))
    if args.window is not None:
        h = b.node("join_windows", {"x": h, "like": x})
    return h


def _offset_table(b, axis: str, rows: Dim, width: Dim):
    """A learned vector for each offset along an axis."""
    shape, name = (rows, width), f"{axis}_offsets"
    param = Param("", shape, (b.weights.key(axis),))
    b.graph.add_module(Module(name, "parameter", ParameterAttrs(shape), (param,), b.span))
    return b.node("parameter", {}, module=name)


MAP_ATTENTION_STEP = StepKind(
    "map_attention",
    "Multi-head attention within the windows of a map, with learned scores of offsets.",
    MapAttentionArgs,
    _lower_map_attention,
    roles={"qkv": "qkv", "out": "proj", "rows": "rel_pos_h", "columns": "rel_pos_w"},
    module="attention",
    composite=True,
)
