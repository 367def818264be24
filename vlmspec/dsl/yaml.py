"""Reading a YAML document into a tree of values, each with its place.

PyYAML's scanner and parser give a stream of events. No constructor or resolver of it is used and
nothing recurses before the depth is known, so no document can run code, expand or overflow.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)
from yaml.events import MappingEndEvent as MapEnd
from yaml.events import SequenceEndEvent as ListEnd
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from vlmspec.diagnostics.model import Diagnostics, Label, Source, Span
from vlmspec.diagnostics.text import HIDDEN, quote
from vlmspec.dsl.yaml_nodes import ListNode, MapNode, Node, Scalar, ScalarNode, locate
from vlmspec.dsl.yaml_scalars import NumberError, resolve_plain
from vlmspec.dsl.yaml_syntax import reword

__all__ = [
    "ListNode",
    "MapNode",
    "Node",
    "Scalar",
    "ScalarNode",
    "load_document",
    "locate",
    "read_source",
]

MAX_BYTES = 2**20
MAX_DEPTH = 64
MAX_NODES = 50_000
# Nobody reads more, and a hostile file could otherwise give one problem for each of its bytes.
MAX_PROBLEMS = 100


def read_source(path: str | os.PathLike[str], name: str | None = None) -> Source:
    """Read a text file that may hold a document.

    Args:
        path: the file.
        name: how messages call it; the path if not given.

    Raises:
        SpecError: if it cannot be opened, is too large, is not UTF-8 or holds hidden characters.
    """
    name = os.fspath(path) if name is None else name
    found = Diagnostics()
    data = _read_bytes(path, name, found)
    found.raise_if_errors()
    source = Source(name, data.decode("utf-8-sig", errors="replace"))
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `start` counts bytes after the byte order mark; what stands before it decodes alone.
        before = error.object[: error.start].decode("utf-8-sig")
        found.error("VS005", "the file is not UTF-8", source.span(len(before), len(before) + 1))
    else:
        _check_text(source, found)
    found.raise_if_errors()
    return source


def load_document(source: Source) -> MapNode:
    """Read the one mapping that a document consists of.

    Raises:
        SpecError: with every problem that was found; only what breaks the YAML itself or a limit
            stops at once.
    """
    found = Diagnostics()
    _check_text(source, found)
    found.raise_if_errors()
    root = _Builder(source, found).build()
    if not found.has_errors and not isinstance(root, MapNode):
        is_empty = root is None or (isinstance(root, ScalarNode) and root.value is None)
        kind = "is empty" if is_empty else "is not a mapping"
        span = source.span(0) if root is None else root.span
        found.error("VS020", f"the document {kind}", span, help="start with `vlmspec: 1`")
    found.raise_if_errors()
    assert isinstance(root, MapNode)
    return root


def _read_bytes(path: str | os.PathLike[str], name: str, found: Diagnostics) -> bytes:
    nowhere = Source(name, "").span(0)
    try:
        # Opening a pipe would wait for a writer for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            found.error("VS002", f"{quote(name)} is not a regular file", nowhere)
            return b""
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        found.error("VS001", f"there is no file {quote(name)}", nowhere)
        return b""
    # A path with a NUL character is a ValueError.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        found.error("VS002", f"cannot read {quote(name)}: {reason}", nowhere)
        return b""
    if len(data) > MAX_BYTES:
        found.error("VS004", f"{quote(name)} is larger than 1 MiB", nowhere)
    return data


def _check_text(source: Source, found: Diagnostics) -> None:
    if len(source.text) > MAX_BYTES:
        found.error("VS004", f"{quote(source.name)} is larger than 1 MiB", source.span(0))
        return
    for match in HIDDEN.finditer(source.text):
        if len(found) >= MAX_PROBLEMS:
            break
        number = f"U+{ord(match.group()):04X}"
        span = source.span(match.start(), match.end())
        found.error("VS006", f"hidden character {number}", span, help="delete it")


class _Events(Reader, Scanner, Parser):
    """The first stages of PyYAML and no more: text to tokens to events."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is still being read."""

    start: int
    is_map: bool
    is_key: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, tuple[Span, Node]] = field(default_factory=dict)
    # The key that waits for its value; a refused key waits as None, and its value is dropped.
    key: tuple[str, Span] | None = None
    wants_value: bool = False
    end: int = 0


class _Builder:
    """Builds the tree from events with a stack of its own."""

    def __init__(self, source: Source, found: Diagnostics) -> None:
        self._source = source
        self._found = found
        self._stack: list[_Frame] = []
        self._root: Node | None = None
        self._nodes = 0
        self._documents = 0

    def build(self) -> Node | None:
        """Read all events; None if there is no document."""
        for event in self._events():
            if self._documents > 1 or len(self._found) >= MAX_PROBLEMS:
                break
            match event:
                case DocumentStartEvent():
                    self._start_document(event)
                case SequenceStartEvent() | MappingStartEvent():
                    self._check_properties(event)
                    self._open(event)
                case MapEnd() | ListEnd():
                    self._close(event)
                case AliasEvent() | ScalarEvent():
                    self._check_properties(event)
                    self._scalar(event)
                case _:
                    pass
        return self._root

    def _events(self) -> Iterator[Event]:
        events = _Events(self._source.text)
        try:
            while events.check_event():
                yield events.get_event()
        # Bad escapes and directives leave the scanner as ValueError, OverflowError or IndexError;
        # whatever it raises, it is the document that it could not read.
        except Exception as error:
            problem = reword(error, events.index)
            other = problem.other
            secondary = [Label(self._source.span(other[0]), other[1])] if other else []
            self._found.error(
                problem.code,
                problem.message,
                self._source.span(problem.at),
                help=problem.help,
                secondary=secondary,
            )

    def _stop(self, code: str, message: str, span: Span, help: str) -> None:
        """Report a problem after which reading on could cost too much."""
        self._found.error(code, message, span, help=help)
        self._found.raise_if_errors()

    def _start_document(self, event: DocumentStartEvent) -> None:
        self._documents += 1
        start = event.start_mark.index
        if self._documents > 1:
            span = self._source.span(start, event.end_mark.index)
            self._found.error(
                "VS015", "a second document starts here", span, help="put it into its own file"
            )
        if event.version or event.tags:
            message = "YAML directives are not part of the language"
            at = self._source.text.find("%")
            _, end = self._source.line_bounds(self._source.position(at)[0])
            span = self._source.span(at, end)
            self._found.error("VS016", message, span, help="remove the line")

    def _check_properties(self, event: NodeEvent) -> None:
        """Count a node and refuse its anchor and tag."""
        start, end = event.start_mark.index, event.end_mark.index
        self._nodes += 1
        if self._nodes > MAX_NODES:
            span = self._source.span(start, end)
            message = f"the document holds more than {MAX_NODES} values"
            self._stop("VS018", message, span, "use a part for what repeats")
        if event.anchor is not None:
            sign, what = ("*", "aliases") if isinstance(event, AliasEvent) else ("&", "anchors")
            at = self._source.text.find(sign, start)
            self._found.error(
                "VS012",
                f"{what} are not part of the language",
                self._source.span(at, at + 1 + len(event.anchor)),
                help=f"use a part for what is shared; quote a text that begins with `{sign}`",
            )
        if getattr(event, "tag", None) is not None:
            at = self._source.text.find("!", start)
            self._found.error(
                "VS013",
                "tags are not part of the language",
                self._source.span(at, at + 1),
                help="remove the tag; quote a text that begins with `!`",
            )

    def _open(self, event: SequenceStartEvent | MappingStartEvent) -> None:
        start = event.start_mark.index
        if len(self._stack) >= MAX_DEPTH:
            message = f"lists and mappings are nested more than {MAX_DEPTH} deep"
            self._stop("VS017", message, self._source.span(start), "use a part for inner levels")
        is_key = self._expects_key()
        # What stands inside a refused key is not refused once more.
        if is_key and not any(frame.is_key for frame in self._stack):
            what = "a mapping" if isinstance(event, MappingStartEvent) else "a list"
            span = self._source.span(start, event.end_mark.index)
            self._found.error("VS019", f"a key cannot be {what}", span, help="keys are names")
        frame = _Frame(start, isinstance(event, MappingStartEvent), is_key)
        frame.end = event.end_mark.index
        self._stack.append(frame)

    def _close(self, event: MapEnd | ListEnd) -> None:
        frame = self._stack.pop()
        # The end of an indented block is the start of whatever follows; a bracket has a place.
        if event.end_mark.index > event.start_mark.index:
            frame.end = event.end_mark.index
        span = self._source.span(frame.start, frame.end)
        node = MapNode(frame.entries, span) if frame.is_map else ListNode(tuple(frame.items), span)
        if frame.is_key:
            self._take_key(None, span)
        else:
            self._take_value(node)

    def _scalar(self, event: ScalarEvent | AliasEvent) -> None:
        span = self._trimmed(event.start_mark.index, event.end_mark.index)
        is_key = self._expects_key()
        value: Scalar = None
        if isinstance(event, ScalarEvent):
            value = self._value(event, span)
        if not is_key:
            self._take_value(ScalarNode(value, span))
        elif isinstance(event, AliasEvent):
            self._take_key(None, span)
        else:
            self._take_key(self._key_name(value, span), span)

    def _value(self, event: ScalarEvent, span: Span) -> Scalar:
        if event.style:
            hidden = HIDDEN.search(event.value)
            if hidden:
                number = f"U+{ord(hidden.group()):04X}"
                message = f"the text holds the hidden character {number} as an escape"
                self._found.error("VS006", message, span, help="remove the escape")
            return event.value
        try:
            return resolve_plain(event.value)
        except NumberError as error:
            self._found.error(error.code, f"{error}: {quote(event.value)}", span, help=error.help)
            return 0

    def _key_name(self, value: Scalar, span: Span) -> str | None:
        if value == "<<":
            message = "merge keys are not part of the language"
            help = "use a part for what is shared"
            self._found.error("VS014", message, span, help=help)
            return None
        if isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        what = quote(span.text) if span.text else "empty"
        self._found.error("VS019", f"a key cannot be {what}", span, help="put the key in quotes")
        return None

    def _expects_key(self) -> bool:
        return bool(self._stack) and self._stack[-1].is_map and not self._stack[-1].wants_value

    def _take_key(self, name: str | None, span: Span) -> None:
        frame = self._stack[-1]
        frame.key = None if name is None else (name, span)
        frame.wants_value = True
        frame.end = max(frame.end, span.end)
        if name is not None and name in frame.entries:
            first = Label(frame.entries[name][0], "first given here")
            message = f"the key {quote(name)} is given twice"
            help = "remove or rename one of the two"
            self._found.error("VS011", message, span, "given again", help, secondary=[first])
            frame.key = None

    def _take_value(self, node: Node) -> None:
        if not self._stack:
            self._root = node
            return
        frame = self._stack[-1]
        frame.end = max(frame.end, node.span.end)
        if not frame.is_map:
            frame.items.append(node)
            return
        if frame.key is not None:
            name, span = frame.key
            frame.entries[name] = (span, node)
        frame.key, frame.wants_value = None, False

    def _trimmed(self, start: int, end: int) -> Span:
        """Make a span without the blank end that belongs to a block text."""
        text = self._source.text
        while end > start and text[end - 1] in " \n\r\t":
            end -= 1
        return self._source.span(start, end)
