from pathlib import Path

import pytest

from vlmspec.compiler.ops import OPS, STEPS
from vlmspec.diagnostics.codes import CODES, GROUPS, codes_page
from vlmspec.report.vocabulary import describe_step, find, page, text_of

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("ops.md", page, "vlmspec ops --markdown > docs/ops.md"),
        ("diagnostics.md", codes_page, "vlmspec explain --all --markdown > docs/diagnostics.md"),
    ],
)
def test_page_is_generated(name: str, text, command: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == text(), f"write it anew: {command}"


def test_pages_hold_everything() -> None:
    ops, codes = page(), codes_page()
    assert all(f"### {name}\n" in ops for name in STEPS)
    assert all(f"| `{name}` |" in ops for name in OPS)
    assert all(f"### {name}: " in codes for name in CODES)
    assert {name[:3] for name in CODES} <= set(GROUPS)


def test_every_argument_of_a_step_is_told() -> None:
    for step in STEPS.values():
        told = {argument["name"] for argument in describe_step(step)["arguments"]}
        assert set(step.args.model_fields) <= told


def test_arguments_have_types_and_defaults() -> None:
    told = {a["name"]: (a["type"], a["default"]) for a in find("attention")[0]["arguments"]}
    assert told["num_heads"] == ("size", "required")
    assert told["head_dim"] == ("size", "not set")
    assert told["mask"] == ("text", "none")
    assert told["rope.theta"] == ("number", "10000.0")
    assert told["bias"] == ("true or false", "false")


def test_text_of_a_step_names_its_weights_and_places() -> None:
    text = text_of(find("glu")[0])
    assert "gate at gate_proj" in text and "connector: glu" in text
    assert "glu: value sets intermediate_size" in text
    assert find("nothing") == []
