"""A place in one line of the text form, and what may be taken from there."""

import re
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_SPACE = re.compile(r"[ \t]*")
_OPEN, _CLOSE = "([{", ")]}"


class ParseError(ValueError):
    """Text that is not a program, with the place of the fault.

    Attributes:
        line: 1-based line.
        column: 1-based column.
        message: what is wrong.
    """

    def __init__(self, line: int, column: int, message: str):
        super().__init__(line, column, message)
        self.line = line
        self.column = column
        self.message = message

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"


@dataclass(slots=True)
class Cursor:
    """Reads one line from left to right; blanks between tokens do not matter."""

    text: str
    line: int
    position: int = 0

    def error(self, message: str, position: int | None = None) -> ParseError:
        """The fault `message`, here or at `position`."""
        at = self.skip() if position is None else position
        return ParseError(self.line, at + 1, message)

    def skip(self) -> int:
        """Move over blanks; gives the position."""
        found = _SPACE.match(self.text, self.position)
        assert found is not None
        self.position = found.end()
        return self.position

    def peek(self, token: str) -> bool:
        return self.text.startswith(token, self.skip())

    def take(self, token: str) -> bool:
        """Move over `token` if it stands here."""
        found = self.peek(token)
        if found:
            self.position += len(token)
        return found

    def word(self, word: str) -> bool:
        """Move over `word` if it stands here as a whole word."""
        end = self.skip() + len(word)
        following = self.text[end : end + 1]
        if self.text.startswith(word, self.position) and not (
            following.isalnum() or following in {"_", ".", "-", "("}
        ):
            self.position = end
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise self.error(f"expected `{token}`")

    def closed(self, value: T, token: str) -> T:
        """Give `value` once `token` has followed it."""
        self.expect(token)
        return value

    def match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        """Move over what a pattern matches."""
        found = pattern.match(self.text, self.skip())
        if found is None:
            raise self.error(f"expected {what}")
        self.position = found.end()
        return found

    def until_delimiter(self) -> str:
        """Take everything up to the comma or closing bracket that belongs to what surrounds it."""
        start, depth = self.skip(), 0
        while self.position < len(self.text):
            character = self.text[self.position]
            if character in _OPEN:
                depth += 1
            elif character in _CLOSE:
                depth -= 1
            if depth < 0 or (depth == 0 and character == ","):
                break
            self.position += 1
        return self.text[start : self.position]

    def end(self) -> None:
        """Nothing but blanks may follow."""
        if self.skip() < len(self.text):
            raise self.error("nothing more may stand on this line")
