"""Programs for the compiler tests: the bundled specs, lowered and after every pass."""

from functools import cache

from vlmspec import api
from vlmspec.compiler.ir.graph import Program
from vlmspec.compiler.pipeline import Context, run_passes
from vlmspec.dsl.loader import bundled_specs, load_architecture

CASES = [
    (name, variant)
    for name in bundled_specs()
    for variant in (*load_architecture(name).document.variants, None)
]


@cache
def stages(spec: str, variant: str | None) -> dict[str, Program]:
    """The program of a bundled spec as it was lowered, and after each pass, by the pass's name."""
    found: dict[str, Program] = {}
    built = api.build(spec, variant=variant)
    run_passes(built.program, Context(), lambda index, name, program: found.update({name: program}))
    return found
