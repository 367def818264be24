"""The mid-size model that benchmarks race, and the file that keeps their results."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

RESULTS = Path(__file__).resolve().parent / "results"
FOUND = pytest.StashKey[dict[str, dict]]()


@pytest.fixture(scope="session")
def contest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of an emitted package and of a checkpoint that it loads."""
    import racing

    import vlmspec

    root = tmp_path_factory.mktemp("contest")
    racing.mid_size_checkpoint(root / "checkpoint")
    compiled = vlmspec.compile("llava", checkpoint=root / "checkpoint", output=root / "llava")
    return Path(compiled.path), root / "checkpoint"


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> dict[str, dict]:
    """A table that tests fill; at the end it is stored and its ratios are printed."""
    return pytestconfig.stash.setdefault(FOUND, {})


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Store what was measured, and print it."""
    found = config.stash.get(FOUND, {})
    if not found:
        return
    import racing

    record = {**racing.circumstances(), "results": found}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"models-{record['date'][:19].replace(':', '')}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    terminalreporter.write_line(f"\n{table(found)}\n")
    terminalreporter.write_line(f"stored in {file.relative_to(RESULTS.parent.parent)}")


def table(found: dict[str, dict]) -> str:
    """Each measurement with its ratio to the emitted module; above 1, the emitted one wins."""
    lines = [f"{'measurement':28}{'emitted':>12}{'eager':>12}{'ratio':>8}{'sdpa':>12}{'ratio':>8}"]
    for name, row in found.items():
        cells = [f"{name:28}{row['emitted']:>12.4g}"]
        for other in ("eager", "sdpa"):
            cells.append(f"{row[other]:>12.4g}{row[other] / row['emitted']:>8.2f}")
        lines.append("".join(cells))
    return "\n".join(lines)
