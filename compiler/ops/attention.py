"""Self-attention: projections, rotary positions, masks, the attention itself."""

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Literal

from vlmspec.compiler.emit.expr import call, method
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar, StateType, TensorType
from vlmspec.compiler.ops.args import Args, Number, Size
from vlmspec.compiler.ops.linear import SplitAttrs, add_linear
from vlmspec.compiler.ops.norm import add_norm
from vlmspec.compiler.ops.registry import Op, Operands, ShapeError, StepKind


@dataclass(frozen=True, slots=True)
class HeadsAttrs:
    """Number and width of heads."""

    num_heads: Dim
    head_dim: Dim


def _infer_split_heads(ops: Operands):
    heads, width = ops.attrs.num_heads, ops.attrs.head_dim
    x = ops.require_width("x", heads * width, "the split into heads")
    return (x.with_shape(*x.shape[:-1], heads, width),)


def _emit_split_heads(node, scope):
    heads = scope.dim(node.attrs.num_heads)
    scope.comment("[B, T, H, E]")
    return method(scope.use(node["x"]), "unflatten", "-1", f"({heads}, -1)")


SPLIT_HEADS = Op(
    "split_heads",
    "Vectors as heads: [B, T, H E] to [B, T, H, E].",
    infer=_infer_split_heads,
    emit=_emit_split_heads,
    attrs=HeadsAttrs,
    inline=False,
)


def _infer_merge_heads(ops: Operands):
    x = ops.tensor("x")
    return (x.with_shape(*x.shape[:-2], x.shape[-2] * x.shape[-1]),)


MERGE_HEADS = Op(
    "merge_heads",
    "Heads side by side: [B, T, H, E] to [B, T, H E].",
    infer=_infer_merge_heads,
    emit=lambda node, scope: method(scope.use(node["x"]), "flatten", "-2"),
)

INT_TOKENS = TensorType((Dim.sym("batch"), Dim.sym("tokens")), "int")
POSITIONS = Op(
    "token_positions",
    "Positions of the new tokens: as given, else counted on from the cache.",
    infer=lambda ops: (INT_TOKENS,),
    emit=lambda node, scope: call(
        scope.helper("token_positions"),
        scope.use(node["x"]),
        scope.use(node["position_ids"]),
        scope.use(node["past"]),
    ),
    results=("positions",),
    inline=False,
)
PAST = Op(
    "cached_tokens",
    "How many tokens the cache holds.",
    infer=lambda ops: (StateType("host_int"),),
    emit=lambda node, scope: scope.atom(
        "0 if {0} is None else {0}.length".format(scope.use(node["cache"]).flat())
    ),
    results=("past",),
    inline=False,
)


@dataclass(frozen=True, slots=True)
class MaskAttrs:
    """How many keys a query sees, itself included; all before it if not given."""

    window: Dim | None = None


def _emit_causal_mask(node, scope):
    operands = [scope.use(node[r]) for r in ("x", "attention_mask")]
    operands.append(scope.atom("0") if node.get("past") is None else scope.use(node["past"]))
    window = node.attrs.window
    options = {} if window is None else {"window": scope.dim(window)}
    return call(scope.helper("causal_mask"), *operands, **options)


CAUSAL_MASK = Op(
    "causal_mask",
    "Which keys each query may see, or None where plain causality says it all.",
    infer=lambda ops: (
        TensorType(
            (Dim.sym("batch"), Dim.const(1), Dim.sym("tokens"), Dim.sym("keys")),
            "bool",
            nullable=True,
        ),
    ),
    emit=_emit_causal_mask,
    attrs=MaskAttrs,
    results=("mask",),
    inline=False,
)


def _emit_advance(node, scope):
    cache, x = scope.use(node["cache"]).flat(), scope.name(node["x"])
    scope.block(f"if {cache} is not None:")
    scope.block(f"    {cache}.advance({x}.shape[1])")


ADVANCE = Op(
    "advance_cache",
    "Count the new tokens as cached.",
    infer=lambda ops: (),
    emit=_emit_advance,
    results=(),
    effect=True,
)


@dataclass(frozen=True, slots=True)
class RopeAttrs:
    """Frequencies of a rotary embedding."""

    head_dim: Dim
    theta: Scalar
    type: str = "default"
    factor: Scalar | None = None
    low_freq_factor: Scalar | None = None
    high_freq_factor: Scalar | None = None
    original_max_position: Dim | None = None
    sections: tuple[Dim, ...] = ()


ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position"),
    "axial": (),
    "axial_alternate": (),
}


def _infer_rope_table(ops: Operands):
    positions, sections = ops.tensor("positions"), ops.attrs.sections
    if sections:
        ops.require_same(positions.width, Dim.const(len(sections)), "axes and sections differ")
        half = sum(sections, Dim.const(0))
        ops.require_same(ops.attrs.head_dim, half * 2, "a head and twice the sections differ")
    places = positions.shape[:-1] if sections else positions.shape
    table = TensorType((*places, Dim.const(1), ops.attrs.head_dim))
    return table, table


def _emit_rope_table(node, scope):
    attrs = node.attrs
    function = "rope_frequencies" + ("" if attrs.type == "default" else f"_{attrs.type}")
    given = [scope.scalar(attrs.theta)]
    for name in ROPE_FIELDS[attrs.type]:
        value = getattr(attrs, name)
        given.append(scope.dim(value) if isinstance(value, Dim) else scope.scalar(value))
    x = scope.use(node["x"]).flat()
    positions = scope.use(node["positions"])
    device = f"{positions.flat()}.device"
    frequencies = call(scope.helper(function), scope.dim(attrs.head_dim), *given, device)
    scope.line("frequencies", frequencies)
    if attrs.sections:
        sections = f"({', '.join(scope.dim(d) for d in attrs.sections)})"
        helper = scope.helper("rope_table_axes")
        return call(helper, positions, "frequencies", sections, f"{x}.dtype")
    return call(scope.helper("rope_table"), positions, "frequencies", f"{x}.dtype")


ROPE_TABLE = Op(
    "rope_table",
    "Cosines and sines of the rotary embedding at each position.",
    infer=_infer_rope_table,
    emit=_emit_rope_table,
    attrs=RopeAttrs,
    results=("cos", "sin"),
    inline=False,
)


def _infer_rope(ops: Operands):
    x = ops.tensor("x")
    ops.require_same(x.width, ops.tensor("cos").width, "head and rotary table differ")
    return (x,)


ROPE = Op(
    "rope",
    "Rotate the two halves of each head by position (Su et al., 2021).",
    infer=_infer_rope,
    emit=lambda node, scope: call(
        scope.helper("apply_rope"), *(scope.use(node[r]) for r in ("x", "cos", "sin"))
    ),
    inline=False,
)


def _infer_partial_rope(ops: Operands):
    x, table = ops.tensor("x"), ops.tensor("cos").width
    width, rotated = resolve_int(x.width, ops), resolve_int(table, ops)
    if width and rotated and rotated > width:
        shown = f"{ops.show(table)} against {ops.show(x.width)}"
        raise ShapeError(f"the rotary table is wider than a head: {shown}", dims=(table, x.width))
    return (x,)


PARTIAL_ROPE = Op(
    "partial_rope",
    "Rotate the first dimensions of each head, as many as the table has; the others stay.",
    infer=_infer_partial_rope,
    emit=lambda node, scope: call(
        scope.helper("apply_partial_rope"), *(scope.use(node[r]) for r in ("x", "cos", "sin"))
    ),
    inline=False,
)


@dataclass(frozen=True, slots=True)
class AttentionAttrs:
    """Scale of the scores; head_dim ** -0.5 unless given."""

    head_dim: Dim
    causal: bool = False
    scale: Scalar | None = None


def infer_attention(ops: Operands):
    q, k, v = (ops.tensor(role) for role in "qkv")
    ops.require_same(q.width, k.width, "queries and keys have heads of different widths")
    ops.require_same(k.shape[-2], v.shape[-2], "keys and values have different numbers of heads")
    heads, groups = (resolve_int(d, ops) for d in (q.shape[-2], k.shape[-2]))
    if heads and groups and heads % groups:
        raise ShapeError(
            f"{ops.show(q.shape[-2])} query heads cannot share {ops.show(k.shape[-2])} key heads",
            "`num_heads` must be a multiple of `num_kv_heads`",
            "VS306",
            (q.shape[-2], k.shape[-2]),
        )
    return (q.with_shape(*q.shape[:-1], v.width),)


def resolve_int(dim: Dim, ops: Operands) -> int | None:
    """Value of a dimension, if the sizes determine it."""
    try:
        return dim.value(ops.sizes)  # pyright: ignore[reportArgumentType]
    except KeyError:
        return None


def _flops_attention(ops: Operands) -> Dim:
    q, k = ops.tensor("q"), ops.tensor("k")
    batch, queries, heads, width = q.shape
    return Dim.const(4) * batch * heads * queries * k.shape[1] * width


def _emit_attention(node, scope):
    attrs = node.attrs
    scale = [scope.scalar(attrs.scale)] if attrs.scale else []
    roles = ["q", "k", "v"]
    rotary = ["cos", "sin"] if node.get("cos") else []
    if not attrs.causal and node.get("mask") is not None:
        roles.append("mask")
        return call(scope.helper("masked_attention"), *(scope.use(node[r]) for r in roles), *scale)
    if not attrs.causal:
        return call(scope.helper("attention"), *(scope.use(node[r]) for r in roles), *scale)
    if node.get("cache") is None:
        operands = [scope.use(node[r]) for r in [*roles, "mask"]]
        return call(scope.helper("causal_self_attention"), *operands, *scale)
    name = "rope_causal_attention" if rotary else "causal_attention"
    operands = [scope.use(node[r]) for r in [*roles, *rotary, "mask", "cache"]]
    return call(scope.helper(name), *operands, *scale)


def _attention_state(node, render):
    heads, width = (render(d) for d in node["k"].type.shape[-2:])
    sizes = ("batch_size", heads, "max_length", width)
    return call("KVCache", *sizes, dtype="dtype", device="device")


ATTENTION = Op(
    "attention",
    "Scaled dot-product attention; causal with a mask and a cache, or over everything. "
    "With `cos` and `sin`, queries and keys are rotated first.",
    infer=infer_attention,
    emit=_emit_attention,
    attrs=AttentionAttrs,
    inline=False,
    flops=_flops_attention,
    state=_attention_state,
)


class RopeArgs(Args):
    """Arguments of `rope`; with `positions` the name of a value, else those of the tokens.

    Positions on several axes divide the frequencies among them, by `sections` or, for two, by an
    axial type. Only the first
    `rotary_dim` dimensions of a head are rotated, or that `rotary_fraction` of them, if given.
    """

    theta: Number = Scalar(10000.0)
    type: Literal["default", "linear", "llama3", "axial", "axial_alternate"] = "default"
    positions: str | None = None
    sections: tuple[Size, ...] = ()
    factor: Number | None = None
    low_freq_factor: Number | None = None
    high_freq_factor: Number | None = None
    original_max_position: Size | None = None
    rotary_dim: Size | None = None
    rotary_fraction: float | None = None


class AttentionArgs(Args):
    """Arguments of `attention`.

    `mask` is `none`, `causal`, or a named value: which keys each query may see. `qk_norm` says over
    what queries and keys are normalised, by the norm `qk_norm_kind`: nothing, each head, or the
    full width. Of a `fused` projection, `qkv_order` says what stands together: all queries, then
    keys, then values (`stacked`), or the queries, key and value of each key head (`by-head`).
    `position_bias` is a named value that is added to the scores, what the mask forbids included.
    """

    num_heads: Size
    num_kv_heads: Size | None = None
    head_dim: Size | None = None
    bias: bool = False
    out_bias: bool | None = None
    sub_norm: Number | None = None
    fused: bool = False
    qkv_order: Literal["stacked", "by-head"] = "stacked"
    qk_norm: Literal["none", "head", "width"] = "none"
    qk_norm_kind: Literal["rms_norm", "layer_norm"] = "rms_norm"
    qk_eps: Number = Scalar(1e-6)
    mask: str = "none"
    window: int | None = None
    rope: RopeArgs | None = None
    scale: Number | None = None
    position_bias: str | None = None
    segments: str | None = None


def check_divides(b, width: Dim, heads: Dim) -> None:
    sizes = b.program.sizes
    try:
        total, count = width.value(sizes), heads.value(sizes)
    except KeyError:
        return
    if count < 1 or total % count:
        b.program.fail(
            "VS304",
            f"{total} channels do not divide into {count} heads",
            b.span,
            "choose `num_heads` as a divisor of the width, or give `head_dim`",
            (width, heads),
        )


def _normed(b, h, role: str, over: str, args: AttentionArgs):
    """Queries or keys, normalised where that is done over heads, or over the `width`; values
    stay."""
    if role == "v" or over != args.qk_norm:
        return h
    return add_norm(b, args.qk_norm_kind, h, args.qk_eps, f"{role}_norm")


def _heads_by_head(b, x, sizes: dict, counts: dict, args: AttentionArgs, head_dim: Dim) -> dict:
    """Queries, keys and values of a projection that has those of each key head side by side."""
    total = sum(sizes.values(), Dim.const(0))
    qkv = add_linear(b, x, total, bias=args.bias, role="qkv", name="qkv")
    shared = counts["q"] // counts["k"]
    if counts["q"] == counts["k"]:
        shared = Dim.const(1)
    pieces = (shared * head_dim, head_dim, head_dim)
    attrs = HeadsAttrs(counts["k"], sum(pieces, Dim.const(0)))
    heads = b.node("split_heads", {"x": qkv}, attrs)
    q, k, v = b.node("split", {"x": heads}, SplitAttrs(pieces), hints=(*"qkv",))
    if shared != Dim.const(1):
        q = b.node("merge_heads", {"x": q})
        q = b.node("split_heads", {"x": q}, HeadsAttrs(counts["q"], head_dim), hints=("q",))
    return {"q": q, "k": k, "v": v}


def _heads(b, x, args: AttentionArgs, head_dim: Dim) -> dict:
    """Queries, keys and values as heads, normalised before or after the split into them."""
    width, kv_heads = x.type.width, args.num_kv_heads
    kv_heads = args.num_heads if kv_heads is None else kv_heads
    counts = {"q": args.num_heads, "k": kv_heads, "v": kv_heads}
    whole = {r: args.head_dim is None and count == args.num_heads for r, count in counts.items()}
    sizes = {r: width if whole[r] else count * head_dim for r, count in counts.items()}
    if args.fused and args.qkv_order == "by-head":
        heads = _heads_by_head(b, x, sizes, counts, args, head_dim)
        return {role: _normed(b, h, role, "head", args) for role, h in heads.items()}
    if args.fused:
        total = sum(sizes.values(), Dim.const(0))
        qkv = add_linear(b, x, total, bias=args.bias, role="qkv", name="qkv")
        pieces = b.node("split", {"x": qkv}, SplitAttrs(tuple(sizes.values())), hints=(*"qkv",))
    else:
        pieces = [
            add_linear(b, x, size, bias=args.bias, role=r, name=r) for r, size in sizes.items()
        ]
    heads = {}
    for (role, count), h in zip(counts.items(), pieces, strict=True):
        h = _normed(b, h, role, "width", args)
        h = b.node("split_heads", {"x": h}, HeadsAttrs(count, head_dim), hints=(role,))
        heads[role] = _normed(b, h, role, "head", args)
    return heads


def _rotated(b, x, heads: dict, args: RopeArgs, head_dim: Dim) -> None:
    """Rotate queries and keys, wholly or in part."""
    partial = args.rotary_dim
    if args.rotary_fraction is not None:
        share = Fraction(args.rotary_fraction).limit_denominator(1000)
        partial = head_dim * share.numerator // share.denominator if share != 1 else None
    cos, sin = rope_tables(b, x, head_dim if partial is None else partial, args)
    for role in ("q", "k"):
        operands = {"x": heads[role], "cos": cos, "sin": sin}
        op = "rope" if partial is None else "partial_rope"
        heads[role] = b.node(op, operands, hints=(role,))


def _lower_attention(b, x, args: AttentionArgs):
    width = x.type.width
    if args.head_dim is None:
        check_divides(b, width, args.num_heads)
    head_dim = width // args.num_heads if args.head_dim is None else args.head_dim
    heads = _heads(b, x, args, head_dim)
    if args.rope:
        _rotated(b, x, heads, args.rope, head_dim)
    causal = args.mask == "causal"
    operands = dict(heads)
    if args.position_bias is not None:
        operands["mask"] = b.value(args.position_bias)
        operands |= {"cache": model_input(b.component, "cache")} if causal else {}
    elif causal:
        operands |= causal_operands(b, x, args.window)
    if args.mask not in ("none", "causal"):
        operands["mask"] = b.value(args.mask)
    if args.segments is not None:
        h = b.node("packed_attention", heads | {"segments": b.value(args.segments)})
    else:
        h = b.node("attention", operands, AttentionAttrs(head_dim, causal, args.scale))
    h = b.node("merge_heads", {"x": h})
    inner = width if args.head_dim is None else None
    if args.sub_norm is not None:
        h = add_norm(b, "layer_norm", h, args.sub_norm, "sub_norm", width=inner)
    bias = args.bias if args.out_bias is None else args.out_bias
    return add_linear(b, h, width, bias=bias, role="out", name="out", width=inner)


ATTENTION_STEP = StepKind(
    "attention",
    "Multi-head self-attention with its projections.",
    AttentionArgs,
    _lower_attention,
    roles={
        "q": "q_proj",
        "k": "k_proj",
        "v": "v_proj",
        "out": "o_proj",
        "qkv": "qkv_proj",
        "q_norm": "q_norm",
        "k_norm": "k_norm",
        "sub_norm": "sub_norm",
    },
    composite=True,
)


def cached_tokens(component):
    """The number of cached tokens, computed once per component."""
    if "past" not in component.ambient:
        (past,) = component.node("cached_tokens", {"cache": model_input(component, "cache")})
        component.ambient["past"] = past
    return component.ambient["past"]


def model_input(component, name: str):
    """One of the model's own inputs: `attention_mask`, `position_ids`, `cache` or
    `logits_to_keep`."""
    root = component
    while root.parent is not None:
        root = root.parent
    # Where the ids are `decoder_input_ids`, what goes with them is called likewise.
    full = root.prefix + name if name in ("attention_mask", "position_ids") else name
    if full not in root.ambient:
        keys = TensorType((Dim.sym("batch"), Dim.sym("keys")), "int", nullable=True)
        ids = replace(INT_TOKENS, nullable=True)
        kinds = {"attention_mask": keys, "position_ids": ids, "cache": StateType("cache")}
        root.ambient[full] = root.input(full, kinds.get(name, StateType("host_int")))
    return root.ambient[full]


def causal_operands(b, x, window: int | None = None):
    """The mask of a causal attention, built once per component, and in a decoder the cache."""
    component, key = b.component, ("mask", window)
    if key not in component.ambient:
        operands = {
            "x": component.stream,
            "attention_mask": model_input(component, "attention_mask"),
            "past": cached_tokens(component) if component.decodes else None,
        }
        attrs = MaskAttrs(None if window is None else Dim.const(window))
        (component.ambient[key],) = component.node("causal_mask", operands, attrs)
    cache = {"cache": model_input(component, "cache")} if component.decodes else {}
    return {"mask": component.ambient[key], **cache}


def token_positions(component):
    """Positions of the new tokens, worked out once per component."""
    if "positions" not in component.ambient:
        operands = {
            "x": component.stream,
            "position_ids": model_input(component, "position_ids"),
            "past": cached_tokens(component),
        }
        (component.ambient["positions"],) = component.node("token_positions", operands)
    return component.ambient["positions"]


def rope_tables(b, x, head_dim: Dim, args: RopeArgs):
    """The rotary tables for these frequencies, built once per component."""
    missing = [name for name in ROPE_FIELDS[args.type] if getattr(args, name) is None]
    if missing:
        b.fail("VS102", f"rope type `{args.type}` needs {', '.join(f'`{m}`' for m in missing)}")
    given = {"type": args.type, "theta": args.theta}
    given |= {name: getattr(args, name) for name in ROPE_FIELDS[args.type]}
    head_dim = b.program.named(head_dim)
    halves = (head_dim // 4, head_dim // 4) if args.type.startswith("axial") else ()
    attrs = RopeAttrs(head_dim, sections=args.sections or halves, **given)
    named = None if args.positions is None else b.value(args.positions)
    key = ("rope", named, *(getattr(attrs, f.name) for f in fields(attrs)))
    component = b.component
    if key not in component.ambient:
        positions = named or token_positions(component)
        operands = {"x": component.stream, "positions": positions}
        component.ambient[key] = component.node("rope_table", operands, attrs)
    return component.ambient[key]
