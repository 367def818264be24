"""Every code is reported somewhere, and a test reads what is said."""

import re
from pathlib import Path

import pytest

import vlmspec
import vlmspec.compiler
from vlmspec.diagnostics.codes import CODES
from vlmspec.diagnostics.model import SpecError

CODE = re.compile(r"VS\d{3}")
HERE = Path(__file__).parent


def mentioned(*folders: Path, suffixes: tuple[str, ...] = (".py",)) -> set[str]:
    """The codes that files mention, but for the table itself."""
    found: set[str] = set()
    for folder in folders:
        for path in folder.rglob("*"):
            if path.suffix in suffixes and not path.name.startswith("codes"):
                found |= set(CODE.findall(path.read_text(encoding="utf-8", errors="replace")))
    return found


def test_the_table_has_every_code_that_is_reported_and_no_other() -> None:
    package = Path(str(vlmspec.__file__)).parent
    compiler = Path(str(vlmspec.compiler.__file__)).parent
    assert mentioned(package, compiler) & {*CODES} == {*CODES}
    assert mentioned(package, compiler) <= {*CODES}


def test_every_code_is_exercised() -> None:
    tests = mentioned(HERE.parent, suffixes=(".py", ".txt"))
    assert not {*CODES} - tests, "codes that no test exercises"


def test_most_codes_have_a_rendering_that_is_compared() -> None:
    folders = (HERE / "specs", HERE / "checkpoints")
    assert len(mentioned(*folders, suffixes=(".txt",)) & {*CODES}) >= 65


def test_a_stage_that_the_reference_does_not_have_is_named() -> None:
    from torch import nn

    from vlmspec import verification

    reference = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(SpecError, match=r"VS672.*`1`.*`head`"):
        verification._check_stages(reference, {"head": "1", "body": "0"})
