"""Parser of the size expressions of a spec, such as `(vision.image_size // 14) * 2`.

The language is the part of Python that a `Dim` can hold: integers, dotted lower-case names,
`+ - * // %`, parentheses, `min(...)` and `max(...)`, with Python's precedence and floor division.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from vlmspec.compiler.ir.dim import Dim, check_name, dim_max, dim_min

MAX_LENGTH = 1000
MAX_DEPTH = 32
MAX_INTEGER = 2**63

# Longest match first: a float is found before its integer part, `//` before `/`.
_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+)
    | (?P<float>[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+[eE][+-]?[0-9]+)
    | (?P<integer>[0-9]+)(?P<tail>[A-Za-z0-9_]*)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)
    | (?P<operator>\*\*|//|==|!=|<=|>=|<|>|=|[-+*/%(),])
    | (?P<quote>["'`])
    """,
    re.VERBOSE | re.ASCII,
)
_OPERATORS = frozenset({"+", "-", "*", "//", "%", "(", ")", ","})
_FUNCTIONS: dict[str, Callable[..., Dim]] = {"min": dim_min, "max": dim_max}
_SUMS = frozenset({"+", "-"})
_PRODUCTS = frozenset({"*", "//", "%"})


class ExpressionError(ValueError):
    """An expression that is refused, with the place of the fault.

    Attributes:
        message: what is wrong and what to write instead.
        offset: where the fault starts, in characters from the beginning of the text.
        length: how many characters are at fault; 1 where the text ends too early.
    """

    def __init__(self, message: str, offset: int, length: int) -> None:
        super().__init__(message, offset, length)
        self.message = message
        self.offset = offset
        self.length = length

    def __str__(self) -> str:
        return self.message


@lru_cache(maxsize=4096)
def parse_expression(text: str) -> Dim:
    """Parse the text of an expression.

    Raises:
        ExpressionError: if the text is not an expression, or is too long, too deep or too large.
    """
    if len(text) > MAX_LENGTH:
        message = f"expression has {len(text)} characters; at most {MAX_LENGTH} are allowed"
        raise ExpressionError(message, MAX_LENGTH, len(text) - MAX_LENGTH)
    parser = _Parser(_tokenize(text))
    dim = parser.sum()
    parser.finish()
    return dim


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "integer", "name", "end", or the operator itself
    text: str
    offset: int

    @property
    def end(self) -> int:
        return self.offset + len(self.text)

    def error(self, message: str) -> ExpressionError:
        return ExpressionError(message, self.offset, max(1, len(self.text)))


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    offset = 0
    while offset < len(text):
        match = _TOKEN.match(text, offset)
        if match is None:
            raise ExpressionError(_explain_character(text[offset]), offset, 1)
        kind = match.lastgroup or ""
        # The tail of an integer is always matched, though mostly empty.
        kind = "integer" if kind == "tail" else kind
        token = _Token(match[0] if kind == "operator" else kind, match[0], offset)
        if kind != "space":
            _check_token(token, kind)
            tokens.append(token)
        offset = match.end()
    tokens.append(_Token("end", "", len(text)))
    return tokens


def _check_token(token: _Token, kind: str) -> None:
    match kind:
        case "float":
            raise token.error(f"`{token.text}` is not an integer; sizes are integers")
        case "quote":
            raise token.error("strings are not allowed in an expression; write the name bare")
        case "integer":
            _check_integer(token)
        case "operator" if token.text not in _OPERATORS:
            raise token.error(_explain_operator(token.text))
        case _:
            pass


def _check_integer(token: _Token) -> None:
    text = token.text
    if not text.isdigit():
        raise token.error(f"`{text}` is neither an integer nor a name")
    if text[0] == "0" and len(text) > 1:
        raise token.error(f"`{text}` has leading zeros; write `{text.lstrip('0') or '0'}`")
    if int(text) > MAX_INTEGER:
        raise token.error("integer is greater than 2**63")


def _explain_operator(text: str) -> str:
    match text:
        case "**":
            return "`**` is not supported; multiply, as in `a * a`"
        case "/":
            return "`/` is not supported; use `//`, which rounds down"
        case "=":
            return "`=` is not supported; an expression is a value, not an assignment"
        case _:
            return f"comparison `{text}` is not supported; an expression is a number"


def _explain_character(character: str) -> str:
    if not character.isascii():
        # Imported only to explain a mistake: most compiles never need the table.
        from unicodedata import name

        code = f"U+{ord(character):04X}"
        known = name(character, "")
        shown = f"{code} {known}" if known else code
        return f"character {shown} is not ASCII; names use a-z, 0-9, `_` and `.`"
    if character == ".":
        return "`.` must stand between two parts of a name, without spaces"
    if not character.isprintable():
        return f"control character U+{ord(character):04X} is not allowed in an expression"
    return f"`{character}` is not allowed in an expression"


class _Parser:
    """Recursive descent over the tokens; only parentheses and calls recurse, to a fixed depth."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens = tokens
        self.index = 0
        self.depth = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.index]

    def advance(self) -> _Token:
        token = self.tokens[self.index]
        self.index += 1
        return token

    def finish(self) -> None:
        """Refuse what follows a complete expression."""
        token = self.token
        match token.kind:
            case "end":
                return
            case ")":
                raise token.error("`)` closes nothing")
            case ",":
                raise token.error("`,` is only allowed between the operands of `min` and `max`")
            case "(":
                raise token.error("only `min` and `max` can be called; multiply with `*`")
            case _:
                raise token.error(f"expected an operator before `{token.text}`")

    def sum(self) -> Dim:
        left = self.product()
        while self.token.kind in _SUMS:
            operator = self.advance()
            left = self.apply(operator, left, self.product())
        return left

    def product(self) -> Dim:
        left = self.unary()
        while self.token.kind in _PRODUCTS:
            operator = self.advance()
            start = self.token.offset
            right = self.unary()
            if operator.kind != "*" and right.as_int() == 0:
                length = self.tokens[self.index - 1].end - start
                raise ExpressionError("division by zero", start, length)
            left = self.apply(operator, left, right)
        return left

    def unary(self) -> Dim:
        negative = False
        while self.token.kind == "-":
            self.advance()
            negative = not negative
        dim = self.primary()
        return -dim if negative else dim

    def primary(self) -> Dim:
        token = self.advance()
        match token.kind:
            case "integer":
                return Dim.const(int(token.text))
            case "name":
                return self.name(token)
            case "(":
                self.enter(token)
                dim = self.sum()
                self.leave(token)
                return dim
            case "end":
                text = "expression ends too early" if self.index > 1 else "expression is empty"
                raise token.error(f"{text}; expected an integer, a name or `(`")
            case "+":
                raise token.error("unary `+` is not supported; leave it out")
            case _:
                raise token.error(f"expected an integer, a name or `(` before `{token.text}`")

    def name(self, token: _Token) -> Dim:
        function = _FUNCTIONS.get(token.text)
        if self.token.kind == "(":
            if function is None:
                message = f"`{token.text}` cannot be called; only `min` and `max` can"
                raise token.error(message)
            return self.call(token, function)
        if function is not None:
            raise token.error(f"`{token.text}` is a function; write `{token.text}(a, b)`")
        fault = check_name(token.text)
        if fault is not None:
            raise token.error(fault)
        return Dim.sym(token.text)

    def call(self, token: _Token, function: Callable[..., Dim]) -> Dim:
        parenthesis = self.advance()
        self.enter(parenthesis)
        if self.token.kind == ")":
            raise token.error(f"`{token.text}` needs at least one operand")
        operands = [self.sum()]
        while self.token.kind == ",":
            self.advance()
            operands.append(self.sum())
        self.leave(parenthesis)
        try:
            return function(*operands)
        except ValueError as error:
            raise token.error(str(error)) from None

    def enter(self, token: _Token) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise token.error(f"expression nests more than {MAX_DEPTH} parentheses")

    def leave(self, opening: _Token) -> None:
        if self.token.kind == "end":
            raise opening.error("`(` is never closed")
        if self.token.kind != ")":
            if self.token.kind == ",":
                raise self.token.error(
                    "`,` is only allowed between the operands of `min` and `max`"
                )
            self.finish()
        self.advance()
        self.depth -= 1

    def apply(self, operator: _Token, left: Dim, right: Dim) -> Dim:
        try:
            dim = _combine(operator.kind, left, right)
        except ValueError as error:
            raise operator.error(str(error)) from None
        if any(abs(coefficient) > MAX_INTEGER for _, coefficient in dim.terms):
            raise operator.error("result has an integer greater than 2**63")
        return dim


def _combine(operator: str, left: Dim, right: Dim) -> Dim:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "//":
            return left // right
        case _:
            return left % right
