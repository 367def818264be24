"""What the commands print for a small spec; running this file as a script writes it anew."""

import contextlib
import io
import os
from pathlib import Path

import pytest

from vlmspec.cli import run

DATA = Path(__file__).parent / "data"
COMMANDS = {
    "show.txt": ["show", "pair.yaml"],
    "show_verbose.txt": ["show", "pair.yaml", "--variant", "wide", "-v"],
    "show.json": ["show", "pair.yaml", "--json"],
    "explain.txt": ["explain", "pair.yaml", "--dtype", "float64"],
    "explain_cuda.txt": ["explain", "pair.yaml", "--target", "cuda:sm90"],
    "graph.mmd": ["graph", "pair.yaml", "--format", "mermaid"],
    "graph.dot": ["graph", "pair.yaml", "--format", "dot"],
    "graph.json": ["graph", "pair.yaml", "--format", "json"],
    "graph.svg": ["graph", "pair.yaml"],
}


def printed(arguments: list[str]) -> str:
    """What a command prints when it runs in the folder of the specs, with lines of 100 columns."""
    out = io.StringIO()
    kept = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.chdir(DATA), contextlib.redirect_stdout(out):
            assert run(arguments) == 0
    finally:
        os.environ.pop("COLUMNS")
        os.environ |= {"COLUMNS": kept} if kept else {}
    return out.getvalue()


@pytest.mark.parametrize("name", COMMANDS)
def test_output_is_as_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    kept = (DATA / name).read_text(encoding="utf-8")
    assert printed(COMMANDS[name]) == kept, "python -P tests/report/test_snapshots.py rewrites it"


@pytest.mark.parametrize(
    "name", ["show.txt", "show_verbose.txt", "explain.txt", "explain_cuda.txt"]
)
def test_text_fits_100_columns(name: str) -> None:
    assert max(map(len, printed(COMMANDS[name]).splitlines())) <= 100


if __name__ == "__main__":
    for file, command in COMMANDS.items():
        (DATA / file).write_text(printed(command), encoding="utf-8")
