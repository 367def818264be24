"""The tree that a document is read into: plain values with the place of each."""

from dataclasses import dataclass
from typing import TypeAlias

from vlmspec.diagnostics.model import Span

Scalar: TypeAlias = str | int | float | bool | None
Plain: TypeAlias = "Scalar | list[Plain] | dict[str, Plain]"

# pydantic ends the `loc` of a bad key with this word instead of the name of a field.
_KEY_MARK = "[key]"


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A single value."""

    value: Scalar
    span: Span

    def plain(self) -> Plain:
        """Give the value as Python data."""
        return self.value


@dataclass(frozen=True, slots=True)
class ListNode:
    """A list."""

    items: tuple["Node", ...]
    span: Span

    def plain(self) -> Plain:
        """Give the list as Python data."""
        return [item.plain() for item in self.items]


@dataclass(frozen=True, slots=True)
class MapNode:
    """A mapping; each key goes with its own span and its value."""

    items: dict[str, tuple[Span, "Node"]]
    span: Span

    def get(self, key: str) -> "Node | None":
        """Give the value of a key, or None."""
        entry = self.items.get(key)
        return entry[1] if entry else None

    def key_span(self, key: str) -> Span:
        """Give the place of a key itself; the whole mapping if it has no such key."""
        entry = self.items.get(key)
        return entry[0] if entry else self.span

    def plain(self) -> Plain:
        """Give the mapping as Python data."""
        return {key: node.plain() for key, (_, node) in self.items.items()}


Node: TypeAlias = ScalarNode | ListNode | MapNode


def locate(node: Node, loc: tuple[str | int, ...], key: bool = False) -> Span:
    """Find the place of a pydantic `loc`, as far as it resolves.

    Parts that do not resolve are skipped: pydantic puts the tags of unions and the names of
    validators into `loc`, and a missing field is best shown at the mapping that lacks it.

    Args:
        node: where the path starts.
        loc: keys and indices.
        key: whether to give the span of the last resolved key instead of its value.
    """
    key_span = None
    for part in loc:
        if isinstance(node, MapNode) and str(part) in node.items:
            key_span, node = node.items[str(part)]
        elif isinstance(node, ListNode) and isinstance(part, int) and -1 < part < len(node.items):
            node = node.items[part]
            key_span = node.span
        elif part == _KEY_MARK:
            key = True
    return key_span if key and key_span else node.span
