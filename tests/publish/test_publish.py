import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlmspec import publish
from vlmspec.publish import NotOurs, manifest_text, publish_folder, recover, verify_manifest

# Publishes two versions in turn for as long as it lives; a version is known by its number.
WRITER = """
import sys
from pathlib import Path
from vlmspec.publish import manifest_text, publish_folder

target, rounds = Path(sys.argv[1]), int(sys.argv[3])
versions = [int(version) for version in sys.argv[2].split(",")]
for turn in range(rounds):
    version = versions[turn % len(versions)]
    files = {f"part{i}.py": f"VERSION = {version}\\n" * 500 for i in range(8)}
    files["kernels/one.py"] = f"VERSION = {version}\\n"
    files["manifest.json"] = manifest_text(files, {"version": version})
    publish_folder(target, files)
    print(turn, flush=True)
"""


def package(version: int) -> dict[str, str | bytes]:
    files: dict[str, str | bytes] = {
        "modeling.py": f"VERSION = {version}\n",
        "kernels/attention.py": b"# kernel\n",
        "__init__.py": "",
    }
    return {**files, "manifest.json": manifest_text(files, {"version": version})}


def version_of(target: Path) -> int:
    """Give the version of a whole package, and fail for a mixed or damaged one."""
    assert verify_manifest(target) == []
    return publish.read_manifest(target)["version"]


def litter(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith("."))


@pytest.fixture(params=["exchange", "aside"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "aside":
        monkeypatch.setattr(publish, "_exchange", lambda one, other: False)
    return request.param


def test_publish_writes_exactly_the_files(tmp_path: Path) -> None:
    target = tmp_path / "new" / "llava"
    assert publish_folder(target, package(1)) is True
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert found == set(package(1))
    assert version_of(target) == 1
    assert litter(target.parent) == []


def test_publish_replaces_an_earlier_package(tmp_path: Path, swap: str) -> None:
    target = tmp_path / "llava"
    publish_folder(target, {**package(1)})
    assert publish_folder(target, package(2)) is True
    assert version_of(target) == 2
    assert litter(tmp_path) == []


def test_publish_leaves_an_identical_package_alone(tmp_path: Path) -> None:
    target = tmp_path / "llava"
    publish_folder(target, package(1))
    (target / "__pycache__").mkdir()
    before = target.stat().st_ino
    assert publish_folder(target, package(1)) is False
    assert target.stat().st_ino == before


def test_publish_fills_an_empty_folder(tmp_path: Path, swap: str) -> None:
    target = tmp_path / "llava"
    target.mkdir()
    assert publish_folder(target, package(1)) is True
    assert version_of(target) == 1


def test_publish_follows_a_link_to_a_folder(tmp_path: Path) -> None:
    publish_folder(tmp_path / "real", package(1))
    (tmp_path / "link").symlink_to("real")
    publish_folder(tmp_path / "link", package(2))
    assert (tmp_path / "link").is_symlink()
    assert version_of(tmp_path / "real") == 2


def test_publish_refuses_a_foreign_folder(tmp_path: Path) -> None:
    target = tmp_path / "work"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(NotOurs, match="not written by vlmspec.*work"):
        publish_folder(target, package(1))
    assert (target / "thesis.tex").read_text() == "years of work"
    assert litter(tmp_path) == []


@pytest.mark.parametrize("text", ["[]", "{}", '{"generator": "other"}', "{", "[" * 100_000])
def test_publish_refuses_a_folder_with_another_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(NotOurs):
        publish_folder(tmp_path, package(1))


def test_publish_refuses_a_file(tmp_path: Path) -> None:
    target = tmp_path / "llava"
    target.write_text("mine")
    with pytest.raises(NotOurs, match="a file stands"):
        publish_folder(target, package(1), force=True)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("name", ["modeling.py", "notes.txt"])
def test_publish_refuses_a_package_changed_by_hand_unless_forced(tmp_path: Path, name: str) -> None:
    target = tmp_path / "llava"
    publish_folder(target, package(1))
    (target / name).write_text("by hand")
    with pytest.raises(NotOurs, match=rf"changed by hand \({name}\)"):
        publish_folder(target, package(2))
    assert publish_folder(target, package(2), force=True) is True
    assert version_of(target) == 2


def test_force_does_not_replace_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(NotOurs, match="home or working folder"):
        publish_folder(tmp_path, package(1), force=True)


@pytest.mark.parametrize("name", ["../x.py", "/x.py", "a/../x.py", "a\\x.py", "", ".", "a//b.py"])
def test_publish_refuses_names_outside_the_package(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a relative path"):
        publish_folder(tmp_path / "llava", {**package(1), name: ""})


def test_publish_requires_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest\.json"):
        publish_folder(tmp_path / "llava", {"modeling.py": ""})


def test_verify_manifest_names_changed_removed_and_added_files(tmp_path: Path) -> None:
    target = tmp_path / "llava"
    publish_folder(target, package(1))
    (target / "modeling.py").write_text("changed")
    (target / "__init__.py").unlink()
    (target / "extra.py").write_text("")
    assert verify_manifest(target) == ["__init__.py", "extra.py", "modeling.py"]


def test_verify_manifest_notices_each_flipped_bit(tmp_path: Path) -> None:
    target = tmp_path / "llava"
    publish_folder(target, package(1))
    path = target / "modeling.py"
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        assert verify_manifest(target) == ["modeling.py"]


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_leftovers_of_dead_runs_are_removed_and_of_live_ones_kept(tmp_path: Path) -> None:
    for pid in (dead_pid(), os.getppid()):
        (tmp_path / f".llava.tmp-{pid}-00ff00ff").mkdir()
        (tmp_path / f".llava.tmp-{pid}-00ff00ff" / "modeling.py").write_text("half")
    (tmp_path / ".llava2.tmp-1-00").mkdir()
    publish_folder(tmp_path / "llava", package(1))
    assert litter(tmp_path) == [f".llava.tmp-{os.getppid()}-00ff00ff", ".llava2.tmp-1-00"]


def test_a_half_done_swap_is_rolled_back(tmp_path: Path) -> None:
    publish_folder(tmp_path / "llava", package(1))
    (tmp_path / "llava").rename(tmp_path / f".llava.old-{dead_pid()}-00ff00ff")
    recover(tmp_path / "llava")
    assert version_of(tmp_path / "llava") == 1
    assert litter(tmp_path) == []


def test_a_finished_swap_is_rolled_forward(tmp_path: Path) -> None:
    publish_folder(tmp_path / "other", package(1))
    publish_folder(tmp_path / "llava", package(2))
    (tmp_path / "other").rename(tmp_path / f".llava.old-{dead_pid()}-00ff00ff")
    recover(tmp_path / "llava")
    assert version_of(tmp_path / "llava") == 2
    assert litter(tmp_path) == []


OPERATIONS = ["_make_folder", "_write_file", "_sync", "_rename", "_exchange"]


class Failing:
    """Wraps the operations of the module, and fails the n-th call of any of them."""

    def __init__(self, n: int, error: BaseException) -> None:
        self.n, self.error, self.calls = n, error, 0

    def wrap(self, name: str, real):
        def operation(path: Path, *rest):
            self.calls += 1
            if self.calls == self.n:
                if name == "_write_file":  # a full disk leaves half a file
                    path.write_bytes(rest[0][: len(rest[0]) // 2])
                raise self.error
            return real(path, *rest)

        return operation


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("earlier", [False, True], ids=["fresh", "replace"])
def test_any_failing_operation_leaves_the_old_or_the_new(
    tmp_path: Path, swap: str, earlier: bool, error: BaseException
) -> None:
    n, finished = 0, False
    while not finished:
        n += 1
        target = tmp_path / str(n) / "llava"
        if earlier:
            publish_folder(target, package(1))
        failing = Failing(n, error)
        with pytest.MonkeyPatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(publish, name, failing.wrap(name, getattr(publish, name)))
            try:
                publish_folder(target, package(2))
                finished = True
            except type(error):
                pass
        if target.exists():
            assert version_of(target) in ({1, 2} if earlier else {2})
        else:
            assert not earlier
        assert litter(target.parent) == []
        assert publish_folder(target, package(3)) is True
    assert n > 10


def test_killing_the_writer_never_mixes_versions(tmp_path: Path) -> None:
    target = tmp_path / "llava"
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    choose = random.Random(20)
    kills = 0
    for _ in range(20):
        command = [sys.executable, "-P", str(script), str(target), "1,2", "100000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(choose.uniform(0, 0.03))
            kills += writer.poll() is None
            writer.send_signal(signal.SIGKILL)
        assert version_of(target) in {1, 2}
    assert kills == 20
    assert publish_folder(target, package(3)) is True
    assert version_of(target) == 3
    assert litter(tmp_path) == []


def test_processes_publish_at_once_without_errors(tmp_path: Path) -> None:
    target = tmp_path / "llava"
    script = tmp_path / "writer.py"
    script.write_text(WRITER)

    def work(version: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", str(script), str(target), f"{version},{version + 1}", "10"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert [result.stderr for result in results if result.returncode] == []
    assert version_of(target) in range(9)
    assert litter(tmp_path) == []


def test_manifest_text_is_deterministic() -> None:
    text = manifest_text({"b.py": "b", "a.py": b"a"}, {"version": 1})
    assert list(json.loads(text)["files"]) == ["a.py", "b.py"]
    assert text == manifest_text({"a.py": b"a", "b.py": "b"}, {"version": 1})
