"""Multi-head latent attention: keys and values are made of a narrow latent, which alone is
cached."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar
from vlmspec.compiler.ops.args import Args, Number, Size
from vlmspec.compiler.ops.attention import HeadsAttrs, RopeArgs, causal_operands, rope_tables
from vlmspec.compiler.ops.linear import LinearAttrs, SplitAttrs, add_linear, linear_shapes
from vlmspec.compiler.ops.norm import add_norm
from vlmspec.compiler.ops.registry import Op, Operands, StepKind, same_as

ROTATE_TAIL = Op(
    "rotate_tail",
    "Rotate neighbours of the last dimensions of each head, as many as the table has.",
    infer=same_as("x"),
    emit=lambda node, scope: call(
        scope.helper("rotate_tail"), *(scope.use(node[r]) for r in ("x", "cos", "sin"))
    ),
    inline=False,
)


@dataclass(frozen=True, slots=True)
class LatentAttrs:
    """Dimensions of a value's head, and of a head of the keys that the latent makes; scale of the
    scores."""

    value_dim: Dim
    own_dim: Dim
    scale: Scalar | None = None


def _infer_latent(ops: Operands):
    q, k, attrs = ops.tensor("q"), ops.tensor("k"), ops.attrs
    ops.require_same(q.width, attrs.own_dim + k.width, "queries and keys differ in width")
    ops.require_width("v", ops.state.attrs.in_features, "what makes the keys")
    made = q.shape[-2] * (attrs.own_dim + attrs.value_dim)
    ops.require_same(ops.state.attrs.out_features, made, "keys and values differ in width")
    return (q.with_width(attrs.value_dim),)


def _emit_latent(node, scope):
    operands = [scope.use(node[role]) for role in "qkv"]
    operands += [scope.atom(f"{scope.module(node)}.weight")]
    operands += [scope.use(node[role]) for role in ("mask", "cache")]
    scale = [scope.scalar(node.attrs.scale)] if node.attrs.scale else []
    return call(scope.helper("latent_attention"), *operands, *scale)


def _latent_state(node, render):
    width = render(node["v"].type.width + node["k"].type.width)
    sizes = ("batch_size", "1", "max_length", width)
    return call("KVCache", *sizes, value_dim="0", dtype="dtype", device="device")


def _flops_latent(ops: Operands) -> Dim:
    q, v, attrs = ops.tensor("q"), ops.tensor("v"), ops.attrs
    batch, queries, heads, width = q.shape
    made = heads * (attrs.own_dim + attrs.value_dim) * v.width
    seen = heads * queries * (width + attrs.value_dim)
    return Dim.const(2) * batch * v.shape[1] * (made + seen)


LATENT_ATTENTION = Op(
    "latent_attention",
    "Causal attention to keys and values that are made of a latent; the keys' rotated part is "
    "shared.",
    infer=_infer_latent,
    emit=_emit_latent,
    attrs=LatentAttrs,
    module_kind="linear",
    inline=False,
    flops=_flops_latent,
    state=_latent_state,
)


class LatentArgs(Args):
    """Arguments of `latent_attention`.

    A head of queries and keys has `own_dim` dimensions without and `rope_dim` with a position, one
    of values `value_dim`.
    The latent of keys and values has `rank` numbers, that of the queries `query_rank`, if they have
    one.
    """

    num_heads: Size
    own_dim: Size
    rope_dim: Size
    value_dim: Size
    rank: Size
    query_rank: int | None = None
    bias: bool = False
    eps: Number = Scalar(1e-6)
    rope: RopeArgs = RopeArgs()
    scale: Number | None = None


def _queries(b, x, args: LatentArgs):
    width = b.program.named(args.num_heads * (args.own_dim + args.rope_dim))
    if args.query_rank is None:
        return add_linear(b, x, width, bias=False, role="q", name="q")
    rank = Dim.const(args.query_rank)
    h = add_linear(b, x, rank, bias=args.bias, role="q_down", name="q_down")
    h = add_norm(b, "rms_norm", h, args.eps, "q_norm")
    return add_linear(b, h, width, bias=False, role="q_up", name="q_up")


def _lower_latent(b, x, args: LatentArgs):
    q = _queries(b, x, args)
    q = b.node("split_heads", {"x": q}, HeadsAttrs(args.num_heads, args.own_dim + args.rope_dim))
    total = b.program.named(args.rank + args.rope_dim)
    down = add_linear(b, x, total, bias=args.bias, role="kv_down", name="kv_down")
    split = SplitAttrs((args.rank, args.rope_dim))
    latent, k = b.node("split", {"x": down}, split, hints=("latent", "k"))
    latent = add_norm(b, "rms_norm", latent, args.eps, "kv_norm")
    k = b.node("split_heads", {"x": k}, HeadsAttrs(Dim.const(1), args.rope_dim), hints=("k",))
    cos, sin = rope_tables(b, x, args.rope_dim, args.rope)
    q, k = (
        b.node("rotate_tail", {"x": h, "cos": cos, "sin": sin}, hints=(name,))
        for name, h in (("q", q), ("k", k))
    )
    made = b.program.named(args.num_heads * (args.own_dim + args.value_dim))
    up = LinearAttrs(args.rank, made, False)
    module = b.module("linear", up, "kv_up", linear_shapes(up), "kv_up")
    operands = {"q": q, "k": k, "v": latent} | causal_operands(b, x)
    attrs = LatentAttrs(args.value_dim, args.own_dim, args.scale)
    h = b.node("latent_attention", operands, attrs, module=module)
    h = b.node("merge_heads", {"x": h})
    return add_linear(b, h, x.type.width, bias=args.bias, role="out", name="out")


LATENT_STEP = StepKind(
    "latent_attention",
    "Multi-head latent attention with its projections (arXiv:2405.04434).",
    LatentArgs,
    _lower_latent,
    roles={
        "q": "q_proj",
        "q_down": "q_a_proj",
        "q_norm": "q_a_layernorm",
        "q_up": "q_b_proj",
        "kv_down": "kv_a_proj_with_mqa",
        "kv_norm": "kv_a_layernorm",
        "kv_up": "kv_b_proj",
        "out": "o_proj",
    },
    composite=True,
)
