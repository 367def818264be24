"""Matrix products, and the feed-forward blocks made of them."""

from dataclasses import dataclass, replace
from typing import Literal

from vlmspec.compiler.emit.expr import call, method
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param
from vlmspec.compiler.ops.activation import ActivationAttrs, ActivationName
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.registry import ModuleKind, Op, Operands, StepKind


@dataclass(frozen=True, slots=True)
class LinearAttrs:
    """Sizes of a matrix product."""

    in_features: Dim
    out_features: Dim
    bias: bool = True


def linear_shapes(attrs: LinearAttrs) -> dict[str, tuple[Dim, ...]]:
    shapes = {"weight": (attrs.out_features, attrs.in_features)}
    return shapes | ({"bias": (attrs.out_features,)} if attrs.bias else {})


def _construct_linear(module, scope):
    attrs = module.attrs
    options = {} if attrs.bias else {"bias": "False"}
    sizes = scope.dim(attrs.in_features), scope.dim(attrs.out_features)
    return call(scope.kernel("linear") or "nn.Linear", *sizes, **options)


LINEAR_MODULE = ModuleKind("linear", LinearAttrs, linear_shapes, _construct_linear)


def _infer_linear(ops: Operands):
    attrs = ops.state.attrs
    x = ops.require_width("x", attrs.in_features, f"the linear layer `{ops.state.name}`")
    return (x.with_width(attrs.out_features),)


def _flops_linear(ops: Operands) -> Dim:
    attrs = ops.state.attrs
    rows = Dim.const(2) * attrs.in_features * attrs.out_features
    for dim in ops.tensor("x").shape[:-1]:
        rows = rows * dim
    return rows


LINEAR = Op(
    "linear",
    "Matrix product with a weight [out, in], and a bias.",
    infer=_infer_linear,
    emit=lambda node, scope: call(scope.module(node), scope.use(node["x"])),
    module_kind="linear",
    flops=_flops_linear,
)


class LinearArgs(Args):
    """Arguments of `linear`."""

    out: Size
    bias: bool = True
    tie: bool = False


def add_linear(b, x, out: Dim, *, bias: bool, role: str, name: str, width: Dim | None = None):
    """Declare a linear module under `role`'s checkpoint name, and apply it; `width` is another name
    of x's."""
    attrs = LinearAttrs(x.type.width if width is None else width, out, bias)
    module = b.module("linear", attrs, role, linear_shapes(attrs), name)
    return b.node("linear", {"x": x}, module=module)


def _lower_linear(b, x, args: LinearArgs):
    if not args.tie:
        return add_linear(b, x, args.out, bias=args.bias, role="linear", name=b.name)
    if not any(m.name == "embed" and m.kind == "embedding" for m in b.component.modules):
        message = "`tie` shares the weight of the token embedding, and this part has none"
        b.fail("VS211", message, "add an `embedding` to the part's `embed`, or leave out `tie`")
    attrs = LinearAttrs(x.type.width, args.out, args.bias)
    shapes = linear_shapes(attrs)
    params = [Param(p, s, (b.weights.key("linear", p),)) for p, s in shapes.items()]
    params[0] = replace(params[0], tied=f"{b.component.name}.embed.weight")
    b.graph.add_module(Module(b.name, "linear", attrs, tuple(params), b.span))
    return b.node("linear", {"x": x}, module=b.name)


LINEAR_STEP = StepKind(
    "linear",
    "One matrix product.",
    LinearArgs,
    _lower_linear,
    shorthand="out",
    roles={"linear": ""},
    component=("connector", "head"),
)


class MlpArgs(Args):
    """Arguments of `mlp`."""

    widths: tuple[Size, ...]
    act: ActivationName = "gelu"
    bias: bool = True


MLP_NAMES = {2: ("up", "down")}


def _lower_mlp(b, x, args: MlpArgs):
    count = len(args.widths)
    names = MLP_NAMES.get(count, tuple(f"linear_{i + 1}" for i in range(count)))
    roles = list(b.weights.names) or [f"linear_{i + 1}" for i in range(count)]
    if len(roles) != count:
        message = f"`widths` has {count} entries, and there are {len(roles)} names of weights"
        b.fail("VS104", message, "give `weights` as a list with one name for each width")
    for i, (name, role, width) in enumerate(zip(names, roles, args.widths, strict=True)):
        if i:
            x = b.node("activation", {"x": x}, ActivationAttrs(args.act))
        x = add_linear(b, x, width, bias=args.bias, role=role, name=name)
    return x


MLP_STEP = StepKind(
    "mlp",
    "Matrix products with an activation between them.",
    MlpArgs,
    _lower_mlp,
    roles={"fc1": "fc1", "fc2": "fc2"},
    component=("connector",),
    composite=True,
)


class GluArgs(Args):
    """Arguments of `glu`."""

    intermediate_size: Size
    act: ActivationName = "silu"
    bias: bool = False
    order: Literal["gate-up", "up-gate"] = "gate-up"


def _lower_glu(b, x, args: GluArgs):
    width = x.type.width
    gate = add_linear(b, x, args.intermediate_size, bias=args.bias, role="gate", name="gate")
    up = add_linear(b, x, args.intermediate_size, bias=args.bias, role="up", name="up")
    gate = b.node("activation", {"x": gate}, ActivationAttrs(args.act))
    h = b.node("mul", {"x": gate, "y": up})
    return add_linear(b, h, width, bias=args.bias, role="down", name="down")


GLU_STEP = StepKind(
    "glu",
    "Gated linear unit: `down(act(gate(x)) * up(x))` (Shazeer, 2020).",
    GluArgs,
    _lower_glu,
    shorthand="intermediate_size",
    roles={"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    component=("connector",),
    module="mlp",
    composite=True,
)


@dataclass(frozen=True, slots=True)
class SplitAttrs:
    """Extents of the pieces along a dimension, counted from the last."""

    sizes: tuple[Dim, ...]
    dim: int = -1


def _infer_split(ops: Operands):
    total, dim = sum(ops.attrs.sizes, Dim.const(0)), ops.attrs.dim
    x = ops.tensor("x")
    ops.require_same(x.shape[dim], total, "the pieces do not add up to what is split")
    before, after = x.shape[:dim], x.shape[len(x.shape) + dim + 1 :]
    return tuple(x.with_shape(*before, size, *after) for size in ops.attrs.sizes)


def _emit_split(node, scope):
    sizes, dim = node.attrs.sizes, str(node.attrs.dim)
    if len(set(sizes)) == 1:
        return method(scope.use(node["x"]), "chunk", str(len(sizes)), dim=dim)
    extents = ", ".join(scope.dim(size) for size in sizes)
    return method(scope.use(node["x"]), "split", f"({extents})", dim=dim)


SPLIT = Op(
    "split",
    "Pieces along one dimension, in order.",
    infer=_infer_split,
    emit=_emit_split,
    attrs=SplitAttrs,
    inline=False,
)
