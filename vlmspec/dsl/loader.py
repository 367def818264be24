"""From a name or a file to validated documents; every fault carries its place."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from vlmspec.diagnostics.model import Diagnostics, Source, Span, SpecError, suggest
from vlmspec.dsl.schema import Architecture, Part
from vlmspec.dsl.yaml import load_document, read_source
from vlmspec.dsl.yaml_nodes import MapNode, Node, locate

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
    """Read and validate a part: from `parts/` beside the spec, else from the bundled ones; None if there is none."""
    for parts in (folder / "parts", bundled_folder() / "parts"):
        path = parts / f"{name}.yaml"
        if path.is_file():
            return _load(path, display_name(path), Part, "graph", "a part")
    return None


def part_names(folder: Path) -> list[str]:
    """Names of the parts that a spec in `folder` may use."""
    places = (folder / "parts", bundled_folder() / "parts")
    return sorted({path.stem for place in places for path in place.glob("*.yaml")})


def display_name(path: Path) -> str:
    """How messages and emitted comments call a file: bundled ones by their place in `specs/`."""
    try:
        return f"specs/{path.resolve().relative_to(bundled_folder().resolve()).as_posix()}"
    except ValueError:
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


def report(
    found: Diagnostics, error: ValidationError, node: Node, model: Any, at: Span | None = None
) -> None:
    """Turn pydantic's errors into diagnostics with places; `at` is where a missing key is shown."""
    for item in error.errors(include_url=False):
        _report_one(found, item, node, model, at)


def _report_one(found: Diagnostics, item: Any, node: Node, model: Any, at: Span | None) -> None:
    loc = tuple(item["loc"])
    name = str(loc[-1]) if loc else ""
    context = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            near = suggest(name, known_keys(model, loc[:-1]))
            known = ", ".join(f"`{k}`" for k in known_keys(model, loc[:-1]))
            mend = f"did you mean `{near}`?" if near else f"known here: {known}" if known else None
            found.error("VS101", f"unknown key `{name}`", locate(node, loc, key=True), help=mend)
        case "missing":
            place = at or locate(node, loc[:-1], key=True)
            found.error("VS102", f"`{name}` is missing", place, help=f"add `{name}: …`")
        case "literal_error":
            given = item["input"]
            near = suggest(str(given), _choices(context.get("expected", "")))
            mend = f"did you mean `{near}`?" if near else None
            code = "VS107" if name == "vlmspec" else "VS104"
            message = f"{_show(given)} is not allowed here; expected {context['expected']}"
            found.error(code, message, locate(node, loc), help=mend)
        case "string_pattern_mismatch":
            key = loc[-1] == "[key]"
            message = f"{_show(item['input'])} is not a name"
            mend = "a name starts with a small letter and has small letters, digits and `_`"
            found.error("VS105", message, locate(node, loc, key=key), help=mend)
        case "vlmspec":
            place = locate(node, loc)
            offset = context.get("offset")
            if offset is not None and place.text.startswith(str(item["input"])[:1]):
                start = min(place.start + offset, place.end)
                place = place.source.span(
                    start, min(start + max(context.get("length") or 1, 1), place.end)
                )
            found.error(context["code"], context["message"], place, help=context.get("help"))
        case _:
            message = f"{_show(item['input'])}: {item['msg'][:1].lower()}{item['msg'][1:]}"
            found.error("VS103", message, locate(node, loc))


def known_keys(model: Any, loc: tuple[str | int, ...]) -> Iterable[str]:
    """Names of the fields of the model that `loc` leads to."""
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        model = _inner_model(field.annotation) if field else _inner_model(model)
    fields = getattr(model, "model_fields", {})
    return [field.alias or key for key, field in fields.items()]


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_inner_model(a) for a in getattr(annotation, "__args__", ())]
    return next((m for m in found if m is not None), None)


def _choices(expected: str) -> list[str]:
    return [word.strip("'\" ") for word in expected.replace(" or ", ", ").split(",")]


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, (dict, list)) else f"`{value}`"
    return text if len(text) <= 60 else text[:57] + "…"
