"""The mid-size model that benchmarks race, and the file that keeps their results."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

RESULTS = Path(__file__).resolve().parent / "results"


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
def results():
    """A table that tests fill; it is stored and its ratios are printed at the end."""
    import racing

    found: dict[str, dict] = {}
    yield found
    record = {**racing.circumstances(), "results": found}
    RESULTS.mkdir(exist_ok=True)
    stamp = record["date"][:19].replace(":", "")
    file = RESULTS / f"models-{stamp}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\n\n{table(found)}\n\nstored in {file.relative_to(RESULTS.parent.parent)}")


def table(found: dict[str, dict]) -> str:
    """Each measurement with its ratio to the emitted module; above 1, the emitted one wins."""
    lines = [f"{'measurement':28}{'emitted':>12}{'eager':>12}{'ratio':>8}{'sdpa':>12}{'ratio':>8}"]
    for name, row in found.items():
        cells = [f"{name:28}{row['emitted']:>12.4g}"]
        for other in ("eager", "sdpa"):
            cells.append(f"{row[other]:>12.4g}{row[other] / row['emitted']:>8.2f}")
        lines.append("".join(cells))
    return "\n".join(lines)
