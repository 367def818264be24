"""Publish an emitted package: all of it, in one step, or nothing.

Everything is written into a hidden folder beside the target and moved into place when it is
complete. On Linux an earlier package changes places with the new one in one system call; elsewhere
it steps aside first, and a run that was killed between the two renames is put right by the next.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"
GENERATOR = "vlmspec"

_MANIFEST_LIMIT = 4 << 20
_LOCK_SECONDS = 60
_IGNORED = "__pycache__"


class NotOurs(OSError):
    """What stands at the target was not written by vlmspec, or was changed since."""


def manifest_text(files: Mapping[str, str | bytes], facts: Mapping[str, Any]) -> str:
    """Return the text of `manifest.json` for `files`, with further `facts` at its top level."""
    entries = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in ((name, _encode(files[name])) for name in sorted(files))
        if name != MANIFEST
    }
    return json.dumps({"generator": GENERATOR, **facts, "files": entries}, indent=2) + "\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the package folder `path`.

    Raises:
        OSError: if there is no readable manifest.
        ValueError: if the manifest is not a JSON object.
    """
    with open(path / MANIFEST, "rb") as file:
        data = file.read(_MANIFEST_LIMIT + 1)
    if len(data) > _MANIFEST_LIMIT:
        raise ValueError(f"{path / MANIFEST} is larger than {_MANIFEST_LIMIT >> 20} MiB")
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path / MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path / MANIFEST} is not a JSON object")
    return manifest


def verify_manifest(path: Path) -> list[str]:
    """Return the files of the package `path` that were changed, removed or added by others."""
    expected = read_manifest(path).get("files", {})
    if not isinstance(expected, dict):
        raise ValueError(f"{path / MANIFEST} has no table of files")
    found = {name for name in _list_files(path) if name != MANIFEST}
    changed = found ^ set(expected)
    for name in found & set(expected):
        entry = expected[name]
        digest = entry.get("sha256") if isinstance(entry, dict) else entry
        if hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
            changed.add(name)
    return sorted(changed)


def is_ours(path: Path) -> bool:
    """Say whether vlmspec wrote the folder `path`."""
    try:
        return read_manifest(path).get("generator") == GENERATOR
    except (OSError, ValueError):
        return False


def publish_folder(
    target: Path,
    files: Mapping[str, str | bytes],
    *,
    owner_check: Callable[[Path], bool] = is_ours,
    force: bool = False,
) -> bool:
    """Make the folder `target` hold exactly `files`.

    Args:
        target: the folder; its parents are created.
        files: contents by relative path with forward slashes; `manifest.json` must be one of them.
        owner_check: says whether an existing folder may be replaced.
        force: replace a folder that is not ours, or whose files were changed, as well.

    Returns:
        False if the folder was byte for byte the same and was left alone.

    Raises:
        NotOurs: if the target is a file, or a folder that must not be replaced.
        OSError: if anything could not be written; the target is then as it was.
    """
    contents = {_checked_name(name): _encode(data) for name, data in files.items()}
    if MANIFEST not in contents:
        raise ValueError(
            f"a package needs a {MANIFEST}: without one it would not be ours next time"
        )
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        recover(target)
        if os.path.lexists(target):
            if _same(target, contents):
                return False
            _refuse_foreign(target, owner_check, force)
        _write_and_swap(target, contents)
    return True


def recover(target: Path) -> None:
    """Remove what killed runs left beside `target`, and finish or undo a half-done swap."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(tmp|old)-(\d+)-[0-9a-f]+")
    for entry in sorted(os.listdir(target.parent)):
        match = pattern.fullmatch(entry)
        if match is None or _alive(int(match[2])):
            continue
        leftover = target.parent / entry
        if match[1] == "old" and not os.path.lexists(target):
            _rename(leftover, target)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _write_and_swap(target: Path, contents: Mapping[str, bytes]) -> None:
    stem = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.parent / f".{target.name}.tmp-{stem}"
    try:
        _write_all(temporary, contents)
        if not os.path.lexists(target):
            _rename(temporary, target)
        elif not _exchange(temporary, target):
            _step_aside(temporary, target, target.parent / f".{target.name}.old-{stem}")
        _sync(target.parent)
    finally:
        # Never published, or the earlier package after the exchange. What stays is litter that the
        # next run removes.
        shutil.rmtree(temporary, ignore_errors=True)


def _step_aside(temporary: Path, target: Path, aside: Path) -> None:
    _rename(target, aside)
    try:
        _rename(temporary, target)
    except BaseException:
        if not os.path.lexists(target):
            _rename(aside, target)
        raise
    finally:
        if os.path.lexists(target):
            shutil.rmtree(aside, ignore_errors=True)


def _write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    _make_folder(folder)
    folders = {folder}
    for name in sorted(contents, key=lambda name: (name == MANIFEST, name)):
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents):
            if folder / parent not in folders:
                _make_folder(folder / parent)
                folders.add(folder / parent)
        _write_file(path, contents[name])
    for path in sorted(folders, reverse=True):
        _sync(path)


def _make_folder(path: Path) -> None:
    os.mkdir(path)


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
    _sync(path)


def _rename(source: Path, target: Path) -> None:
    os.rename(source, target)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; return False where the system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    at_current_folder, exchange = -100, 2
    paths = os.fsencode(one), os.fsencode(other)
    if renameat2(at_current_folder, paths[0], at_current_folder, paths[1], exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(target.parent / f".{target.name}.lock", timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        text = "another process has been writing it for a minute"
        raise TimeoutError(errno.ETIMEDOUT, text, str(target)) from error
    try:
        yield
    finally:
        # Waiters notice that the file they locked has lost its name, and start over.
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _refuse_foreign(target: Path, owner_check: Callable[[Path], bool], force: bool) -> None:
    if not target.is_dir():
        raise NotOurs(errno.EEXIST, "a file stands where the package should go", str(target))
    if not any(target.iterdir()):
        return
    ours = owner_check(target)
    if force:
        here = [Path(os.path.realpath(path)) for path in (Path.cwd(), Path.home())]
        if not ours and any(path == target or target in path.parents for path in here):
            raise NotOurs(errno.EEXIST, "the folder holds your home or working folder", str(target))
        return
    if not ours:
        raise NotOurs(errno.EEXIST, f"the folder was not written by {GENERATOR}", str(target))
    if is_ours(target) and (changed := verify_manifest(target)):
        names = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        raise NotOurs(errno.EEXIST, f"the package was changed by hand ({names})", str(target))


def _same(target: Path, contents: Mapping[str, bytes]) -> bool:
    if not target.is_dir() or set(_list_files(target)) != set(contents):
        return False
    return all((target / name).read_bytes() == data for name, data in contents.items())


def _list_files(folder: Path) -> list[str]:
    names = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != _IGNORED]
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in files]
    return names


def _checked_name(name: str) -> str:
    path = PurePosixPath(name)
    if str(path) != name or path.is_absolute() or {".", ".."} & {name, *path.parts} or "\\" in name:
        raise ValueError(f"not a relative path inside the package: {name!r}")
    return name


def _encode(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _alive(pid: int) -> bool:
    # We hold the lock, so a folder of our own process is left over from an earlier call.
    if pid == os.getpid():
        return False
    if os.name == "nt":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
