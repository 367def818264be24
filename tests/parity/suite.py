"""The tests of `test_models`, for the architectures of another file."""

import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from parity import test_models

BATCH = ("architecture", "kind", "seed", "size")
COUNT = ("spec", "variant", "count")


def suite(
    architectures: Sequence[test_models.Architecture], leave_out: Sequence[str] = ()
) -> dict[str, Callable[..., Any]]:
    """Every test of `test_models` that runs for each architecture, batch or published size of one.

    Args:
        architectures: what to test instead.
        leave_out: names of tests that ask what these architectures do not have.
    """
    found = {}
    for name, test in vars(test_models).items():
        marks = getattr(test, "pytestmark", [])
        if name.startswith("test_") and name not in leave_out:
            if any(_about(mark) for mark in marks):
                marks = [_for(mark, architectures) for mark in marks]
                if all(mark.args[1] for mark in marks):
                    found[name] = _copy(test, marks)
    return found


def _about(mark: pytest.Mark) -> bool:
    return mark.name == "parametrize" and mark.args[0] in ("architecture", BATCH, COUNT)


def _for(mark: pytest.Mark, architectures: Sequence[test_models.Architecture]) -> pytest.Mark:
    """The mark with these architectures, or with the same kinds of batches of them."""
    if not _about(mark):
        return mark
    if mark.args[0] == "architecture":
        decorator = pytest.mark.parametrize(
            "architecture", architectures, ids=lambda a: a.reference
        )
        return decorator.mark
    if mark.args[0] == COUNT:
        return pytest.mark.parametrize(COUNT, test_models.full_size_counts(architectures)).mark
    taken = {row.values[1] for row in mark.args[1]}
    rows = [row for row in test_models.batches(architectures) if row.values[1] in taken]
    return pytest.mark.parametrize(BATCH, rows).mark


def _copy(test: Callable[..., Any], marks: list[pytest.Mark]) -> Callable[..., Any]:
    copied = types.FunctionType(test.__code__, test.__globals__, test.__name__, test.__defaults__)
    copied.__dict__.update({k: v for k, v in test.__dict__.items() if k != "pytestmark"})
    copied.pytestmark = marks
    return copied
