"""The documents of the language: an architecture, and a part.

Bodies (lists of steps) and a component's arguments are checked later, against the op that they name.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Slug = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9]*([._-][a-z0-9]+)*$", max_length=64)
]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=64)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Value = int | float | str | bool | None

KINDS = ("encoder", "connector", "fusion", "decoder", "head")
Kind = Literal["encoder", "connector", "fusion", "decoder", "head"]


class Document(BaseModel):
    """What every model of a document shares."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FromConfig(Document):
    """A value that a checkpoint's config.json may set."""

    config: str | tuple[str, ...] = Field(
        description="Dotted path in config.json; of several, the first that is there."
    )
    default: Value = Field(default=None, description="The value where config.json has none.")
    map: dict[str, Value] | None = Field(
        default=None, description="What the values in config.json mean here."
    )


Setting = FromConfig | Value


class Take(Document):
    """Which state of an encoder is its output."""

    layer: Any = Field(
        default=None,
        description="How many layers run; -1 is the last layer's output, -2 the one before.",
    )
    drop: Any = Field(
        default="none", description="`cls` drops the tokens prepended to the patches."
    )


class Component(BaseModel):
    """A node of the graph: one kind key, its operands, where its sizes and weights live; the rest are arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    encoder: Slug | None = None
    connector: Slug | None = None
    fusion: Slug | None = None
    decoder: Slug | None = None
    head: Slug | None = None
    from_: Any = Field(alias="from", description="An input or component, or a mapping of operands.")
    config: str = Field(default="", description="Where config.json keeps this component's sizes.")
    weights: str | tuple[str, ...] | dict[str, str] = Field(
        default="",
        description="Where its tensors live in the checkpoint; `a | b` are alternatives.",
    )
    take: Take | None = None

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return [(kind, given) for kind in KINDS if (given := getattr(self, kind)) is not None]

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class Architecture(Document):
    """A whole vision-language architecture."""

    vlmspec: Literal[1] = Field(description="Version of the language.")
    name: Slug = Field(description="Name of the architecture and of the emitted package.")
    title: str = Field(max_length=200)
    paper: str | None = Field(default=None, max_length=200)
    checkpoint: str | None = Field(default=None, max_length=200, description="A public checkpoint.")
    model_type: str | None = Field(
        default=None, max_length=64, description="`model_type` of the public config.json."
    )
    inputs: dict[Name, Literal["image", "text"]] = Field(
        description="Inputs by the public processor's names, and what each one is."
    )
    sizes: dict[Name, Setting] = Field(default_factory=dict)
    graph: dict[Name, Component] = Field(description="The components, in order.")
    outputs: dict[Name, Name] = Field(description="Outputs, and the component that gives each.")
    reference: dict[str, str] = Field(
        default_factory=dict,
        description="Module of the public implementation that computes each stage, for `verify`.",
    )
    variants: dict[Label, dict[Name, Any]] = Field(
        default_factory=dict, description="Published sizes; the first one is the default."
    )


class Part(Document):
    """A component by name: sizes, options, and a body of steps."""

    vlmspec: Literal[1]
    part: Slug
    kind: Kind
    title: str = Field(max_length=200)
    source: str = Field(default="", max_length=300, description="The public implementation.")
    model_type: str | None = Field(default=None, max_length=64)
    sizes: dict[Name, Setting] = Field(default_factory=dict, description="Numbers, by name.")
    options: dict[Name, Setting] = Field(
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
