"""What compiling a spec may open and run: itself, its parts and the package; nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmspec import api
from vlmspec.diagnostics.model import SpecError

TESTS = Path(__file__).parents[1]
SPEC = (Path(__file__).parent / "data" / "sample.yaml").read_text(encoding="utf-8")
PARTS = TESTS / "diagnostics" / "specs" / "parts"

OUTSIDE = [
    "../tower",
    "parts/../../tower",
    "/etc/passwd",
    "//server/share",
    "~root",
    "./tower",
    "tower/",
    "tower.yaml/..",
    "..",
    ".",
    "..%2ftower",
    "..\\tower",
    "C:tower",
    "C:\\tower",
    "tower\\0",
    "tower:stream",
    "file:///etc/passwd",
    "http://localhost/tower",
    "TOWER",
    "Tower",
    "tower ",
    " tower",
    "$HOME",
    "${HOME}/tower",
    "`id`",
    "tower*",
    "tow?r",
    "[t]ower",
    "-tower",
    ".tower",
    "tower..x",
    "con\u00a0",
    "\ufb01le",
    "a" * 65,
    "a" * 300,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "parts").mkdir(parents=True)
    (home / "sample.yaml").write_text(SPEC, encoding="utf-8")
    for name in ("tower", "reader"):
        text = (PARTS / f"{name}.yaml").read_text(encoding="utf-8")
        (home / "parts" / f"{name}.yaml").write_text(text, encoding="utf-8")
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return home


def codes(spec: Path) -> set[str]:
    with pytest.raises(SpecError) as caught:
        api.check(spec)
    return {found.code for found in caught.value.diagnostics}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_part_is_a_plain_name(folder: Path, name: str) -> None:
    spec = folder / "sample.yaml"
    quoted = name.replace("'", "''")
    spec.write_text(SPEC.replace("encoder: tower", f"encoder: '{quoted}'"), encoding="utf-8")
    assert codes(spec) & {"VS104", "VS105", "VS006"}


def test_a_part_is_no_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "parts" / "tower.yaml").unlink()
    (folder / "parts" / "tower.yaml").symlink_to(tmp_path / "tower.yaml")
    assert "VS003" in codes(folder / "sample.yaml")


def test_the_folder_of_parts_is_no_link_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "parts").rename(tmp_path / "elsewhere")
    (folder / "parts").symlink_to(tmp_path / "elsewhere")
    assert "VS003" in codes(folder / "sample.yaml")


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    (folder / "parts" / "tower.yaml").rename(folder / "tower-of-ours.yaml")
    (folder / "parts" / "tower.yaml").symlink_to(folder / "tower-of-ours.yaml")
    api.check(folder / "sample.yaml")


def test_a_spec_that_is_a_link_has_its_parts_where_it_lies(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.yaml").symlink_to(folder / "sample.yaml")
    api.check(tmp_path / "link.yaml")


@pytest.mark.parametrize("make", ["folder", "pipe", "device", "absent", "dangling"])
def test_only_files_are_opened(folder: Path, make: str) -> None:
    spec = folder / "other.yaml"
    match make:
        case "folder":
            spec.mkdir()
        case "pipe":
            os.mkfifo(spec)
        case "device":
            spec.symlink_to("/dev/zero")
        case "dangling":
            spec.symlink_to(folder / "nothing.yaml")
    assert codes(spec) <= {"VS001", "VS002"}


def test_a_pipe_in_the_place_of_a_part_does_not_block(folder: Path) -> None:
    (folder / "parts" / "tower.yaml").unlink()
    os.mkfifo(folder / "parts" / "tower.yaml")
    assert codes(folder / "sample.yaml") == {"VS202"}


def test_a_large_file_is_refused(folder: Path) -> None:
    (folder / "parts" / "tower.yaml").write_text("a: 1\n" * 300_000, encoding="utf-8")
    assert "VS004" in codes(folder / "sample.yaml")


AUDITED = """
import os
import sys
from pathlib import Path

from vlmspec import api

spec, output = map(Path, sys.argv[1:3])
api.compile("llava", output=output / "first")   # imports all that compiling needs
allowed = [spec.parent, output, Path(api.__file__).parent, *map(Path, sys.argv[3:])]
allowed = [str(path.resolve()) for path in allowed]
seen = []


def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not any(path == home or path.startswith(home + "/") for home in allowed):
            seen.append((event, path))
    elif event in ("exec", "import", "os.system", "os.exec", "os.fork", "os.posix_spawn"):
        seen.append((event, repr(arguments)[:200]))
    elif event.startswith(("subprocess.", "socket.", "urllib.", "ctypes.")):
        seen.append((event, repr(arguments)[:200]))
    elif event == "compile" and arguments[1] not in ("<string>", None):
        seen.append((event, repr(arguments)[:200]))


sys.addaudithook(watch)
api.compile(spec, output=output / "second")
hooked = list(seen)
sys.stdout.write("".join(f"{event} {what}\\n" for event, what in hooked))
"""


def test_compiling_opens_and_runs_nothing_else(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    script = tmp_path / "audited.py"
    script.write_text(AUDITED, encoding="utf-8")
    command = [sys.executable, "-P", str(script), str(folder / "sample.yaml"), str(output)]
    import vlmspec.compiler
    import vlmspec.kernels
    import vlmspec.specs

    for module in (vlmspec.compiler, vlmspec.kernels, vlmspec.specs):
        command += [str(path) for path in module.__path__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
