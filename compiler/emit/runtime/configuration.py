"""Reads sizes from a checkpoint's config.json, and refuses a checkpoint that needs other code."""

from typing import Any

MISSING = object()


def lookup(data: dict, path: str) -> Any:
    """Return the value at a dotted path of nested dictionaries and lists, or MISSING."""
    value: Any = data
    for part in path.split("."):
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return MISSING
    return value


def read_size(data: dict, paths: tuple[str, ...], default: int | float | None) -> Any:
    """Return the first number found at `paths`, else the default.

    Raises:
        ValueError: when something else than a number stands there, or nothing and there is no
            default.
    """
    for path in paths:
        value = lookup(data, path)
        if value is MISSING or value is None:
            continue
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]  # [448, 448], a size along each axis
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"config.json: `{path}` is {value!r}, not a number")
        if value < 0 or (isinstance(default, int) and value != int(value)):
            raise ValueError(f"config.json: `{path}` is {value!r}, which is not a size")
        return value if default is None else type(default)(value)
    if default is None:
        raise ValueError(f"config.json has no `{paths[0]}`, and this package has no default for it")
    return default


def read_table(data: dict, paths: tuple[str, ...], default: tuple) -> tuple[tuple[int, ...], ...]:
    """Return the first list of lists of whole numbers found at `paths`, else the default.

    Raises:
        ValueError: when something else stands there.
    """
    for path in paths:
        value = lookup(data, path)
        if value is MISSING or value is None:
            continue
        rows = value if isinstance(value, list) else [None]
        if not all(isinstance(r, list) and all(type(n) is int for n in r) for r in rows):
            raise ValueError(f"config.json: `{path}` is {value!r}, not rows of whole numbers")
        return tuple(tuple(row) for row in rows)
    return default


def check_choice(data: dict, paths: tuple[str, ...], accepted: tuple, default: Any) -> None:
    """Refuse a checkpoint whose choice at `paths` is not the one that this package is for.

    Raises:
        ValueError: naming both choices.
    """
    found = next((v for path in paths if (v := lookup(data, path)) is not MISSING), default)
    if found not in accepted:
        raise ValueError(
            f"config.json: `{paths[0]}` is {found!r}, and this package was compiled for "
            f"{accepted[0]!r}; compile it again with --checkpoint"
        )
