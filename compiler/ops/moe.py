"""Mixtures of experts: routers, and feed-forward blocks of which each token goes through a few."""

from dataclasses import dataclass, replace
from typing import Literal

from vlmspec.compiler.emit.expr import call
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param
from vlmspec.compiler.ir.types import Scalar
from vlmspec.compiler.ops.args import Args, Number, Size
from vlmspec.compiler.ops.attention import resolve_int
from vlmspec.compiler.ops.embed import ParameterAttrs
from vlmspec.compiler.ops.linear import GLU_STEP, GluArgs, add_linear
from vlmspec.compiler.ops.registry import ModuleKind, Op, Operands, ShapeError, StepKind
from vlmspec.compiler.ops.structure import call_graph

Score = Literal["softmax", "top-softmax", "sigmoid"]


@dataclass(frozen=True, slots=True)
class RouteAttrs:
    """How the experts of a token are chosen and weighted."""

    top_k: Dim
    score: str
    normalize: bool = False
    scale: Scalar | None = None
    groups: Dim | None = None
    top_groups: Dim | None = None


def _infer_route(ops: Operands):
    logits = ops.tensor("logits")
    most, count = (resolve_int(d, ops) for d in (logits.width, ops.attrs.top_k))
    if most and count and count > most:
        shown = f"{ops.show(ops.attrs.top_k)} of {ops.show(logits.width)} experts"
        dims = (ops.attrs.top_k, logits.width)
        raise ShapeError(f"{shown} cannot be chosen", dims=dims)
    weights = logits.with_width(ops.attrs.top_k)
    return weights, replace(weights, dtype="int")


def _emit_route(node, scope):
    attrs = node.attrs
    given = [scope.use(node["logits"]), scope.dim(attrs.top_k)]
    options = {"scale": scope.scalar(attrs.scale)} if attrs.scale else {}
    if attrs.groups is not None:
        given += [scope.dim(attrs.groups), scope.dim(attrs.top_groups)]
        return call(scope.helper("route_in_groups"), *given, **options)
    if attrs.score == "top-softmax":
        return call(scope.helper("route_top_softmax"), *given, **options)
    options = ({"normalize": "True"} if attrs.normalize else {}) | options
    if attrs.score == "sigmoid":
        given.insert(1, scope.use(node["bias"]))
        return call(scope.helper("route_sigmoid"), *given, **options)
    return call(scope.helper("route_softmax"), *given, **options)


ROUTE = Op(
    "route",
    "The experts of each token and their weights, from the scores of all experts.",
    infer=_infer_route,
    emit=_emit_route,
    attrs=RouteAttrs,
    results=("weights", "chosen"),
    inline=False,
)


@dataclass(frozen=True, slots=True)
class ExpertsAttrs:
    """Number, widths and activation of gated experts."""

    count: Dim
    width: Dim
    inner: Dim
    act: str


def _experts_shapes(attrs: ExpertsAttrs):
    return {
        "gate_up": (attrs.count, attrs.inner + attrs.inner, attrs.width),
        "down": (attrs.count, attrs.width, attrs.inner),
    }


def _construct_experts(module, scope):
    attrs = module.attrs
    sizes = (scope.dim(d) for d in (attrs.count, attrs.width, attrs.inner))
    plain = attrs.act in ("silu", "gelu", "relu")
    act = f"F.{attrs.act}" if plain else scope.helper(attrs.act)
    return call(scope.helper("GluExperts"), *sizes, act)


EXPERTS_MODULE = ModuleKind("experts", ExpertsAttrs, _experts_shapes, _construct_experts)


def _flops_experts(ops: Operands) -> Dim:
    attrs = ops.state.attrs
    pairs = Dim.const(6) * attrs.width * attrs.inner
    for dim in ops.tensor("chosen").shape:
        pairs = pairs * dim
    return pairs


EXPERTS = Op(
    "experts",
    "Gated linear units of which each token goes through those that were chosen for it.",
    infer=lambda ops: (ops.require_width("x", ops.state.attrs.width, "each expert"),),
    emit=lambda node, scope: call(
        scope.module(node), *(scope.use(node[role]) for role in ("x", "weights", "chosen"))
    ),
    module_kind="experts",
    flops=_flops_experts,
)


class RouterArgs(Args):
    """How a router chooses and weights the experts of a token.

    The scores are a softmax over all experts, or over the chosen ones (`top-softmax`), or sigmoids,
    with a learned bias that
    only the choice sees. With `groups` a token chooses out of the `top_groups` groups that have the
    likeliest experts, unless `limited` is false.
    """

    score: Score = "softmax"
    normalize: bool = False
    scale: Number | None = None
    groups: Size | None = None
    top_groups: Size | None = None
    limited: bool = True


class MoeArgs(Args):
    """Arguments of `moe`."""

    num_experts: Size
    top_k: Size
    intermediate_size: Size
    act: Literal["silu", "gelu", "relu", "quick_gelu", "squared_relu"] = "silu"
    router: RouterArgs = RouterArgs()
    shared_size: Size | None = None
    layout: Literal["separate", "stacked", "stacked-transposed"] = "separate"


def _expert_params(b, args: MoeArgs, attrs: ExpertsAttrs) -> tuple[Param, ...]:
    """Where the checkpoint has the experts: one by one, or stacked as [X, out, in] or [X, in,
    out]."""
    shapes = _experts_shapes(attrs)
    if args.layout == "separate":
        prefix = b.weights.key("experts") + ".*."
        gate, up, down = (
            f"{prefix}{b.weights.names[role]}.weight" for role in ("gate", "up", "down")
        )
        given = {"gate_up": (gate, up), "down": (down,)}
        return tuple(Param(p, s, given[p], stack=args.num_experts) for p, s in shapes.items())
    order = (0, 2, 1) if args.layout == "stacked-transposed" else ()
    return tuple(Param(p, s, (b.weights.key(p),), permute=order) for p, s in shapes.items())


def _lower_moe(b, x, args: MoeArgs):
    logits = add_linear(b, x, args.num_experts, bias=False, role="router", name="router")
    weights, chosen = _route(b, logits, args)
    attrs = ExpertsAttrs(args.num_experts, x.type.width, args.intermediate_size, args.act)
    params = _expert_params(b, args, attrs)
    b.graph.add_module(Module("experts", "experts", attrs, params, b.span))
    operands = {"x": x, "weights": weights, "chosen": chosen}
    mixed = b.node("experts", operands, module="experts")
    if args.shared_size is None:
        return mixed
    return b.node("add", {"x": mixed, "y": _shared(b, x, args)}, hints=("h",))


def _route(b, logits, args: MoeArgs):
    """The experts of each token and their weights."""
    router = args.router
    groups = (router.groups, router.top_groups) if router.limited else (None, None)
    plain = router.score == "softmax" and not router.normalize
    if groups != (None, None) and (None in groups or not plain):
        b.fail("VS102", "a router by groups needs `groups` and `top_groups`, and a plain softmax")
    attrs = RouteAttrs(args.top_k, router.score, router.normalize, router.scale, *groups)
    operands = {"logits": logits}
    if router.score == "sigmoid":
        param = Param("", (args.num_experts,), (b.weights.key("bias"),))
        shape = ParameterAttrs(param.shape)
        b.graph.add_module(Module("choice_bias", "parameter", shape, (param,), b.span))
        operands["bias"] = b.node("parameter", {}, module="choice_bias")
    return b.node("route", operands, attrs)


def _shared(b, x, args: MoeArgs):
    """The experts that every token goes through, as one gated linear unit."""
    weights = replace(b.weights, prefix=b.weights.key("shared"), names=GLU_STEP.roles)
    child = b.graph.child(f"{b.component.name}.shared", doc=GLU_STEP.doc, span=b.span)
    start = child.input("x", x.type)
    inner = replace(b.inside(child), weights=weights, name="shared")
    given = GluArgs.model_construct(
        intermediate_size=args.shared_size, act=args.act, bias=False, order="gate-up"
    )
    result = GLU_STEP.lower(inner, start, given)
    return call_graph(b.graph, child, {"x": x}, [result], "shared")


MOE_STEP = StepKind(
    "moe",
    "Mixture of experts: each token goes through a few (Shazeer et al., 2017).",
    MoeArgs,
    _lower_moe,
    roles={
        "router": "gate",
        "bias": "gate.e_score_correction_bias",
        "experts": "experts",
        "gate": "gate_proj",
        "up": "up_proj",
        "gate_up": "experts.gate_up_proj",
        "down": "down_proj",
        "shared": "shared_experts",
    },
    composite=True,
)
