"""Codes of comparisons with a public reference implementation: VS6xx."""

VERIFICATION_CODES: dict[str, tuple[str, str]] = {
    "VS670": (
        "reference not installed",
        "Verification runs the public reference implementation beside the emitted module, and "
        "that needs the `transformers` package. Install it, or leave verification out: emitted "
        "modules themselves need torch alone.",
    ),
    "VS671": (
        "reference unknown",
        "The installed reference has no model for the `model_type` that config.json names, or "
        "config.json names none. Code that a checkpoint brings along is never run. Install a "
        "version that knows the model type.",
    ),
    "VS672": (
        "unknown stage of the reference",
        "`reference:` of the description says which module of the public implementation belongs "
        "to a stage, and the installed implementation has no such module. Correct the path, or "
        "install the version that the description was checked with.",
    ),
}
