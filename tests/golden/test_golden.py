"""The emitted package of a bundled spec, byte for byte.

`VLMSPEC_UPDATE_GOLDEN=1 pytest tests/golden` writes the files anew; review them as a diff. Files
that every package gets unchanged are tested where they come from, so they are not kept here.
"""

import json
import os
from pathlib import Path

import pytest

from vlmspec import api

FOLDER = Path(__file__).parent
UPDATE = os.environ.get("VLMSPEC_UPDATE_GOLDEN") == "1"
SPECS = ("llava",)
FILES = ("__init__.py", "modeling.py", "functional.py", "manifest.json")
# What changes with every release and every edit of a comment.
VOLATILE = ("version", "spec_sha256", "files")


def stable(name: str, text: str) -> str:
    """A file without what changes though the emitted code does not."""
    if name == "manifest.json":
        data = json.loads(text)
        kept = {key: value for key, value in data.items() if key not in VOLATILE}
        return json.dumps(kept | {"files": sorted(data["files"])}, indent=2) + "\n"
    lines = text.split("\n")
    return "\n".join(line for line in lines if not line.startswith("Written by vlmspec "))


@pytest.mark.parametrize("spec", SPECS)
def test_emitted_files_are_the_golden_ones(spec: str, tmp_path: Path):
    compiled = api.compile(spec, output=tmp_path / spec)
    (FOLDER / spec).mkdir(exist_ok=True)
    for name in FILES:
        text = stable(name, (compiled.path / name).read_text(encoding="utf-8"))
        golden = FOLDER / spec / f"{name}.golden"
        if UPDATE:
            golden.write_text(text, encoding="utf-8")
        assert golden.is_file(), f"run `VLMSPEC_UPDATE_GOLDEN=1 pytest {Path(__file__).name}`"
        assert text == golden.read_text(encoding="utf-8"), f"{name} has changed"


def test_golden_folders_belong_to_specs():
    folders = {p.name for p in FOLDER.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == set(SPECS)
