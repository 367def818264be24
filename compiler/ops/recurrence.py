"""Linear attention: a state of fixed size in place of the keys and values of all earlier tokens."""

from dataclasses import dataclass
from typing import Literal

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar, TensorType
from vlmspec.compiler.ops.activation import ActivationAttrs, ActivationName
from vlmspec.compiler.ops.args import Args, Number, Size
from vlmspec.compiler.ops.attention import HeadsAttrs, model_input
from vlmspec.compiler.ops.linear import SplitAttrs, add_linear
from vlmspec.compiler.ops.norm import NormAttrs
from vlmspec.compiler.ops.registry import Op, Operands, StepKind

TOKEN_MASK = Op(
    "token_mask",
    "Which of the new tokens are no padding, or None where all are.",
    infer=lambda ops: (
        TensorType(
            (Dim.sym("batch"), Dim.sym("tokens"), Dim.const(1), Dim.const(1)), nullable=True
        ),
    ),
    emit=lambda node, scope: call(
        scope.helper("token_mask"), scope.use(node["x"]), scope.use(node["attention_mask"])
    ),
    results=("valid",),
    inline=False,
)


@dataclass(frozen=True, slots=True)
class DecayAttrs:
    """Which heads of which layer forget how fast."""

    heads: Dim
    layer: Dim
    layers: Dim
    form: str


def _emit_rates(node, scope):
    attrs = node.attrs
    name = "decay_rates" if attrs.form == "exact" else "stored_decay_rates"
    sizes = (scope.dim(d) for d in (attrs.heads, attrs.layer, attrs.layers))
    return call(scope.helper(name), *sizes, scope.use(node["x"]))


DECAY_RATES = Op(
    "decay_rates",
    "How fast each head of this layer forgets.",
    infer=lambda ops: (TensorType((ops.attrs.heads,)),),
    emit=_emit_rates,
    attrs=DecayAttrs,
    results=("rates",),
    inline=False,
    stored=("slope_rate", "query_decay", "key_decay", "diagonal_decay"),
)


@dataclass(frozen=True, slots=True)
class LightningAttrs:
    """Tokens of a block."""

    block: Dim


def _infer_lightning(ops: Operands):
    q, k, v = (ops.tensor(role) for role in "qkv")
    ops.require_same(q.width, k.width, "queries and keys have heads of different widths")
    return (q.with_shape(*q.shape[:-1], v.width),)


def _emit_lightning(node, scope):
    operands = [scope.use(node[r]) for r in ("q", "k", "v", "rates", "valid", "cache")]
    return call(scope.helper("lightning_attention"), *operands, scope.dim(node.attrs.block))


def _lightning_state(node, render):
    heads = render(node["k"].type.shape[-2])
    widths = (render(node[role].type.width) for role in ("k", "v"))
    return call("RecurrentState", "batch_size", heads, *widths, dtype="dtype", device="device")


def _flops_lightning(ops: Operands) -> Dim:
    q, v = ops.tensor("q"), ops.tensor("v")
    batch, tokens, heads, width = q.shape
    within = Dim.const(2) * ops.attrs.block * (width + v.width)
    return batch * tokens * heads * (within + Dim.const(4) * width * v.width)


LIGHTNING = Op(
    "lightning_attention",
    "Linear attention whose scores fade with the distance, block by block.",
    infer=_infer_lightning,
    emit=_emit_lightning,
    attrs=LightningAttrs,
    inline=False,
    flops=_flops_lightning,
    state=_lightning_state,
)


class LightningArgs(Args):
    """Arguments of `lightning_attention`."""

    num_heads: Size
    head_dim: Size
    num_layers: Size
    act: ActivationName = "silu"
    block_size: Size = Dim.const(256)
    norm_eps: Number = Scalar(1e-6)
    decay: Literal["exact", "stored"] = "exact"


def layer_index(b) -> Dim:
    """The index of the layer that this step is in, which its class is given when it is built."""
    graph = b.graph
    while graph is not None and not graph.per_layer:
        graph = graph.parent
    if graph is None:
        b.fail("VS211", f"`{b.name}` depends on the depth", "put it into the body of `layers`")
    return Dim.sym("layer")


def _token_mask(b):
    """Which tokens are no padding, computed once per component."""
    component = b.component
    if "valid" not in component.ambient:
        operands = {
            "x": component.stream,
            "attention_mask": model_input(component, "attention_mask"),
        }
        (component.ambient["valid"],) = component.node("token_mask", operands)
    return component.ambient["valid"]


def _lower_lightning(b, x, args: LightningArgs):
    heads, width = args.num_heads, args.head_dim
    inner = heads * width
    h = add_linear(b, x, inner + inner + inner, bias=False, role="qkv", name="qkv")
    gate = add_linear(b, x, inner, bias=False, role="gate", name="gate")
    h = b.node("activation", {"x": h}, ActivationAttrs(args.act))
    h = b.node("split_heads", {"x": h}, HeadsAttrs(heads, width + width + width))
    q, k, v = b.node("split", {"x": h}, SplitAttrs((width, width, width)), hints=("q", "k", "v"))
    form = DecayAttrs(heads, layer_index(b), args.num_layers, args.decay)
    operands = {
        "q": q,
        "k": k,
        "v": v,
        "rates": b.node("decay_rates", {"x": x}, form),
        "valid": _token_mask(b),
        "cache": model_input(b.component, "cache"),
    }
    h = b.node("lightning_attention", operands, LightningAttrs(args.block_size))
    h = b.node("merge_heads", {"x": h})
    attrs = NormAttrs(inner, args.norm_eps)
    norm = b.module("rms_norm", attrs, "norm", {"weight": (inner,)}, "norm")
    h = b.node("rms_norm", {"x": h}, module=norm)
    gate = b.node("activation", {"x": gate}, ActivationAttrs("sigmoid"))
    h = b.node("mul", {"x": gate, "y": h})
    return add_linear(b, h, x.type.width, bias=False, role="out", name="out")


LIGHTNING_STEP = StepKind(
    "lightning_attention",
    "Linear attention with a decaying state, and a gate on its result (Qin et al., 2024).",
    LightningArgs,
    _lower_lightning,
    roles={"qkv": "qkv_proj", "gate": "output_gate", "norm": "norm", "out": "out_proj"},
    composite=True,
)
