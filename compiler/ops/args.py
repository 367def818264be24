"""Arguments of steps: pydantic models whose sizes are expressions in the sizes of the spec."""

from typing import Annotated, Any, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
    field_validator,
)

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar, Table
from vlmspec.dsl.faults import show
from vlmspec.dsl.schema import fault


def _size(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, Dim):
        return value
    return info.context["scope"].known_size(value, info.field_name)


def _scalar(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, Scalar):
        return value
    return info.context["scope"].scalar(value, info.field_name)


def _table(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, Table):
        return value
    return info.context["scope"].table(value, info.field_name)


Size = Annotated[Dim, BeforeValidator(_size, json_schema_input_type=int | str | dict[str, Any])]
Number = Annotated[
    Scalar, BeforeValidator(_scalar, json_schema_input_type=float | str | dict[str, Any])
]

Rows = Annotated[
    Table, BeforeValidator(_table, json_schema_input_type=str | list[list[int]] | dict[str, Any])
]


class Args(BaseModel):
    """Arguments of a step. `$name` and `{config: …}` are resolved before a field is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @field_validator("*", mode="before")
    @classmethod
    def _resolve(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        annotation = cls.model_fields[name].annotation
        if info.context is not None and not _mentions(annotation, (Dim, Scalar, Table)):
            scope = info.context["scope"]
            if get_origin(annotation) is dict and isinstance(value, dict):
                value = {k: scope.option(v, f"{name}_{k}", many=True) for k, v in value.items()}
            else:
                value = scope.option(value, name, many=get_origin(annotation) is tuple)
        # pydantic would take `yes` and `off`, which are texts in this language.
        if _mentions(annotation, (bool,)) and not isinstance(value, bool) and value is not None:
            raise fault("VS103", f"expected `true` or `false`, not {show(value)}")
        return value


def _mentions(annotation: Any, kinds: tuple[type, ...]) -> bool:
    inner = getattr(annotation, "__args__", ())
    return annotation in kinds or any(_mentions(a, kinds) for a in inner)


class NoArgs(Args):
    """A step without arguments."""
