"""Views of a tensor: dimensions merged and split, sequences cut and filled up, values side by
side."""

from dataclasses import dataclass
from math import prod

from vlmspec.compiler.emit.expr import call, method, slice_text
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.registry import Op, Operands, ShapeError, StepKind


@dataclass(frozen=True, slots=True)
class FlattenAttrs:
    """The first and the last of the dimensions that become one."""

    start: int
    end: int


def _infer_flatten(ops: Operands):
    x = ops.tensor("x")
    start, end = (i % len(x.shape) for i in (ops.attrs.start, ops.attrs.end))
    merged = prod(x.shape[start : end + 1], start=Dim.const(1))
    return (x.with_shape(*x.shape[:start], merged, *x.shape[end + 1 :]),)


FLATTEN = Op(
    "flatten",
    "Neighbouring dimensions as one.",
    infer=_infer_flatten,
    emit=lambda node, scope: method(
        scope.use(node["x"]), "flatten", str(node.attrs.start), str(node.attrs.end)
    ),
    attrs=FlattenAttrs,
    results=("x",),
)


class FlattenArgs(Args):
    """Arguments of `flatten`: the first and the last dimension, from 0, or counted from the last by
    negative numbers."""

    start: int
    end: int


FLATTEN_STEP = StepKind(
    "flatten",
    FLATTEN.doc,
    FlattenArgs,
    lambda b, x, args: b.node("flatten", {"x": x}, FlattenAttrs(args.start, args.end)),
)


@dataclass(frozen=True, slots=True)
class UnflattenAttrs:
    """Which dimension is split, and the extents after the first."""

    dim: int
    sizes: tuple[Dim, ...] = ()


def _infer_unflatten(ops: Operands):
    x, dim = ops.tensor("x"), ops.attrs.dim % len(ops.tensor("x").shape)
    if "like" in ops.types:
        pieces = ops.tensor("like").shape
        ops.require_same(x.shape[dim], prod(pieces, start=Dim.const(1)), "extents differ")
    else:
        inner = prod(ops.attrs.sizes, start=Dim.const(1))
        pieces = (x.shape[dim] // inner, *ops.attrs.sizes)
    return (x.with_shape(*x.shape[:dim], *pieces, *x.shape[dim + 1 :]),)


def _emit_unflatten(node, scope):
    if node.get("like") is not None:
        pieces = f"{scope.name(node['like'])}.shape"
    else:
        pieces = f"(-1, {', '.join(scope.dim(size) for size in node.attrs.sizes)})"
    return method(scope.use(node["x"]), "unflatten", str(node.attrs.dim), pieces)


UNFLATTEN = Op(
    "unflatten",
    "One dimension as several, the last of them the fastest.",
    infer=_infer_unflatten,
    emit=_emit_unflatten,
    attrs=UnflattenAttrs,
    results=("x",),
)


class UnflattenArgs(Args):
    """Arguments of `unflatten`: the dimension, and its new extents after the first, or a value
    `like` whose shape it is."""

    dim: int
    sizes: tuple[Size, ...] = ()
    like: str | None = None


def _lower_unflatten(b, x, args: UnflattenArgs):
    if bool(args.sizes) == (args.like is not None):
        b.fail("VS102", "`unflatten` needs either `sizes` or `like`")
    like = b.value(args.like) if args.like is not None else None
    return b.node("unflatten", {"x": x, "like": like}, UnflattenAttrs(args.dim, args.sizes))


UNFLATTEN_STEP = StepKind("unflatten", UNFLATTEN.doc, UnflattenArgs, _lower_unflatten)


@dataclass(frozen=True, slots=True)
class LengthAttrs:
    """How many vectors a sequence has afterwards."""

    count: Dim


def _infer_length(ops: Operands):
    x = ops.tensor("x")
    return (x.with_shape(*x.shape[:-2], ops.attrs.count, x.width),)


KEEP_TOKENS = Op(
    "keep_tokens",
    "The first vectors of each sequence.",
    infer=_infer_length,
    emit=lambda node, scope: scope.atom(
        f"{scope.name(node['x'])}[..., {slice_text('', scope.dim(node.attrs.count))}, :]"
    ),
    attrs=LengthAttrs,
    results=("x",),
)
PAD_TOKENS = Op(
    "pad_tokens",
    "Each sequence with zeros after its last vector.",
    infer=_infer_length,
    emit=lambda node, scope: call(
        "F.pad",
        scope.name(node["x"]),
        f"(0, 0, 0, {scope.dim(node.attrs.count)} - {scope.name(node['x'])}.shape[-2])",
    ),
    attrs=LengthAttrs,
    results=("x",),
)


class LengthArgs(Args):
    """Arguments of a step that sets the length of sequences."""

    count: Size


def _length_step(op: Op) -> StepKind:
    def lower(b, x, args: LengthArgs):
        return b.node(op.name, {"x": x}, LengthAttrs(args.count))

    return StepKind(op.name, op.doc, LengthArgs, lower, "count")


KEEP_TOKENS_STEP = _length_step(KEEP_TOKENS)
PAD_TOKENS_STEP = _length_step(PAD_TOKENS)


@dataclass(frozen=True, slots=True)
class ConcatAttrs:
    """The dimension along which values stand side by side."""

    dim: int = -1


def _infer_concat(ops: Operands):
    (_, x), *others = ((role, ops.tensor(role)) for role in ops.types)
    dim = ops.attrs.dim % len(x.shape)
    extent = x.shape[dim]
    for _, other in others:
        if len(other.shape) != len(x.shape):
            raise ShapeError(f"values side by side have one number of dimensions: {x}, {other}")
        for i, (a, c) in enumerate(zip(x.shape, other.shape, strict=True)):
            if i != dim:
                ops.require_same(a, c, "values side by side differ in another dimension")
        extent = extent + other.shape[dim]
    return (x.with_shape(*x.shape[:dim], extent, *x.shape[dim + 1 :]),)


CONCAT = Op(
    "concat",
    "Values side by side along one dimension.",
    infer=_infer_concat,
    emit=lambda node, scope: call(
        "torch.cat",
        f"[{', '.join(scope.use(v).flat() for _, v in node.inputs)}]",
        dim=str(node.attrs.dim),
    ),
    attrs=ConcatAttrs,
    results=("x",),
    inline=False,
)


class ConcatArgs(Args):
    """Arguments of `concat`: the named values that stand after the running one, and the
    dimension."""

    values: tuple[str, ...]
    dim: int = -1


def _lower_concat(b, x, args: ConcatArgs):
    others = {f"y_{i}": b.value(name) for i, name in enumerate(args.values)}
    return b.node("concat", {"x": x, **others}, ConcatAttrs(args.dim))


CONCAT_STEP = StepKind("concat", CONCAT.doc, ConcatArgs, _lower_concat, "values")
