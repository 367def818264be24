"""What the YAML scanner complains about, in plain words."""

from typing import NamedTuple


class _Complaint(NamedTuple):
    """Rewording of one complaint.

    Attributes:
        needle: a piece of the scanner's own words.
        code: the diagnostic code.
        message: what is wrong.
        help: how to mend it.
        opener: words for the place where the broken thing starts, if that is worth showing.
        at_opener: whether that place is the one to point at.
    """

    needle: str
    code: str
    message: str
    help: str | None = None
    opener: str = ""
    at_opener: bool = False


_INDENTATION = "indent with spaces, the same number for every key of a mapping"
_BLOCK_HEADER = "the header of a block text is `|` or `>`, then at most a digit and `+` or `-`"

# The first entry whose needle occurs wins, so the particular ones stand before the general ones.
_COMPLAINTS = (
    _Complaint("scanning a directive", "VS016", "YAML directives are not part of the language"),
    _Complaint("YAML directive", "VS016", "YAML directives are not part of the language"),
    _Complaint("incompatible YAML", "VS016", "YAML directives are not part of the language"),
    _Complaint("duplicate tag handle", "VS016", "YAML directives are not part of the language"),
    _Complaint("scanning an anchor", "VS012", "anchors are not part of the language"),
    _Complaint("scanning an alias", "VS012", "aliases are not part of the language"),
    _Complaint("undefined tag handle", "VS013", "tags are not part of the language"),
    _Complaint("scanning a tag", "VS013", "tags are not part of the language"),
    _Complaint("parsing a tag", "VS013", "tags are not part of the language"),
    _Complaint(
        "could not find expected ':'",
        "VS010",
        "this line has no `:` after its key",
        "write `key: value`, with a space after the `:`",
        at_opener=True,
    ),
    _Complaint(
        "sequence entries are not allowed",
        "VS010",
        "a list item cannot stand here",
        "put `- ` on a line of its own, below its key",
    ),
    _Complaint("mapping keys are not allowed", "VS010", "a `?` key cannot stand here"),
    _Complaint(
        "mapping values are not allowed",
        "VS010",
        "a second `: ` on this line, or a line that does not line up",
        "quote a text that holds `: `, mend the indentation, or end the key above with `:`",
    ),
    _Complaint(
        r"character '\t' that cannot start",
        "VS010",
        "a tab cannot stand here",
        "indent with spaces",
    ),
    _Complaint(
        "cannot start any token",
        "VS010",
        "a value cannot begin with this character",
        "put the text in quotes",
    ),
    _Complaint(
        "but found ':'",
        "VS010",
        "there is no key before this `:`",
        "write `key: value`",
    ),
    _Complaint(
        "expected <block end>",
        "VS010",
        "this does not line up with what stands above",
        _INDENTATION,
        opener="it should line up with this",
    ),
    _Complaint(
        "expected ',' or ']'",
        "VS010",
        "the list is not closed",
        "expected `,` or `]` here",
        opener="the list starts here",
    ),
    _Complaint(
        "expected ',' or '}'",
        "VS010",
        "the mapping is not closed",
        "expected `,` or `}` here",
        opener="the mapping starts here",
    ),
    _Complaint(
        "scanning a quoted scalar",
        "VS010",
        "the quoted text is not closed",
        "add the closing quote",
        opener="it ends without the closing quote",
        at_opener=True,
    ),
    _Complaint(
        "scanning a double-quoted scalar",
        "VS010",
        "this is not an escape that a double-quoted text knows",
        "use single quotes, or write `\\\\` for a backslash",
    ),
    _Complaint("scanning a block scalar", "VS010", _BLOCK_HEADER),
    _Complaint(
        "expected the node content",
        "VS010",
        "a value is missing here",
        "close the bracket, or write the value",
    ),
    _Complaint(
        "expected '<document start>'",
        "VS010",
        "the document has already ended here",
        "a document is one mapping; mend the indentation or the brackets",
    ),
)
_FALLBACK = _Complaint("", "VS010", "this cannot be read as YAML")
# Escapes beyond Unicode and versions of thousands of digits end in an error of `chr` or `int`.
_OUT_OF_RANGE = _Complaint(
    "", "VS010", "this escape or version is out of range", "use single quotes, or mend the number"
)


class SyntaxProblem(NamedTuple):
    """One reworded complaint with its places as character offsets.

    Attributes:
        code: the diagnostic code.
        message: what is wrong.
        help: how to mend it.
        at: where to point.
        other: a second place with its label, or None.
    """

    code: str
    message: str
    help: str | None
    at: int
    other: tuple[int, str] | None


def reword(error: Exception, reached: int) -> SyntaxProblem:
    """Turn what the scanner raised into a problem with a place.

    Args:
        error: anything that came out of the scanner.
        reached: how far it had read, for errors that carry no mark.
    """
    said = f"{getattr(error, 'context', None)} {getattr(error, 'problem', None)}"
    rest = _OUT_OF_RANGE if isinstance(error, (ValueError, OverflowError)) else _FALLBACK
    known = next((entry for entry in _COMPLAINTS if entry.needle in said), rest)
    at = _offset(error, "problem_mark", reached)
    opener = _offset(error, "context_mark", at)
    other = (opener, known.opener) if known.opener and opener != at else None
    if known.at_opener:
        at, other = opener, (at, known.opener) if other else None
    return SyntaxProblem(known.code, known.message, known.help, at, other)


def _offset(error: Exception, mark: str, default: int) -> int:
    found = getattr(error, mark, None)
    return default if found is None else found.index
