"""Attention to a memory: encoded images or text beside the stream, which may be absent and is
projected once."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Number, Size
from vlmspec.compiler.ops.attention import (
    AttentionAttrs,
    HeadsAttrs,
    infer_attention,
    model_input,
)
from vlmspec.compiler.ops.linear import add_linear
from vlmspec.compiler.ops.norm import RMS_NORM_MODULE, NormAttrs
from vlmspec.compiler.ops.queries import PaddingMaskAttrs
from vlmspec.compiler.ops.registry import Op, Operands, StepKind
from vlmspec.compiler.ops.shape import FlattenAttrs


@dataclass(frozen=True, slots=True)
class GivenAttrs:
    """Name of an input that may be None."""

    name: str


def _infer_given(ops: Operands):
    x = ops.tensor("x")
    return (TensorType(x.shape, x.dtype),)


GIVEN = Op(
    "given",
    "A value that may be None, where it is not; what is made of it exists only there.",
    infer=_infer_given,
    emit=lambda node, scope: scope.use(node["x"]),
    attrs=GivenAttrs,
    bears=frozenset({"x"}),
    gives_optional=lambda attrs: frozenset({attrs.name}),
)


def given(b, value):
    """A value of this graph without its being None; readers stand under one `if`."""
    inner = b.graph.own(value)
    return b.node("given", {"x": inner}, GivenAttrs(inner.name)) if inner.type.nullable else inner


def _emit_skip(node, scope):
    test = f"{scope.use(node['memory']).flat()} is None"
    if node.get("cache") is not None:
        cache = scope.use(node["cache"]).flat()
        test += f" and ({cache} is None or {cache}.memory is None)"
    scope.block(f"if {test}:")
    scope.block(f"    return {scope.use(node['x']).flat()}")


SKIP_WITHOUT = Op(
    "skip_without",
    "The layer passes its input on where it has no memory to attend to.",
    infer=lambda ops: (),
    emit=_emit_skip,
    results=(),
    bears=frozenset({"memory"}),
    effect=True,
)


class SkipArgs(Args):
    """Arguments of `skip_without`."""

    memory: str


def _lower_skip(b, x, args: SkipArgs):
    memory = b.graph.own(b.value(args.memory))
    if memory.type.nullable:
        operands = {"x": x, "memory": memory, "cache": model_input(b.component, "cache")}
        b.graph.node("skip_without", operands, span=b.span)
    return x


SKIP_STEP = StepKind("skip_without", SKIP_WITHOUT.doc, SkipArgs, _lower_skip, "memory")


@dataclass(frozen=True, slots=True)
class MemoryMaskAttrs:
    """How many tokens of the memory an entry of the mask stands for."""

    tokens: Dim


def _infer_memory_mask(ops: Operands):
    x, mask = ops.tensor("x"), ops.tensor("mask")
    batch, tokens = x.shape[:2]
    keys = ops.attrs.tokens
    for dim in mask.shape[2:]:
        keys = keys * dim
    return (TensorType((batch, Dim.const(1), tokens, keys), "bool", nullable=mask.nullable),)


MEMORY_MASK = Op(
    "memory_mask",
    "Which tokens of the memory each token may see, from a mask of its entries; a token that "
    "sees none is not masked.",
    infer=_infer_memory_mask,
    emit=lambda node, scope: call(
        scope.helper("expand_memory_mask"),
        scope.use(node["x"]),
        scope.use(node["mask"]),
        scope.dim(node.attrs.tokens),
    ),
    attrs=MemoryMaskAttrs,
    bears=frozenset({"mask"}),
    results=("memory_mask",),
    inline=False,
)


def _infer_seeing(ops: Operands):
    x, mask = ops.tensor("x"), ops.tensor("mask")
    return (TensorType(x.shape[:2], "bool", nullable=mask.nullable),)


SEEING_ROWS = Op(
    "seeing_rows",
    "Which tokens may see anything of the memory.",
    infer=_infer_seeing,
    emit=lambda node, scope: call(
        scope.helper("seeing_rows"), scope.use(node["x"]), scope.use(node["mask"])
    ),
    bears=frozenset({"mask"}),
    results=("seeing",),
    inline=False,
)


class MemoryMaskArgs(Args):
    """Arguments of `memory_mask`: a value that says which entries each token may see, and how many
    tokens an entry has."""

    mask: str
    tokens: Size = Dim.const(1)


class SeeingArgs(Args):
    """Arguments of `seeing_rows`: a value that says which entries of the memory each token may
    see."""

    mask: str


MEMORY_MASK_STEP = StepKind(
    "memory_mask",
    MEMORY_MASK.doc,
    MemoryMaskArgs,
    lambda b, x, args: b.node(
        "memory_mask", {"x": x, "mask": b.value(args.mask)}, MemoryMaskAttrs(args.tokens)
    ),
)
SEEING_ROWS_STEP = StepKind(
    "seeing_rows",
    SEEING_ROWS.doc,
    SeeingArgs,
    lambda b, x, args: b.node("seeing_rows", {"x": x, "mask": b.value(args.mask)}),
    "mask",
)


def _emit_memory_attention(node, scope):
    attrs = node.attrs
    scale = [scope.scalar(attrs.scale)] if attrs.scale else []
    operands = [
        "None" if (value := node.get(role)) is None else scope.use(value)
        for role in ("q", "k", "v", "mask", "cache")
    ]
    return call(scope.helper("memory_attention"), *operands, *scale)


def _memory_state(node, render):
    """A state without room for keys of its own: it only keeps the memory's."""
    return call("KVCache", "batch_size", "0", "0", "0", dtype="dtype", device="device")


MEMORY_ATTENTION = Op(
    "memory_attention",
    "Attention to a memory whose keys and values are kept for the steps of decoding.",
    infer=infer_attention,
    emit=_emit_memory_attention,
    attrs=AttentionAttrs,
    bears=frozenset({"k", "v", "mask"}),
    inline=False,
    state=_memory_state,
)


class CrossAttentionArgs(Args):
    """Arguments of `cross_attention`.

    `memory` and `mask` are named values: what is attended to, and which of it each query may see;
    so is `padding`, 1 for what every query may see and 0 for padding. `qk_norm` is the epsilon of
    an RMS norm of each head of the queries and keys. Without `q_proj` the stream
    itself is queries.
    """

    memory: str
    num_heads: Size
    num_kv_heads: Size | None = None
    head_dim: Size | None = None
    bias: bool = False
    out_bias: bool | None = None
    q_proj: bool = True
    mask: str | None = None
    padding: str | None = None
    qk_norm: Number | None = None
    scale: Number | None = None


def _heads(b, x, role: str, count: Dim, head_dim: Dim, width: Dim, args: CrossAttentionArgs):
    """Project a value to heads; queries and keys are normalised where that is asked for."""
    whole = args.head_dim is None and count == args.num_heads
    out = width if whole else count * head_dim
    h = x
    if role != "q" or args.q_proj:
        h = add_linear(b, x, out, bias=args.bias, role=role, name=role)
    h = b.node("split_heads", {"x": h}, HeadsAttrs(count, head_dim), hints=(role,))
    if args.qk_norm is None or role == "v":
        return h
    attrs = NormAttrs(head_dim, args.qk_norm)
    name = f"{role}_norm"
    module = b.module("rms_norm", attrs, name, RMS_NORM_MODULE.shapes(attrs), name)
    return b.node("rms_norm", {"x": h}, module=module, hints=(role,))


def _padding(b, name: str):
    """The mask of a memory's padding, made once per component."""
    key = ("padding_mask", value := b.value(name))
    if key not in b.component.ambient:
        attrs = PaddingMaskAttrs(Dim.const(0))
        (b.component.ambient[key],) = b.component.node("padding_mask", {"mask": value}, attrs)
    return b.component.ambient[key]


def _lower_cross_attention(b, x, args: CrossAttentionArgs):
    width = x.type.width
    head_dim = width // args.num_heads if args.head_dim is None else args.head_dim
    kv_heads = args.num_heads if args.num_kv_heads is None else args.num_kv_heads
    memory = given(b, b.value(args.memory))
    absent = bool(memory.type.optional)
    operands = {"q": _heads(b, x, "q", args.num_heads, head_dim, width, args)}
    if len(memory.type.shape) > 3:
        memory = b.node("flatten", {"x": memory}, FlattenAttrs(1, -2), hints=("memory",))
    for role in ("k", "v"):
        operands[role] = _heads(b, memory, role, kv_heads, head_dim, width, args)
    if args.mask is not None:
        operands["mask"] = b.value(args.mask)
    elif args.padding is not None:
        operands["mask"] = _padding(b, args.padding)
    if absent:
        operands["cache"] = model_input(b.component, "cache")
    attrs = AttentionAttrs(head_dim, False, args.scale)
    h = b.node("memory_attention" if absent else "attention", operands, attrs)
    h = b.node("merge_heads", {"x": h})
    bias = args.bias if args.out_bias is None else args.out_bias
    inner = width if args.head_dim is None else None
    return add_linear(b, h, width, bias=bias, role="out", name="out", width=inner)


CROSS_ATTENTION_STEP = StepKind(
    "cross_attention",
    "Multi-head attention to a memory, with its projections.",
    CrossAttentionArgs,
    _lower_cross_attention,
    roles={
        "q": "q_proj",
        "k": "k_proj",
        "v": "v_proj",
        "out": "o_proj",
        "q_norm": "q_norm",
        "k_norm": "k_norm",
    },
    composite=True,
)
