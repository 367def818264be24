"""Where modalities meet."""

from dataclasses import dataclass

from vlmspec.compiler.emit.expr import atom, call, method
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ops.args import Args, Size
from vlmspec.compiler.ops.registry import Op, Operands, ShapeError, StepKind


@dataclass(frozen=True, slots=True)
class SpliceAttrs:
    """The id of the token that stands for one visual token, and the component that gives those."""

    placeholder: Dim | None
    source: str = "visual"


def _infer_splice(ops: Operands):
    x, visual = ops.tensor("x"), ops.tensor("visual")
    if visual.dtype != "float":
        raise ShapeError(f"splice takes visual tokens, not {visual}")
    ops.require_same(visual.width, x.width, "visual tokens and text embeddings differ in width")
    return (x,)


def _emit_splice(node, scope):
    if node.get("at") is not None:
        placeholders = method(scope.use(node["at"]), "bool")
    else:
        ids = scope.use(node["ids"]).flat()
        placeholders = atom(f"{ids} == {scope.dim(node.attrs.placeholder)}")
    operands = [scope.use(node["x"]), scope.use(node["visual"]), placeholders]
    operands += [scope.use(node["counts"])] if node.get("counts") is not None else []
    return call(scope.helper("splice"), *operands, source=f'"{node.attrs.source}"')


SPLICE = Op(
    "splice",
    "Visual tokens, in order, where the placeholder tokens stand.",
    infer=_infer_splice,
    emit=_emit_splice,
    attrs=SpliceAttrs,
    results=("x",),
    joins=frozenset({"visual", "counts", "at"}),
    inline=False,
)


class SpliceArgs(Args):
    """Arguments of `splice`: the placeholder of the images, and of each other stream by its role.

    Without a placeholder, the operand `at` says which tokens of the text images stand for.
    """

    placeholder: Size | None = None
    placeholders: dict[str, Size] = {}


def _lower_splice(b, operands, args: SpliceArgs):
    x, ids = operands["embeds"], operands["text"]
    at = operands.get("at")
    if (at is None) == (args.placeholder is None):
        b.fail("VS102", "`splice` needs either a `placeholder` or the operand `at`")
    placeholders = {"image": args.placeholder, **args.placeholders}
    for role in operands:
        if role in ("embeds", "text", "at"):
            continue
        if role not in placeholders:
            b.fail("VS102", f"`placeholders` has no entry for the stream `{role}`")
        visual, counts = operands[role], b.counts.get(role)
        given = {"x": x, "visual": visual, "ids": ids, "counts": counts}
        if role == "image" and at is not None:
            given |= {"ids": None, "at": at}
        x = b.node("splice", given, SpliceAttrs(placeholders[role], visual.name))
    return x


SPLICE_STEP = StepKind(
    "splice",
    SPLICE.doc,
    SpliceArgs,
    _lower_splice,
    component=("fusion",),
    flow=True,
)
