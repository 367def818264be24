"""Codes of files, YAML and the shape of a document: VS0xx and VS1xx."""

DOCUMENT_CODES: dict[str, tuple[str, str]] = {
    "VS001": (
        "file not found",
        "There is no file at the path that was given, and no shipped spec of that name. "
        "`vlmspec list` shows the shipped ones. Check the spelling and the folder.",
    ),
    "VS002": (
        "file cannot be read",
        "The path exists but is a folder, a device, or a file that may not be read. "
        "Only regular files are opened. Give the path of a readable file.",
    ),
    "VS003": (
        "path outside its folder",
        "A part is a link that leaves the folder of the spec. Such links are refused, so that a "
        "description from elsewhere cannot read files of yours. Copy the part into the folder.",
    ),
    "VS004": (
        "file too large",
        "A description holds at most 1 MiB. The largest plausible one is under a thousand lines, "
        "so a larger file is most likely another file. Check the path, or split it into parts.",
    ),
    "VS005": (
        "not UTF-8",
        "Descriptions are UTF-8 text. The marked place holds bytes that are not. "
        "Save the file as UTF-8 in your editor.",
    ),
    "VS006": (
        "hidden character",
        "The file holds a control character, a direction mark, a zero-width character or a space "
        "that is not the plain one. Such characters make a text read differently from what it "
        "says. Delete the character and type it anew.",
    ),
    "VS010": (
        "not valid YAML",
        "The file cannot be read as YAML at the marked place. The usual causes are an indentation "
        "that does not line up, a missing `:` or bracket, and a text with `: ` or a leading `@` "
        "that needs quotes. Reading stops at the first such place.",
    ),
    "VS011": (
        "duplicate key",
        "A mapping has the same key twice. Most YAML readers silently keep the last one, so the "
        "first value would be lost unnoticed. Remove or rename one of the two.",
    ),
    "VS012": (
        "anchor or alias",
        "`&name` and `*name` are not part of the language, because a few lines of them can expand "
        "without end. Use a part for what is shared. A text that begins with `&` or "
        "`*` needs quotes.",
    ),
    "VS013": (
        "tag",
        "`!name` tags are not part of the language: a value has the type that its text shows, and "
        "no description may ask for a Python object. Remove the tag. "
        "A text that begins with `!` needs quotes.",
    ),
    "VS014": (
        "merge key",
        "`<<` is not part of the language, because it hides where a value comes from. "
        "Use a part for what is shared.",
    ),
    "VS015": (
        "second document",
        "A file holds one document, but a second one follows after `---`. "
        "Only the first would be read. Put the second into its own file.",
    ),
    "VS016": (
        "YAML directive",
        "Lines such as `%YAML 1.1` and `%TAG` change how a file is read and are not part of the "
        "language. Remove the line.",
    ),
    "VS017": (
        "nested too deeply",
        "Lists and mappings may be nested 64 deep. No description needs more, and deeper nesting "
        "is used to break programs that read it. Move the inner levels into a part.",
    ),
    "VS018": (
        "too many values",
        "A document holds at most 50000 keys and values. "
        "Use a part or `layers` for what repeats instead of writing it out.",
    ),
    "VS019": (
        "key is not a name",
        "Keys are names. A list, a mapping, `null`, a truth value or a fraction cannot be a key. "
        "Put the key in quotes if the text itself is meant.",
    ),
    "VS020": (
        "document is not a mapping",
        "The outermost level of a document is a mapping of `key: value` lines. "
        "This one is empty, or is a list or a single value. Start with `vlmspec: 1`.",
    ),
    "VS021": (
        "bad number",
        "The text looks like a number but is not one that can be used: it has leading zeros, "
        "is infinite or not a number, or is too long or too small to hold. "
        "Write a plain decimal number, or put the text in quotes.",
    ),
    "VS022": (
        "number too large",
        "Whole numbers lie between -2**63 and 2**63, the range of the integers of the emitted "
        "code. Check the number of digits.",
    ),
    "VS101": (
        "unknown key",
        "The key has no meaning here. Unknown keys are refused, because a misspelt key would "
        "otherwise be ignored without a word. Correct the spelling or remove the key.",
    ),
    "VS102": (
        "missing key",
        "A key that has no default is not given. Add it to the marked mapping.",
    ),
    "VS103": (
        "wrong type",
        "The value has another type than this key takes, such as a text in place of a number. "
        "`no`, `on` and `1_000` are texts in this language. Write a value of the expected type.",
    ),
    "VS104": (
        "bad value",
        "The value has the right type but is not one that this key takes. "
        "The message lists the values or the range. Choose one of them.",
    ),
    "VS105": (
        "bad name",
        "Names become names in the emitted code, so they begin with a small letter, go on with "
        "small letters, digits and `_`, and have at most 64 characters. Rename it.",
    ),
    "VS106": (
        "reserved name",
        "The name is a Python keyword or one that the emitted classes already use, such as "
        "`forward` or `parameters`. Choose another name.",
    ),
    "VS107": (
        "unsupported language version",
        "`vlmspec:` gives the version of the language that a document is written in. "
        "This compiler does not read that version. Use a newer compiler, or write version 1.",
    ),
    "VS108": (
        "wrong kind of document",
        "An architecture was expected and a part was found, or the other way round. "
        "A part stands in the place of a part only. Check the path that was given.",
    ),
    "VS111": (
        "conflicting keys",
        "Two keys that exclude each other are both given, so it is unclear which one counts. "
        "Remove one of them.",
    ),
}
