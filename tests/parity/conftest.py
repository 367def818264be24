"""Fixtures of the parity tests."""

import os
import sys
from pathlib import Path

import pytest

# `references` and `parity.harness` are helpers, not installed packages.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all its worker processes share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "parity"
    folder.mkdir(exist_ok=True)
    return folder
