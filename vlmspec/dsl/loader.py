"""From a name or a file to validated documents; every fault carries its place."""

from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from vlmspec.diagnostics.model import Diagnostics, Source, Span, SpecError, suggest
from vlmspec.dsl.faults import report
from vlmspec.dsl.schema import Architecture, Part
from vlmspec.dsl.yaml import load_document, read_source
from vlmspec.dsl.yaml_nodes import MapNode, locate

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """A validated document, the tree that it came from, and the folder where it lies."""

    document: T
    tree: MapNode
    source: Source
    folder: Path

    def span(self, *loc: str | int, key: bool = False) -> Span:
        return locate(self.tree, loc, key)


def bundled_folder() -> Path:
    """The folder of the specs that come with the package."""
    return Path(str(resources.files("vlmspec.specs")))


def bundled_specs() -> list[str]:
    """Names of the specs that come with the package, sorted."""
    return sorted(path.stem for path in bundled_folder().glob("*.yaml"))


def find_spec(spec: str | Path) -> Path:
    """Resolve a bundled spec's name or a path.

    Raises:
        SpecError: when there is no such spec; suggests the nearest name.
    """
    path = Path(spec)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    if (bundled := bundled_folder() / f"{spec}.yaml").is_file():
        return bundled
    if path.is_file():
        return path
    found = Diagnostics()
    near = suggest(str(spec), bundled_specs())
    mend = f"did you mean `{near}`?" if near else "`vlmspec list` shows the bundled specs"
    mend += "; a file is given by its path, as in `my.yaml`"
    found.error("VS001", f"no bundled spec is called `{spec}`", help=mend)
    raise SpecError(found)


def load_architecture(spec: str | Path) -> Loaded[Architecture]:
    """Read and validate an architecture.

    Raises:
        SpecError: with every fault of the document.
    """
    path = find_spec(spec)
    return _load(path, display_name(path), Architecture, "part", "an architecture")


def load_part(name: str, folder: Path) -> Loaded[Part] | None:
    """Read and validate a part: one beside the spec, else a bundled one; None if there is none."""
    for home in (folder, bundled_folder()):
        path = home / "parts" / f"{name}.yaml"
        if path.is_file():
            _check_inside(path, home)
            return _load(path, display_name(path), Part, "graph", "a part")
    return None


def _check_inside(path: Path, home: Path) -> None:
    """Refuse a part that is a link out of the spec's folder: it could name any file."""
    if path.resolve().is_relative_to(home.resolve()):
        return
    found = Diagnostics()
    message = "this part is a link to a file outside the spec's folder"
    mend = "copy the part into the folder"
    found.error("VS003", message, Source(display_name(path.absolute()), "").span(0), help=mend)
    raise SpecError(found)


def part_names(folder: Path) -> list[str]:
    """Names of the parts that a spec in `folder` may use."""
    places = (folder / "parts", bundled_folder() / "parts")
    return sorted({path.stem for place in places for path in place.glob("*.yaml")})


def display_name(path: Path) -> str:
    """How messages and emitted comments call a file: bundled ones by their place in `specs/`.

    Others are called as they were given, or by their place in the working folder.
    """
    homes = ((bundled_folder(), Path("specs")), (Path.cwd(), Path()))
    for home, name in homes[: 2 if path.is_absolute() else 1]:
        with suppress(ValueError, OSError, RuntimeError):
            return (name / path.resolve().relative_to(home.resolve())).as_posix()
    return str(path)


def _load(path: Path, name: str, model: type[M], other: str, what: str) -> Loaded[M]:
    source = read_source(path, name)
    tree = load_document(source)
    found = Diagnostics()
    if other in tree.items and other not in model.model_fields:
        found.error(
            "VS108",
            f"this document is not {what}",
            tree.key_span(other),
            help="a document with `graph:` is an architecture, one with `part:` is a part",
        )
        raise SpecError(found)
    try:
        document = model.model_validate(tree.plain(), by_alias=True)
    except ValidationError as error:
        report(found, error, tree, model)
        raise SpecError(found) from None
    return Loaded(document, tree, source, path.resolve().parent)


__all__ = [
    "Loaded",
    "bundled_folder",
    "bundled_specs",
    "display_name",
    "find_spec",
    "load_architecture",
    "load_part",
    "part_names",
    "report",
]
