"""What the emitter is told of a program that no bundled spec stands behind."""

from vlmspec.compiler.emit.package import Description
from vlmspec.compiler.ir.graph import Program
from vlmspec.compiler.ir.types import TensorType


def describe(program: Program, kinds: dict[str, str]) -> Description:
    """A description with the entry's inputs and outputs under their own names."""
    entry = program.graphs[program.entry]
    inputs = {
        v.name: "text" if v.type.dtype == "int" else "image"
        for v in entry.inputs
        if isinstance(v.type, TensorType) and v.name not in ("attention_mask", "position_ids")
    }
    outputs = {"logits" if i == 0 else v.name: v.name for i, v in enumerate(entry.outputs)}
    return Description(
        version="0",
        spec_name="test",
        spec_hash="0" * 64,
        command="none",
        title="A program of the tests",
        paper=None,
        kinds=kinds,
        titles={},
        inputs=inputs,
        outputs=outputs,
    )
