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

GROUPS = {
    "VS0": "Files",
    "VS1": "The document",
    "VS2": "Names and the graph",
    "VS3": "Sizes and shapes",
    "VS4": "Checkpoints and their config.json",
    "VS5": "What is written",
    "VS6": "Verification",
}


def codes_page() -> str:
    """Write every code as the page `docs/diagnostics.md`."""
    lines = [
        "# Diagnostics",
        "",
        "Every fault is reported with a code. `vlmspec explain CODE` prints one of these entries.",
        "This page is generated: `vlmspec explain --all --markdown > docs/diagnostics.md`.",
    ]
    group = ""
    for name, (title, explanation) in sorted(CODES.items()):
        if name[:3] != group:
            group = name[:3]
            lines += ["", f"## {GROUPS.get(group, group)}"]
        lines += ["", f"### {name}: {title}", "", explanation]
    return "\n".join(lines) + "\n"
