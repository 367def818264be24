"""The table of passes is the pipeline."""

from pages import DOCS, tables

from vlmspec.compiler.pipeline import PASSES


def test_passes_stand_in_their_order():
    rows = next(table for table in tables(DOCS / "design.md") if table[0][1][1] == "pass")
    assert [cells[1].strip("`") for _, cells in rows[2:]] == [step.name for step in PASSES]
