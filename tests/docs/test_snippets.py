"""Every command and every snippet of the pages does what the page says."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import GENERATED, PAGES, ROOT, Block, blocks, name

from vlmspec.cli import run

LANGUAGE_PAGE = "language.md"  # has a test of its own
CHECKED = [p for p in PAGES if p.name not in (*GENERATED, LANGUAGE_PAGE, "adding-an-op.md")]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in, with the example specs and what `make demo` leaves behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    shutil.copytree(ROOT / "specs" / "examples", tmp_path / "specs" / "examples")
    return tmp_path


@pytest.mark.parametrize("page", CHECKED, ids=name)
def test_page_does_what_it_says(page, workplace, monkeypatch):
    if any("build/llava-small" in block.text for block in blocks(page)):
        write_demo_checkpoint(monkeypatch)
    names = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if "output" in block.marks:
            assert agrees(block.text.splitlines(), printed), f"{block.place}:\n{printed}"
        with contextlib.redirect_stdout(io.StringIO()) as out:
            play(block, names)
        printed = out.getvalue()


def test_commands_that_are_not_run_are_those_of_the_makefile():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for page in PAGES:
        for block in blocks(page):
            if "manual" in block.marks:
                assert set(re.findall(r"^make (\w+)", block.text, re.M)) <= {*targets}, block.place


def write_demo_checkpoint(monkeypatch) -> None:
    """Write the small checkpoint of `make demo`, and compile as it does."""
    import demo

    monkeypatch.setattr(demo, "CHECKPOINT", Path("build/llava-small"))
    demo.make_checkpoint(demo.make_processor())


def play(block: Block, names: dict) -> None:
    """Do what a block says."""
    if "file" in block.values:
        write(block)
    elif "excerpt" in block.values:
        check_excerpt(block)
    elif block.language == "python":
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(block.page), "exec"), names)
    elif block.language == "console":
        for command, expected in commands(block):
            check_output(block, command, expected)
    elif block.language == "sh" and "manual" not in block.marks:
        for command in block.text.splitlines():
            if command.strip() and not command.startswith("#"):
                status, output = shell(command)
                assert status == 0, f"{block.place}: {command}\n{output}"


def write(block: Block) -> None:
    """Write a file that a page shows; where the repository has it, it must be the same."""
    path = Path(block.values["file"])
    if (ROOT / path).is_file():
        assert (ROOT / path).read_text(encoding="utf-8") == block.text, f"{block.place}: {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a session, each with what it prints."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            assert found, f"{block.place}: a session starts with a command"
            found[-1][1].append(line)
    return found


def check_output(block: Block, command: str, expected: list[str]) -> None:
    """Compare what a command prints with what the page says; `...` stands for anything."""
    _, output = shell(command)
    wanted = "\n".join(expected).strip("\n").splitlines()
    if agrees(wanted, output):
        return
    found = plain(output)
    if not os.environ.get("VLMSPEC_WRITE_SNAPSHOTS") or "..." in wanted:
        pytest.fail(f"{block.place}: $ {command}\n{found}", pytrace=False)
    lines = block.page.read_text(encoding="utf-8")
    session = f"$ {command}\n"
    old = session + "".join(f"{line}\n" for line in expected)
    assert lines.count(old) == 1, f"{block.place}: edit this by hand"
    block.page.write_text(lines.replace(old, session + found), encoding="utf-8")


def plain(output: str) -> str:
    """What is printed, without spaces at the ends of lines and empty lines at either end."""
    return "".join(f"{line.rstrip()}\n" for line in output.strip("\n").splitlines())


def agrees(wanted: list[str], output: str) -> bool:
    """Whether a command prints what a page shows."""
    return re.fullmatch("".join(map(pattern, wanted)), plain(output)) is not None


def pattern(line: str) -> str:
    """The expression for a line of a page; `...` stands for any lines, or for the rest of one.

    Rounding differs between machines, so an error such as `2.5e-15` stands for any other.
    """
    if line.strip() == "...":
        return r"(?:.*\n)*?"
    text = ".*".join(map(re.escape, line.split("...")))
    return re.sub(r"\d\\\.\de\\-\d\d", r"\\d\\.\\de-\\d\\d", text) + r"\n"


def shell(command: str) -> tuple[int, str]:
    """Run a command; gives its status and output, errors included where it fails.

    Commands of vlmspec run in this process, which has torch already.
    """
    words = shlex.split(command)
    if words[0] == "vlmspec" and not {"|", ">", "&&", ";"} & set(words):
        out, err = (
            io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in "12"
        )
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(words[1:])
        printed = [stream.buffer.getvalue().decode() for stream in (out, err)]  # pyright: ignore[reportAttributeAccessIssue]
    else:
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        status, printed = result.returncode, [result.stdout, result.stderr]
    return status, "".join(printed if status else printed[:1])


def check_excerpt(block: Block) -> None:
    """Compare lines with the emitted module; a line of `...` stands for any lines."""
    import vlmspec

    spec = block.values["excerpt"]
    compiled = vlmspec.compile(spec, output=f"excerpt/{Path(spec).stem}")
    whole = (compiled.path / block.values.get("of", "modeling.py")).read_text(encoding="utf-8")
    at = 0
    for piece in re.split(r"^\s*\.\.\.\n", block.text, flags=re.MULTILINE):
        found = whole.find(piece.strip("\n"), at)
        assert found >= 0, f"{block.place}: {spec} emits no\n{piece}"
        at = found + len(piece.strip("\n"))
