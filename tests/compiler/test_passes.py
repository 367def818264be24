"""Each pass on programs written as text: what it makes of them, and what it says.

`passes/<pass>.vir` holds the cases: a program (or graphs alone), then what the pass turns it into
and its findings. `VLMSPEC_UPDATE_GOLDEN=1 pytest -n 0` writes the second part anew.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from vlmspec.compiler.ir.graph import Program
from vlmspec.compiler.ir.text import parse_program, print_graph
from vlmspec.compiler.ir.verify import verify
from vlmspec.compiler.passes.base import Context
from vlmspec.compiler.pipeline import PASSES

FOLDER = Path(__file__).parent / "passes"
CASE, BECOMES = "# case: ", "# becomes\n"
UPDATE = os.environ.get("VLMSPEC_UPDATE_GOLDEN") == "1"


@dataclass(frozen=True)
class Case:
    """One program, and what a pass does with it."""

    name: str
    before: str
    after: str


def read_cases(path: Path) -> list[Case]:
    """The cases of one file, in order."""
    found = []
    for block in path.read_text(encoding="utf-8").split(CASE)[1:]:
        name, _, body = block.partition("\n")
        before, _, after = body.partition(BECOMES)
        found.append(Case(name, before.strip() + "\n", after.strip() + "\n"))
    return found


def program_of(text: str) -> Program:
    """A program; graphs alone make one whose entry is the first of them."""
    if not text.startswith("program "):
        entry = text.split("@")[1].split()[0]
        text = f"program test\nentry @{entry}\n\n{text}"
    return parse_program(text)


def run_case(step, case: Case) -> str:
    """What the pass makes of the case, as it stands in the file."""
    program = program_of(case.before)
    verify(program)
    context = Context()
    after = step.run(program, context)
    verify(after)
    assert program == program_of(case.before), "a pass must not change what it is given"
    # What a pass has done once it must not find again.
    assert step.run(after, Context()) == after
    if after == program:
        text = "# the same\n"
    else:
        text = "\n".join(print_graph(g, after.sizes) for g in after.graphs.values())
    for finding in context.findings:
        word = "refused" if finding.refused else "took"
        text += f"# {word}: @{finding.graph} {finding.node}: {finding.text}\n"
    return text


STEPS = {step.name: step for step in PASSES}
CASES = [
    pytest.param(name, index, id=f"{name}-{case.name.replace(' ', '_')}")
    for name in STEPS
    for index, case in enumerate(read_cases(FOLDER / f"{name}.vir"))
]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_pass_does_what_its_file_says(name: str, index: int):
    path = FOLDER / f"{name}.vir"
    cases = read_cases(path)
    case = cases[index]
    found = run_case(STEPS[name], case)
    if UPDATE:
        cases[index] = Case(case.name, case.before, found)
        blocks = [f"{CASE}{c.name}\n{c.before}\n{BECOMES}{c.after}" for c in cases]
        path.write_text("\n".join(blocks), encoding="utf-8")
    else:
        assert found == case.after


@pytest.mark.parametrize("name", STEPS)
def test_every_pass_has_a_firing_and_a_passive_case(name: str):
    after = [case.after for case in read_cases(FOLDER / f"{name}.vir")]
    assert any(not text.startswith("# the same") for text in after)
    assert any(text.startswith("# the same") for text in after)


def test_files_belong_to_passes():
    assert {path.stem for path in FOLDER.glob("*.vir")} == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_findings_name_their_pass_and_graph(name: str):
    for case in read_cases(FOLDER / f"{name}.vir"):
        context = Context()
        program = program_of(case.before)
        STEPS[name].run(program, context)
        for finding in context.findings:
            assert finding.rule == name
            assert finding.graph in program.graphs
            assert finding.text and not finding.text.endswith(".")
