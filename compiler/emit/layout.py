"""Lines as the formatter would break them. Emitters write one statement a line; this module wraps
what is too long."""

from collections.abc import Iterable

WIDTH = 100
OPEN, CLOSE = "([{", ")]}"


def layout(lines: Iterable[str]) -> list[str]:
    """Wrap every statement that is wider than the page; docstrings and comments stay as they
    are."""
    found: list[str] = []
    inside = False
    for line in lines:
        quotes = line.count('"""')
        if inside or quotes or len(line) <= WIDTH:
            found.append(line)
        else:
            found += wrap(line)
        inside ^= quotes == 1
    return found


def wrap(line: str) -> list[str]:
    """Break one statement or list element at its last bracket."""
    body = line.lstrip(" ")
    indent = len(line) - len(body)
    pad, inner = " " * indent, " " * (indent + 4)
    code, comment = _split_comment(body)
    start, end = _last_bracket(code)
    if len(line) <= WIDTH or start < 0:
        return [line]
    head, content, tail = code[: start + 1], code[start + 1 : end], code[end:]
    magic = content.rstrip().endswith(",")
    one = inner + content.strip()
    # The formatter writes a literal one entry a line; the arguments of a call may share one.
    literal = not (head[-2:-1].isalnum() or head[-2:-1] in ("_", ")", "]"))
    if len(one) <= WIDTH and not magic and not (literal and len(split_top(content)) > 1):
        return [pad + head + comment, one, pad + tail]
    found = [pad + head + comment]
    pieces = split_top(content)
    single = len(pieces) == 1 and (" for " in content or not head.rstrip("(").strip())
    for piece in pieces:
        found += wrap(f"{inner}{piece.strip()}{'' if single else ','}")
    return [*found, pad + tail]


def split_top(text: str) -> list[str]:
    """Pieces between the commas that stand outside of brackets and strings."""
    pieces, start = [], 0
    for index, depth, character in _scan(text):
        if character == "," and depth == 0:
            pieces.append(text[start:index])
            start = index + 1
    if text[start:].strip():
        pieces.append(text[start:])
    return pieces


def _last_bracket(code: str) -> tuple[int, int]:
    """Where the last outermost bracket pair with something in it opens and closes; (-1, -1) if
    there is none."""
    stack: list[int] = []
    found = (-1, -1)
    for index, _, character in _scan(code):
        if character in OPEN:
            stack.append(index)
        elif character in CLOSE:
            start = stack.pop()
            if not stack and index > start + 1:
                found = (start, index)
    return found


def _scan(text: str):
    """Yield (index, depth, character) for every character outside of strings; a bracket has its
    outer depth."""
    depth, quote, skip = 0, "", False
    for index, character in enumerate(text):
        if quote:
            if skip:
                skip = False
            elif character == "\\":
                skip = True
            elif character == quote:
                quote = ""
            continue
        if character in "\"'":
            quote = character
            continue
        if character in CLOSE:
            depth -= 1
        yield index, depth, character
        if character in OPEN:
            depth += 1


def _split_comment(body: str) -> tuple[str, str]:
    """The code and the comment after it, which stays on the first line."""
    for index, _, character in _scan(body):
        if character == "#":
            return body[:index].rstrip(), "  " + body[index:]
    return body, ""


def fill(text: str, indent: int) -> list[str]:
    """Break a long line of prose; what follows the first line is indented."""
    lines, pad = [], " " * indent
    while len(text) > WIDTH:
        cut = text.rfind(" ", indent, WIDTH)
        lines.append(text[:cut])
        text = pad + text[cut + 1 :]
    return [*lines, text]
