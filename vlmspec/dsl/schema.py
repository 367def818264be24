"""The documents of the language: an architecture, and a part.

Bodies (lists of steps) and a component's arguments are checked later, against the op that they
name.
"""

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from vlmspec.dsl import names


def fault(
    code: str,
    message: str,
    help: str | None = None,
    *,
    offset: int | None = None,
    length: int = 1,
    path: tuple[str | int, ...] = (),
    key: bool = False,
) -> PydanticCustomError:
    """A validation error that carries a diagnostic.

    Args:
        code: its code.
        message: what is wrong.
        help: how to mend it.
        offset: where in the value's text the fault starts.
        length: how many characters are at fault.
        path: where in the value the fault is.
        key: whether it is the last key of `path` rather than its value.
    """
    context: dict[str, Any] = {"message": message, "code": code, "help": help}
    place = {"offset": offset, "length": length, "path": path, "key": key}
    return PydanticCustomError("vlmspec", "{message}", context | place)


def _not_in(reserved: Collection[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name in reserved:
            message = f"`{name}` is taken: the emitted code has something of this name already"
            raise fault("VS106", message, f"choose another name, such as `{name}_1`")
        return name

    return AfterValidator(check)


def _matching(pattern: str, what: str, mend: str) -> AfterValidator:
    known = re.compile(pattern)

    def check(text: str) -> str:
        whole = known.match(text)
        if whole is None or whole.end() < len(text):
            at = whole.end() if whole else 0
            raise fault("VS104", f"this is not {what}", mend, offset=at, length=1)
        return text

    return AfterValidator(check)


Slug = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9]*([._-][a-z0-9]+)*$", max_length=64)
]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=64)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$", max_length=64)]
Source = Annotated[
    str,
    StringConstraints(max_length=128),
    _matching(
        r"[a-z][a-z0-9]*(_[a-z0-9]+)*(\.[a-z][a-z0-9]*(_[a-z0-9]+)*)?",
        "the name of a component",
        "write a component's name, or `component.value` for a value that its body names by `as:`",
    ),
]
ArchitectureName = Annotated[Slug, _not_in(names.ARCHITECTURES)]
ComponentName = Annotated[Name, _not_in(names.COMPONENTS)]
InputName = Annotated[Name, _not_in(names.INPUTS)]
SizeName = Annotated[Name, _not_in(names.SIZES)]
# A title stands in docstrings, so it holds nothing that ends one.
Text = Annotated[
    str,
    StringConstraints(max_length=300),
    _matching(
        r'[^"\\\n\r\t\x85\u2028\u2029]*',
        "plain text of one line",
        "leave out double quotes, backslashes, tabs and line breaks",
    ),
]
Title = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
ConfigPath = Annotated[
    str,
    StringConstraints(max_length=200),
    _matching(
        r"/?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*",
        "a path in config.json",
        "write keys joined by dots, as in `vision_config.hidden_size`",
    ),
]
ConfigPrefix = Annotated[
    str,
    StringConstraints(max_length=200),
    _matching(
        r"([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*( *\| *(/|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*))*)?",
        "a path in config.json",
        "write keys joined by dots, as in `vision_config`; alternatives are separated by `|`, "
        "and `/` is the top",
    ),
]
# Names of tensors stand in emitted code, some in f-strings, so they have no braces and no quotes.
WeightName = Annotated[
    str,
    StringConstraints(max_length=200),
    _matching(
        r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*",
        "the name of tensors in a checkpoint",
        "write names joined by dots, as in `model.layers`; layers add their index by themselves",
    ),
]
WeightPrefixes = Annotated[
    str,
    StringConstraints(max_length=400),
    _matching(
        r"([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*( *\| *[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)*)?",
        "where tensors lie in a checkpoint",
        "write names joined by dots; alternatives are separated by `|`, as in `model.text | text`",
    ),
]
Value = int | float | str | bool | None
Values = tuple[Value | tuple[Value, ...], ...]

KINDS = ("encoder", "connector", "fusion", "decoder", "head")
Kind = Literal["encoder", "connector", "fusion", "decoder", "head"]


class Document(BaseModel):
    """What every model of a document shares."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FromConfig(Document):
    """A value that a checkpoint's config.json may set."""

    config: ConfigPath | tuple[ConfigPath, ...] = Field(
        description="Dotted path in config.json; of several, the first that is there."
    )
    default: Value | Values = Field(
        default=None, description="The value where config.json has none; for rows, a list of lists."
    )
    map: dict[str, Value] | None = Field(
        default=None, description="What the values in config.json mean here."
    )


Setting = FromConfig | Value | Values


class Take(Document):
    """Which state of an encoder is its output."""

    layer: Any = Field(
        default=None,
        description="How many layers run; -1 is the last layer's output, -2 the one before. "
        "The states of a list of them are put side by side along the channels.",
    )
    drop: Any = Field(
        default="none",
        description="`cls` drops the tokens prepended to the patches, `first` the first token.",
    )
    value: Name | None = Field(
        default=None, description="A value that the part's body has a name for, by `as:`."
    )


class Component(BaseModel):
    """A node of the graph: one kind key, operands, where sizes and weights live, arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    encoder: Slug | FromConfig | None = None
    connector: Slug | FromConfig | None = None
    fusion: Slug | FromConfig | None = None
    decoder: Slug | FromConfig | None = None
    head: Slug | FromConfig | None = None
    from_: Any = Field(alias="from", description="An input or component, or a mapping of operands.")
    config: ConfigPrefix = Field(
        default="",
        description="Where config.json keeps this component's sizes; `a | b` are alternatives.",
    )
    weights: WeightPrefixes | tuple[WeightName, ...] | dict[str, WeightName] | None = Field(
        default=None,
        description="Where its tensors live in the checkpoint; `a | b` are alternatives, "
        "and a mapping says what the names that a part starts with are called there. "
        "Its own name where nothing is given.",
    )
    take: Take | None = None

    @property
    def kinds(self) -> list[tuple[str, Any]]:
        """The kind keys with their parts or ops; one that config.json chooses is a `FromConfig`
        until it is known."""
        return [(kind, given) for kind in KINDS if (given := getattr(self, kind)) is not None]

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Input(Document):
    """An input whose shape the spec gives; names in it that are no sizes stand for what varies."""

    kind: Literal["image", "video", "text", "sizes"] = Field(
        default="sizes", description="What it is; `sizes` goes with images or videos."
    )
    of: InputName | None = Field(
        default=None, description="The input that it goes with, without which it is absent."
    )
    shape: tuple[int | str, ...] = Field(description="Its dimensions: sizes, or new names.")
    dtype: Literal["float", "int", "bool"] = "float"
    optional: bool = Field(
        default=False,
        description="Whether it may be left out; text too, where a model has towers of their own.",
    )


class Parameter(Document):
    """A learned tensor that belongs to no component."""

    shape: tuple[int | str, ...] = Field(min_length=1, description="Its dimensions.")
    weights: WeightName = Field(description="Its name in the checkpoint.")


class Architecture(Document):
    """A whole vision-language architecture."""

    vlmspec: Literal[1] = Field(description="Version of the language.")
    name: ArchitectureName = Field(
        description="Name of the architecture and of the emitted package."
    )
    title: Title
    paper: Title | None = None
    checkpoint: Title | None = Field(default=None, description="A public checkpoint.")
    model_type: ConfigPath | tuple[ConfigPath, ...] | None = Field(
        default=None,
        description="`model_type` of the public config.json; of several, the first is written.",
    )
    inputs: dict[InputName, Literal["image", "text"] | Input] = Field(
        min_length=1, description="Inputs by the public processor's names, and what each one is."
    )
    sizes: dict[SizeName, Setting] = Field(default_factory=dict)
    parameters: dict[ComponentName, Parameter] = Field(
        default_factory=dict, description="Learned tensors of no component; components read them."
    )
    graph: dict[ComponentName, Component] = Field(
        min_length=1, description="The components, in order."
    )
    outputs: dict[InputName, Source] = Field(
        min_length=1,
        description="Outputs, and the component that gives each, or a named value in it.",
    )
    reference: dict[str, str] = Field(
        default_factory=dict,
        description="Module of the public implementation that computes each stage, for `verify`.",
    )
    variants: dict[Label, dict[Name, Any]] = Field(
        default_factory=dict, description="Published sizes; the first one is the default."
    )

    @property
    def input_kinds(self) -> dict[str, str]:
        """What each input is."""
        return {
            n: given if isinstance(given, str) else given.kind for n, given in self.inputs.items()
        }

    @property
    def model_types(self) -> tuple[str, ...]:
        """Every `model_type` that the spec reads."""
        given = self.model_type or ()
        return (given,) if isinstance(given, str) else given


class Part(Document):
    """A component by name: sizes, options, and a body of steps."""

    vlmspec: Literal[1]
    part: Slug
    kind: Kind
    title: Title
    source: Text = Field(default="", description="The public implementation.")
    model_type: ConfigPath | None = None
    sizes: dict[SizeName, Setting] = Field(default_factory=dict, description="Numbers, by name.")
    options: dict[SizeName, Setting] = Field(
        default_factory=dict, description="Choices that change the code, by name; used as `$name`."
    )
    input: tuple[int | str, ...] = Field(
        default=(), description="Shape that the component's input must have."
    )
    embed: tuple[Any, ...] = Field(default=(), description="Steps from ids to embeddings.")
    body: tuple[Any, ...]
    head: tuple[Any, ...] = Field(
        default=(), description="Steps from the last state to the output."
    )
