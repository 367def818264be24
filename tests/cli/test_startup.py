import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = {"torch", "networkx", "rich", "pydantic", "numpy", "yaml", "transformers", "triton"}

PROBE = """
import json, sys
from vlmspec.cli import run
status = run(sys.argv[1:])
modules = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps([status, modules]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["compile", "--help"],
        ["explain", "VS101"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-P", "-c", PROBE, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    status, modules = json.loads(result.stderr.splitlines()[-1])
    assert status == 0
    assert HEAVY & set(modules) == set()


def test_import_of_the_package_is_light() -> None:
    code = "import sys, vlmspec; print(*sorted(m for m in sys.modules if m.startswith('vlmspec')))"
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["vlmspec"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "llava"],
        ["show", "llava"],
        ["explain", "llava"],
        ["graph", "llava"],
        ["list"],
        ["list", "--parts"],
        ["ops"],
    ],
    ids=" ".join,
)
def test_commands_that_read_specs_import_no_torch(arguments: list[str]) -> None:
    command = [sys.executable, "-P", "-c", PROBE, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    status, modules = json.loads(result.stderr.splitlines()[-1])
    assert status == 0
    assert {"torch", "transformers", "triton", "numpy", "networkx"} & set(modules) == set()


# Wall time of a whole process; for `check` and `compile` three times the target: machines differ.
LIMITS = {
    ("--help",): 0.15,
    ("check", "llava"): 1.2,
    ("compile", "llava"): 3.0,
}


@pytest.mark.perf
@pytest.mark.parametrize(
    ("arguments", "limit"), LIMITS.items(), ids=[" ".join(arguments) for arguments in LIMITS]
)
def test_commands_are_fast(arguments: tuple[str, ...], limit: float, tmp_path: Path) -> None:
    times = []
    for turn in range(5):
        output = ["-o", str(tmp_path / str(turn))] if arguments[0] == "compile" else []
        command = [sys.executable, "-P", "-m", "vlmspec", *arguments, *output]
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < limit, f"{min(times):.3f} s"
