"""The passes, in order."""

from collections.abc import Callable

from vlmspec.compiler.ir.graph import Program
from vlmspec.compiler.ir.verify import verify
from vlmspec.compiler.passes.base import Context, Pass
from vlmspec.compiler.passes.eliminate_dead_code import EliminateDeadCode
from vlmspec.compiler.passes.fold_constants import FoldConstants
from vlmspec.compiler.passes.fuse_norm_residual import FuseNormResidual
from vlmspec.compiler.passes.fuse_rope_attention import FuseRopeAttention
from vlmspec.compiler.passes.fuse_sibling_linears import FuseSiblingLinears
from vlmspec.compiler.passes.hoist_split_heads import HoistSplitHeads
from vlmspec.compiler.passes.sink_optional import SinkOptional

PASSES: tuple[Pass, ...] = (
    FoldConstants(),
    EliminateDeadCode(),  # a tapped layer leaves whole branches that no fusion should see
    FuseSiblingLinears(),  # the rope fusion then finds queries and keys in their final place
    HoistSplitHeads(),  # after the projections are one
    FuseRopeAttention(),
    FuseNormResidual(),
    SinkOptional(),  # last: it only orders nodes, for the emitter
)

Dump = Callable[[int, str, Program], None]


def run_passes(program: Program, context: Context, dump: Dump | None = None) -> Program:
    """Run every pass; `dump` sees the program before the first and after each."""
    if dump:
        dump(0, "lowered", program)
    for index, step in enumerate(PASSES, 1):
        program = step.run(program, context)
        verify(program)
        if dump:
            dump(index, step.name, program)
    return program


__all__ = ["PASSES", "Context", "run_passes"]
