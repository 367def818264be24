"""The pages of the documentation as data: fenced blocks, links, headings, tables.

The first word of a fence is its language; the others say how the block is checked:

    yaml architecture   a whole document, which must compile
    yaml part           a whole part, which must compile in a spec that uses it
    yaml fragment       sections of an architecture, put into a small host
    yaml part-fragment  sections of a part, put into a small host; a list is its `body`
    yaml file=NAME      a file, which the commands and snippets below it find
    ... error           the document is at fault; the next block is what is said of it
    console             commands after `$ `, and what they print; `...` stands for left-out lines
    sh                  commands, one a line; a comment starts with `#`
    sh manual           commands that no test runs: they take minutes, or change the machine
    python              a snippet; those of one page run in order and share their names
    python file=NAME    a file
    python excerpt=...  lines that the emitted package of the named spec has
    text output         what the snippet above it prints; `...` as in a console
    text                an illustration
"""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = ("ops.md", "diagnostics.md")
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


LANGUAGES = {"yaml", "console", "sh", "python", "text", "json"}
_FENCE = re.compile(r"^(`{3,})(.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its page's path.
        line: of its first line of content, counted from 1.
        language: the first word of its fence.
        marks: the other words without `=`.
        values: the others, by what stands before the `=`.
    """

    page: Path
    line: int
    language: str
    text: str
    marks: frozenset[str] = frozenset()
    values: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.page.name}:{self.line}"


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """Every fenced block of a page, in order."""
    found, start, fence, info = [], 0, "", ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        match = _FENCE.match(line)
        if not fence and match:
            start, fence, info = number, match[1], match[2].strip()
        elif fence and line.strip() == fence:
            text = "\n".join(lines[start : number - 1]) + "\n"
            language, *words = info.split() or [""]
            values = dict(word.split("=", 1) for word in words if "=" in word)
            marks = frozenset(word for word in words if "=" not in word)
            found.append(Block(page, start + 1, language, text, marks, values))
            fence = ""
    assert not fence, f"{page.name}:{start}: this fence is not closed"
    return tuple(found)


@cache
def prose(page: Path) -> tuple[tuple[int, str], ...]:
    """The numbered lines outside of fenced blocks."""
    inside, found = False, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            found.append((number, line))
    return tuple(found)


def anchors(page: Path) -> set[str]:
    """The anchors that headings get: small letters, no punctuation, dashes for spaces."""
    found: dict[str, int] = {}
    names = set()
    for _, line in prose(page):
        if match := re.match(r"^#{1,6} +(.*?) *$", line):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])
            name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            count = found.get(name, 0)
            found[name] = count + 1
            names.add(f"{name}-{count}" if count else name)
    return names


def links(page: Path) -> list[tuple[int, str]]:
    """Every link of a page with its line; code is no link."""
    found = []
    for number, line in prose(page):
        plain = re.sub(r"`[^`]*`", "", line)
        found += [(number, target) for target in re.findall(r"\]\(([^)\s]+)\)", plain)]
    return found


def tables(page: Path) -> list[list[tuple[int, list[str]]]]:
    """Every table, as numbered rows of cells."""
    found: list[list[tuple[int, list[str]]]] = []
    last = -1
    for number, line in prose(page):
        if not line.lstrip().startswith("|"):
            continue
        cells = re.split(r"(?<!\\)\|", line.strip())[1:-1]
        if number != last + 1:
            found.append([])
        found[-1].append((number, [cell.strip() for cell in cells]))
        last = number
    return found
