"""Maps [images, rows, columns, channels]: convolutions, and changes of size."""

from dataclasses import dataclass
from typing import Literal

from vlmspec.compiler.emit.expr import call, method
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import TensorType
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.registry import ModuleKind, Op, Operands, ShapeError, StepKind


@dataclass(frozen=True, slots=True)
class ConvAttrs:
    """Channels, and side, step and border of the kernel."""

    channels: Dim
    out: Dim
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = True


def _conv_shapes(attrs: ConvAttrs):
    side = Dim.const(attrs.kernel)
    weight = {"weight": (attrs.out, attrs.channels, side, side)}
    return weight | ({"bias": (attrs.out,)} if attrs.bias else {})


def _construct_conv(module, scope):
    attrs = module.attrs
    options = {"stride": str(attrs.stride)} if attrs.stride != 1 else {}
    options |= {"padding": str(attrs.padding)} if attrs.padding else {}
    options |= {} if attrs.bias else {"bias": "False"}
    sizes = scope.dim(attrs.channels), scope.dim(attrs.out), str(attrs.kernel)
    return call("nn.Conv2d", *sizes, **options)


CONV_MODULE = ModuleKind("conv2d", ConvAttrs, _conv_shapes, _construct_conv)


def require_map(ops: Operands, role: str = "x") -> TensorType:
    """Return the type of an operand, which must be a map."""
    x = ops.tensor(role)
    if len(x.shape) != 4:
        raise ShapeError(f"this takes maps [images, rows, columns, channels], not {x}")
    return x


def _infer_conv(ops: Operands):
    x, attrs = require_map(ops), ops.state.attrs
    ops.require_width("x", attrs.channels, f"the convolution `{ops.state.name}`")
    border = Dim.const(2 * attrs.padding - attrs.kernel)
    rows, columns = ((d + border) // Dim.const(attrs.stride) + 1 for d in x.shape[1:3])
    return (x.with_shape(x.shape[0], rows, columns, attrs.out),)


def _flops_conv(ops: Operands) -> Dim:
    (result,), attrs = _infer_conv(ops), ops.state.attrs
    total = Dim.const(2 * attrs.kernel**2) * attrs.channels
    for dim in result.shape:
        total = total * dim
    return total


def channels_first(x):
    """The expression of a map as torch's own layers take it."""
    return method(x, "permute", "0", "3", "1", "2")


def channels_last(x):
    """The expression of a map that one of torch's own layers gives."""
    return method(x, "permute", "0", "2", "3", "1")


CONV = Op(
    "conv2d",
    "Convolution of a map.",
    infer=_infer_conv,
    emit=lambda node, scope: channels_last(
        call(scope.module(node), channels_first(scope.use(node["x"])))
    ),
    module_kind="conv2d",
    results=("x",),
    inline=False,
    flops=_flops_conv,
)


class ConvArgs(Args):
    """Arguments of `conv2d`."""

    out: Size
    kernel: int
    stride: int = 1
    padding: int = 0
    bias: bool = True


def _lower_conv(b, x, args: ConvArgs):
    if min(args.kernel, args.stride) < 1 or args.padding < 0:
        b.fail("VS303", "a kernel and its step are at least 1, and its border at least 0")
    attrs = ConvAttrs(x.type.width, args.out, args.kernel, args.stride, args.padding, args.bias)
    module = b.module("conv2d", attrs, "conv", _conv_shapes(attrs))
    return b.node("conv2d", {"x": x}, module=module)


CONV_STEP = StepKind("conv2d", CONV.doc, ConvArgs, _lower_conv, roles={"conv": ""})


@dataclass(frozen=True, slots=True)
class ResizeAttrs:
    """Rows and columns of the result, and what lies between the old ones."""

    rows: Dim
    columns: Dim
    mode: str = "bilinear"


def _emit_resize(node, scope):
    attrs = node.attrs
    sizes = scope.dim(attrs.rows), scope.dim(attrs.columns)
    return call(scope.helper("resize_map"), scope.use(node["x"]), *sizes, f'"{attrs.mode}"')


RESIZE = Op(
    "resize",
    "A map of another size, interpolated between the centres of pixels.",
    infer=lambda ops: (
        require_map(ops).with_shape(
            ops.tensor("x").shape[0], ops.attrs.rows, ops.attrs.columns, ops.tensor("x").width
        ),
    ),
    emit=_emit_resize,
    attrs=ResizeAttrs,
    results=("x",),
    inline=False,
)


class ResizeArgs(Args):
    """Arguments of `resize`."""

    rows: Size
    columns: Size
    mode: Literal["nearest", "bilinear", "bicubic"] = "bilinear"


RESIZE_STEP = StepKind(
    "resize",
    RESIZE.doc,
    ResizeArgs,
    lambda b, x, args: b.node("resize", {"x": x}, ResizeAttrs(args.rows, args.columns, args.mode)),
)
