"""Codes of the graph, of sizes and of expressions: VS2xx and VS3xx."""

MODEL_CODES: dict[str, tuple[str, str]] = {
    "VS201": (
        "unknown op",
        "A step names an op that does not exist. `vlmspec ops` lists them all. "
        "Correct the spelling, or write the op as a part made of known ones.",
    ),
    "VS202": (
        "unknown part",
        "There is no part of this name, neither beside the document nor among those that come "
        "with the compiler. `vlmspec list --parts` lists those. "
        "Correct the name, or add the part's file.",
    ),
    "VS203": (
        "unknown input or component",
        "A step reads a value that nothing provides. It can read the inputs, the components and "
        "the earlier steps of its own body. Correct the name, or move the step after its source.",
    ),
    "VS204": (
        "components depend on each other in a circle",
        "Each of the named components needs the output of another, so none can run first. "
        "Remove one reference of the circle.",
    ),
    "VS205": (
        "unused component",
        "Nothing reads the output of this component, so it has no effect on the result. "
        "Connect it, or remove it. It is reported as a warning.",
    ),
    "VS206": (
        "unused input",
        "The model declares an input that no component reads. "
        "Connect it, or remove it. It is reported as a warning.",
    ),
    "VS207": (
        "part of another kind",
        "The key and the part do not fit, such as `encoder:` with a part that is a decoder. "
        "Use the key of the part's kind, or another part.",
    ),
    "VS208": (
        "duplicate step name",
        "Two steps of one body have the same name, so a reference to it is not clear. "
        "Rename one of them.",
    ),
    "VS209": (
        "no kind given",
        "A component or step has no key that says what it is. "
        "Add one, such as `encoder:`, `connector:`, `decoder:` or `op:`.",
    ),
    "VS210": (
        "more than one kind given",
        "A component or step has several keys that each say what it is. Keep one of them.",
    ),
    "VS211": (
        "missing operand",
        "An op or a part is used without one of the inputs that it needs. "
        "The message names the input. Give it.",
    ),
    "VS212": (
        "unexpected operand",
        "An op or a part is given an input that it does not have, or more inputs than it takes. "
        "Remove it, or correct its name.",
    ),
    "VS213": (
        "unknown output",
        "A part has no output of this name. The message lists the outputs. "
        "Correct the name, or add the output to the part.",
    ),
    "VS214": (
        "unknown option or argument",
        "An op or a part has no size, option or argument of this name. "
        "The message lists those that it has. Correct the name or remove it.",
    ),
    "VS217": (
        "wrong data type",
        "An op needs another data type than its input has, such as whole numbers for an "
        "embedding. The message names both. Connect a value of the right type.",
    ),
    "VS218": (
        "value may be absent",
        "The value depends on an input that may be left out, such as an image beside a text, but "
        "is the logits, which generation reads and must always be there. Name a component that "
        "joins it to what is always there.",
    ),
    "VS301": (
        "bad expression",
        "An expression cannot be read. It may hold numbers, names of sizes, `+`, `-`, `*`, `//`, "
        "`%`, `min`, `max` and brackets, nested at most 32 deep. Powers, calls and fractions are "
        "refused.",
    ),
    "VS302": (
        "unknown size",
        "An expression names a size that is not defined here. "
        "Sizes are those of the part itself and, with a dot, those of other components. "
        "Correct the name or define the size.",
    ),
    "VS303": (
        "size out of range",
        "A size is zero, negative or larger than anything that can be built. "
        "Counts of layers, heads and tokens lie between 1 and 1000000. Correct the number.",
    ),
    "VS304": (
        "not divisible",
        "One size must be a whole multiple of another, but is not, such as `hidden_size` and "
        "`num_heads`. The message gives both values. Change one of them.",
    ),
    "VS305": (
        "shapes do not match",
        "Two tensors meet whose shapes do not fit, or a tensor has another shape than the op "
        "takes. The message gives the shapes as the sizes spell them and as numbers. "
        "Change the size of one, or put a connector between them.",
    ),
    "VS306": (
        "heads not a multiple of key/value heads",
        "In grouped-query attention each key/value head serves the same number of query heads, "
        "so `num_heads` is a whole multiple of `num_kv_heads`. Change one of the two.",
    ),
    "VS307": (
        "sizes define each other in a circle",
        "A size is computed from others that are computed from it, so none has a value. "
        "Give one of them as a number.",
    ),
    "VS308": (
        "config value of the wrong type",
        "The value that a size or option takes from config.json has another type than it needs. "
        "The message names the key and what was found. Correct the config or the mapping.",
    ),
    "VS309": (
        "unknown `--set` target",
        "`--set` names a size or option that does not exist. "
        "Write `component.size=value`; `vlmspec show` lists them.",
    ),
    "VS310": (
        "unknown variant",
        "The document has no variant of this name. The message lists those that it has. "
        "Correct the name or leave it out.",
    ),
    "VS311": (
        "tensor too large",
        "One tensor would hold more than 2**40 elements. "
        "A size is most likely mistyped. Check the sizes that the message names.",
    ),
    "VS312": (
        "too many parameters",
        "The model would hold more than 10**13 parameters. "
        "A size is most likely mistyped. Check the largest components, which the message names.",
    ),
    "VS313": (
        "layer index outside the stack",
        "A layer is named by an index that the stack does not have. Indices count from 0, "
        "negative ones from the end. Choose an index within the number of layers.",
    ),
    "VS314": (
        "size without a value",
        "A size has no number: it has no default, and neither a variant, a config.json nor "
        "`--set` gives one. Give it in one of these ways.",
    ),
    "VS315": (
        "division by zero",
        "An expression divides by a size whose value is 0. "
        "Correct the value, or the expression that gives it.",
    ),
}
