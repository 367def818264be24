"""Characters that hide, and text made safe to print."""

import re
import unicodedata

# Everything that prints as nothing, reorders its neighbours or passes for a plain space: controls,
# format characters, fillers, variation selectors, separators, surrogates and non-characters.
HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\xa0\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891"
    "\u08e2\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u3000\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U0001fffe\U0001ffff\U000e0000-\U000e0fff]"
)

_TAB_WIDTH = 4


def visible(char: str) -> str:
    """Give the text that stands for one character of a source line on a terminal."""
    if char == "\t":
        return " " * _TAB_WIDTH
    if char in "\n\r" or HIDDEN.match(char):
        return f"<U+{ord(char):04X}>"
    return char


def cell_width(char: str) -> int:
    """Count the terminal cells that `visible(char)` takes."""
    shown = visible(char)
    if len(shown) > 1:
        return len(shown)
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def printable(text: str) -> str:
    """Replace what could move the cursor, change colours or hide in a message.

    Messages quote what the user wrote, so a terminal escape in a file must not reach the terminal.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(visible, text))


def quote(text: str, limit: int = 60) -> str:
    """Quote user text in backticks for a message, clipped to `limit` characters."""
    return f"`{printable(text if len(text) <= limit else text[: limit - 3] + '...')}`"
