import json
import os
import subprocess
import sys
import time

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


@pytest.mark.perf
def test_help_takes_less_than_150_ms() -> None:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        command = [sys.executable, "-P", "-m", "vlmspec", "--help"]
        subprocess.run(command, capture_output=True, check=True, env={**os.environ})
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15
