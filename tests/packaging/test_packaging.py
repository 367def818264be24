"""The explicit list of packages, and what may be imported under which name."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP = {"vlmspec": "vlmspec", "vlmspec.compiler": "compiler", "vlmspec.kernels": "kernels"}


@pytest.fixture(scope="module")
def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_below(name: str, folder: Path) -> set[str]:
    found = {name}
    for init in folder.rglob("__init__.py"):
        parts = init.parent.relative_to(folder).parts
        linked = any((folder / Path(*parts[: i + 1])).is_symlink() for i in range(len(parts)))
        if not linked:
            found.add(".".join([name, *parts]))
    return found


def test_list_of_packages_equals_the_folders(settings: dict) -> None:
    found = {"vlmspec.specs"}
    for name, folder in TOP.items():
        found |= packages_below(name, ROOT / folder)
    assert sorted(found) == settings["tool"]["setuptools"]["packages"]


@pytest.mark.parametrize("folder", TOP.values())
def test_every_folder_with_python_is_a_package(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


def test_links_for_static_tools_point_to_the_folders() -> None:
    for name in ("compiler", "kernels", "specs"):
        link = ROOT / "vlmspec" / name
        assert link.is_symlink() and link.resolve() == ROOT / name


def test_versions_agree(settings: dict) -> None:
    import vlmspec

    assert settings["project"]["version"] == vlmspec.__version__


def test_every_shipped_yaml_is_package_data(settings: dict) -> None:
    globs = settings["tool"]["setuptools"]["package-data"]["vlmspec.specs"]
    shipped = {path for pattern in globs for path in (ROOT / "specs").glob(pattern)}
    assert shipped == set((ROOT / "specs").rglob("*.yaml"))


def test_top_level_names_are_not_ours() -> None:
    code = "import vlmspec.compiler, vlmspec.kernels, sys; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert {"compiler", "kernels", "specs"} & set(result.stdout.split()) == set()
    for name in ("compiler", "kernels"):
        module = sys.modules.get(name)
        assert module is None or ROOT not in Path(module.__file__ or "/").parents


def test_root_is_not_importable() -> None:
    assert "" not in sys.path
    assert ROOT not in [Path(entry).resolve() for entry in sys.path if entry]
