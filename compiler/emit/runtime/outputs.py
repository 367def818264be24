"""What models return: values by attribute, by name, or by position."""

from dataclasses import fields
from typing import Any


class OutputMixin:
    """For a dataclass of outputs: also by name, or by position among the fields that are set."""

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def keys(self) -> tuple[str, ...]:
        """Return the names of the fields that are set."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are set."""
        return tuple(getattr(self, name) for name in self.keys())
