"""The closed table of diagnostic codes, with the texts of `vlmspec explain`."""

from typing import NamedTuple

from vlmspec.diagnostics.codes_document import DOCUMENT_CODES
from vlmspec.diagnostics.codes_model import MODEL_CODES
from vlmspec.diagnostics.codes_output import OUTPUT_CODES
from vlmspec.diagnostics.codes_verification import VERIFICATION_CODES


class Code(NamedTuple):
    """What a code means.

    Attributes:
        title: a few words, without the details of one case.
        explanation: what it means, why it is refused and how to mend it.
    """

    title: str
    explanation: str


CODES: dict[str, Code] = {
    code: Code(title, explanation)
    for table in (DOCUMENT_CODES, MODEL_CODES, OUTPUT_CODES, VERIFICATION_CODES)
    for code, (title, explanation) in table.items()
}
