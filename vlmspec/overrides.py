"""What a request says beside the spec: a variant, a config.json, and `--set`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmspec.compiler.settings import Overrides
from vlmspec.diagnostics.model import Diagnostics, Label, Source, Span
from vlmspec.diagnostics.text import quote
from vlmspec.dsl.faults import near_or_list
from vlmspec.dsl.loader import Loaded
from vlmspec.dsl.schema import Architecture
from vlmspec.dsl.yaml import ScalarNode, load_document
from vlmspec.dsl.yaml_nodes import MapNode
from vlmspec.hf_config import config_span, read_config


def make_overrides(
    loaded: Loaded[Architecture],
    config: str | Path | None,
    variant: str | None,
    given: Iterable[str] | Mapping[str, Any],
    found: Diagnostics,
) -> Overrides:
    """Read what a request sets; faults go to `found`, and what is at fault is left out."""
    architecture, variants = loaded.document, loaded.document.variants
    data = None
    if config is not None:
        data = read_config(Path(config))
        if not _fits(loaded, data, Path(config), found):
            data = None
    if variant is not None and variant not in variants:
        message = f"`{architecture.name}` has no variant {quote(variant)}"
        mend = near_or_list(variant, variants, "there are") or "leave out the variant"
        place = loaded.span("variants", key=True) if variants else loaded.span("name")
        found.error("VS310", message, place, "the variants" if variants else "", mend)
    chosen = variant if variant in variants else next(iter(variants), None)
    values = {} if data is not None and variant is None else variants.get(chosen or "", {})
    parsed = dict(given) if isinstance(given, Mapping) else dict(map(assignment, given))

    def place_in_config(path: str) -> Span | None:
        return None if config is None else config_span(Path(config), path)

    def place_in_variant(path: str) -> Span | None:
        node: Any = loaded.tree
        for part in ("variants", chosen or "", *path.split(".")):
            node = node.get(part) if isinstance(node, MapNode) else None
        return node.span if node is not None else None

    return Overrides(parsed, data, str(config), values, place_in_config, place_in_variant)


def _fits(
    loaded: Loaded[Architecture], data: Mapping[str, Any], config: Path, found: Diagnostics
) -> bool:
    """Whether a config.json is one of this architecture."""
    ours, theirs = loaded.document.model_types, data.get("model_type")
    if not ours or not theirs or theirs in ours:
        return True
    listed = " or ".join(f"`{name}`" for name in ours)
    message = f"the config is of model type {quote(str(theirs))}, and this spec is for {listed}"
    mend = "use the spec of that architecture; `vlmspec list` shows those that are shipped"
    expected = [Label(loaded.span("model_type"), "expected by the spec")]
    found.error("VS406", message, config_span(config, "model_type"), "", mend, secondary=expected)
    return False


def assignment(text: str) -> tuple[str, Any]:
    """One `component.name=value`: numbers, true, false and null as such, the rest as text."""
    name, _, value = text.partition("=")
    if not value.strip() or any(sign in value for sign in "\n\r#"):
        return name.strip(), value
    tree = load_document(Source(f"--set {name}", f"value: {value}"))
    node = tree.get("value")
    return name.strip(), node.value if isinstance(node, ScalarNode) else value
