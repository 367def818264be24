"""Arguments of steps: pydantic models whose sizes are expressions in the sizes of the spec."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
    field_validator,
)

from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.types import Scalar
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


Size = Annotated[Dim, BeforeValidator(_size, json_schema_input_type=int | str | dict[str, Any])]
Number = Annotated[
    Scalar, BeforeValidator(_scalar, json_schema_input_type=float | str | dict[str, Any])
]


class Args(BaseModel):
    """Arguments of a step. `$name` and `{config: …}` are resolved before a field is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    @field_validator("*", mode="before")
    @classmethod
    def _resolve(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        annotation = cls.model_fields[name].annotation
        if info.context is not None and not _mentions(annotation, (Dim, Scalar)):
            value = info.context["scope"].option(value, name)
        # pydantic would take `yes` and `off`, which are texts in this language.
        if _mentions(annotation, (bool,)) and not isinstance(value, bool) and value is not None:
            raise fault("VS103", f"expected `true` or `false`, not {show(value)}")
        return value


def _mentions(annotation: Any, kinds: tuple[type, ...]) -> bool:
    inner = getattr(annotation, "__args__", ())
    return annotation in kinds or any(_mentions(a, kinds) for a in inner)


def chosen(scope: Any, value: Any, name: str) -> Any:
    """An argument with its options resolved, one mapping deep."""
    if isinstance(value, dict) and "config" not in value:
        return {k: scope.option(v, f"{name}_{k}") for k, v in value.items()}
    return scope.option(value, name)


class NoArgs(Args):
    """A step without arguments."""
