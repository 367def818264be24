"""Arguments of steps: pydantic models whose sizes are expressions in the sizes of the spec."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar


def _size(value: Any, info: ValidationInfo) -> Any:
    return value if isinstance(value, Dim) else info.context["scope"].size(value, info.field_name)


def _scalar(value: Any, info: ValidationInfo) -> Any:
    return value if isinstance(value, Scalar) else info.context["scope"].scalar(value)


Size = Annotated[Dim, BeforeValidator(_size, json_schema_input_type=int | str | dict[str, Any])]
Number = Annotated[
    Scalar, BeforeValidator(_scalar, json_schema_input_type=float | str | dict[str, Any])
]


class Args(BaseModel):
    """Arguments of a step. `$name` and `{config: …}` are resolved before the fields are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _resolve_options(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, dict) or info.context is None:
            return data
        scope = info.context["scope"]
        sized = (Dim, Scalar)
        plain = {
            name
            for name, field in cls.model_fields.items()
            if field.annotation not in sized and not _mentions(field.annotation, sized)
        }
        return {k: scope.option(v, k) if k in plain else v for k, v in data.items()}


def _mentions(annotation: Any, kinds: tuple[type, ...]) -> bool:
    inner = getattr(annotation, "__args__", ())
    return annotation in kinds or any(_mentions(a, kinds) for a in inner)


class NoArgs(Args):
    """A step without arguments."""


def fault(
    code: str, message: str, help: str | None = None, *, offset: int | None = None, length: int = 1
) -> PydanticCustomError:
    """A validation error that carries a diagnostic: its code, its mend, and where in the text it is."""
    context = {"message": message, "code": code, "help": help, "offset": offset, "length": length}
    return PydanticCustomError("vlmspec", "{message}", context)
