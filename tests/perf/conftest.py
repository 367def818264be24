"""Measurements run when asked for (`pytest -m perf`), never beside other tests."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked `perf` unless the command line chooses it."""
    if "perf" in config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="measures time: run `pytest -m perf tests/perf`")
    for item in items:
        if item.get_closest_marker("perf"):
            item.add_marker(skip)
