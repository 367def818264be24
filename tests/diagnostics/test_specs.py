"""Broken specs, configs and requests against the exact words that they are refused with.

Each `specs/NAME.yaml` has its rendering beside it in `specs/NAME.txt`. Comments at its top give
what else the check is asked for: `# set: a.b=1`, `# variant: small`, `# config: NAME.json`.

After a deliberate change: `VLMSPEC_WRITE_SNAPSHOTS=1 pytest tests/diagnostics`, then read the diff.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from vlmspec import api
from vlmspec.cli import run
from vlmspec.diagnostics.model import SpecError
from vlmspec.diagnostics.render import render

HERE = Path(__file__).parent / "specs"
CASES = sorted(path.stem for path in HERE.glob("*.yaml"))
OPTION = re.compile(r"^# (set|variant|config): (.+)$", re.MULTILINE)


def options_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {"set": []}
    for key, value in OPTION.findall(text):
        if key == "set":
            found["set"].append(value)
        else:
            found[key] = value
    return found


def rendering(name: str) -> str:
    """Check one case; gives what the user sees."""
    path = Path(f"{name}.yaml")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        warnings = api.check(path, **options_of(text))
    except SpecError as error:
        return render(error.diagnostics) + "\n"
    assert warnings, f"{name} is not refused"
    return render(warnings) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_a_broken_spec_is_refused_in_exactly_these_words(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE)
    found = rendering(name)
    expected = HERE / f"{name}.txt"
    if os.environ.get("VLMSPEC_WRITE_SNAPSHOTS"):
        expected.write_text(found, encoding="utf-8")
    assert found == expected.read_text(encoding="utf-8")


def test_there_are_enough_cases_and_no_stray_files() -> None:
    assert len(CASES) >= 60
    assert {path.stem for path in HERE.glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("warning_")])
def test_the_command_line_exits_with_one(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HERE)
    options = options_of(Path(f"{name}.yaml").read_text(encoding="utf-8", errors="replace"))
    arguments = ["check", f"{name}.yaml", "--color", "never"]
    for assignment in options.pop("set"):
        arguments += ["--set", assignment]
    for key, value in options.items():
        arguments += [f"--{key}", value]
    assert run(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and "error[VS" in err
