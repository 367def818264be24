"""What only a real process shows: signals, pipes and completion."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Runs the command line with a stand-in for `vlmspec.api`.
STAND_IN = """
import sys, time, types
import vlmspec
api = types.ModuleType("vlmspec.api")
def check(spec, **options):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned", flush=True)
api.check = check
api.list_specs = lambda: [{"name": "x" * 1000}] * 1000
sys.modules["vlmspec.api"] = vlmspec.api = api
from vlmspec.cli import main
main()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_clean_up_and_set_the_status(number: int, status: int) -> None:
    command = [sys.executable, "-P", "-c", STAND_IN, "check", "x"]

    # Shells start background jobs with interrupts ignored, and children inherit that.
    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(number)
        out, err = run.communicate(timeout=30)
    assert run.returncode == status
    assert out == "cleaned\n"
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_not_an_error() -> None:
    # The table must not fit into a pipe, which it would where COLUMNS narrows it.
    command = [sys.executable, "-P", "-c", STAND_IN, "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.read(10)
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141


def test_module_is_the_command() -> None:
    command = [sys.executable, "-P", "-m", "vlmspec", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("vlmspec ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    command = [sys.executable, "-P", "-m", "vlmspec", "completion", shell]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "_VLMSPEC_COMPLETE" in result.stdout


def complete(words: str, index: int) -> list[str]:
    instruction = {"_VLMSPEC_COMPLETE": "bash_complete", "COMP_WORDS": words}
    command = [sys.executable, "-P", "-m", "vlmspec"]
    environment = {**os.environ, **instruction, "COMP_CWORD": str(index)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return result.stdout.split()


def test_completion_knows_commands_options_and_specs() -> None:
    import vlmspec.specs

    assert complete("vlmspec comp", 1) == ["plain,compile", "plain,completion"]
    assert "plain,cuda:sm90" in complete("vlmspec compile x --target cuda", 4)
    names = {path.stem for path in Path(vlmspec.specs.__path__[0]).glob("*.yaml")}
    assert {f"plain,{name}" for name in names} <= set(complete("vlmspec show ", 2))
