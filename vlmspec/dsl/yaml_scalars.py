"""Plain scalars by the YAML 1.2 core schema, stricter where a number would surprise."""

import re
from collections.abc import Mapping

from vlmspec.dsl.yaml_nodes import Scalar

_CONSTANTS: Mapping[str, Scalar] = {"": None, "~": None} | {
    spelling: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for spelling in (word, word.capitalize(), word.upper())
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")

# Longer digit strings are refused by their length: converting them takes quadratic time.
_MAX_FLOAT_CHARACTERS = 64
_MAX_INTEGER_DIGITS = 24
_MAX_INTEGER = 2**63


class NumberError(ValueError):
    """A text that looks like a number but is refused.

    Attributes:
        code: the diagnostic code.
        help: how to mend it.
    """

    def __init__(self, code: str, message: str, help: str) -> None:
        super().__init__(message)
        self.code = code
        self.help = help


def resolve_plain(text: str) -> Scalar:
    """Give the value of an unquoted scalar.

    Raises:
        NumberError: if the text looks like a number that cannot be used.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NOT_FINITE.fullmatch(text):
        raise NumberError("VS021", "numbers must be finite", "write a finite number")
    if _PREFIXED.fullmatch(text):
        base = 8 if text[1] == "o" else 16
        return _integer(text[2:], base)
    if not _FLOAT.fullmatch(text):
        return text
    if _LEADING_ZERO.match(text):
        raise NumberError(
            "VS021",
            "a number cannot have leading zeros",
            "remove the zeros, write `0o` for octal, or quote the text",
        )
    return _integer(text, 10) if _DECIMAL.fullmatch(text) else _float(text)


def _integer(digits: str, base: int) -> int:
    if len(digits) <= _MAX_INTEGER_DIGITS:
        value = int(digits, base)
        if abs(value) <= _MAX_INTEGER:
            return value
    raise NumberError("VS022", "the number is beyond 2**63", "check the number of digits")


def _float(text: str) -> float:
    if len(text) > _MAX_FLOAT_CHARACTERS:
        raise NumberError("VS021", "the number has too many digits", "17 digits are kept")
    value = float(text)
    mantissa = text.lower().partition("e")[0]
    if value in (float("inf"), float("-inf")):
        raise NumberError("VS021", "the number is too large", "check the exponent")
    if value == 0 and re.search("[1-9]", mantissa):
        raise NumberError("VS021", "the number is so small that it is 0", "check the exponent")
    return value
