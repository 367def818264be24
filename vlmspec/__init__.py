"""vlmspec: compile short YAML specs of vision-language architectures to torch modules."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmspec.api import compile, load_spec
    from vlmspec.diagnostics.model import SpecError

__version__ = "0.1.0"

__all__ = ["SpecError", "__version__", "compile", "load_spec"]

# Public names are imported when first used, so that `import vlmspec` costs nothing.
_PUBLIC = {
    "SpecError": "vlmspec.diagnostics.model",
    "compile": "vlmspec.api",
    "load_spec": "vlmspec.api",
}


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'vlmspec' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
