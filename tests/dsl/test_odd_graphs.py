"""Graphs wired in every wrong way: refused with a place, or compiled to code that parses."""

import ast
from pathlib import Path

import pytest

from vlmspec import api
from vlmspec.diagnostics.model import SpecError

TESTS = Path(__file__).parents[1]
SPEC = (Path(__file__).parent / "data" / "sample.yaml").read_text(encoding="utf-8")
PARTS = {
    name: (TESTS / "diagnostics" / "specs" / "parts" / f"{name}.yaml").read_text(encoding="utf-8")
    for name in ("tower", "reader")
}
HEAD, _, TAIL = PARTS["tower"].partition("    body:\n")
NORM = "[{layer_norm: 1e-5}]"
TWO = f"kinds: {{a: {NORM}, b: {NORM}}}"

LAYERS = [
    "kinds: 3",
    "kinds: {}",
    "kinds: {a: 3}, pattern: [a]",
    "kinds: {a: []}, pattern: [a]",
    f"{TWO}, pattern: [a, c]",
    f"{TWO}, pattern: [a * 999999999999, b]",
    f"{TWO}, pattern: [a * -1]",
    f"{TWO}, pattern: [a * x]",
    f"{TWO}, at: {{b: [99]}}",
    f"{TWO}, at: {{b: [-1]}}",
    f"{TWO}, at: {{b: [x]}}",
    f"{TWO}, at: {{c: [1]}}",
    f"{TWO}, pattern: [a, b], at: {{b: [1]}}",
    f"kinds: {{class: {NORM}, B-: {NORM}}}, pattern: [class, B-]",
    f"kinds: {{a: {NORM}, b: [{{linear: 5}}]}}, pattern: [a, b]",
    f"kinds: [{{a: {NORM}}}], pattern: [a]",
    "body: 3",
    "body: {a: 1}",
    "body: [null]",
    "body: [[]]",
    "body: [{}]",
    "body: [layer_norm, 3]",
    "body: [{linear: 5}]",
]
STEP_KEYS = [
    "from: nowhere",
    "from: 3",
    "from: [a]",
    "from: {a: b}",
    "from: pixel_values",
    "as: 3",
    "as: class",
    "as: [x]",
    "as: ''",
]
SHAPES = [
    "[images, 3, 28, 28]",
    "[]",
    "[n]",
    "[class]",
    "['a b']",
    "['\ufb01']",
    "[__x__]",
    "[min]",
    "[-3, 0]",
    "['1 // 0']",
    "[1.5]",
    "[text.eps]",
    "['{x}']",
    "3",
]
FUSED = [
    "{a: vision}",
    "{text: vision, image: input_ids}",
    "{text: input_ids, image: input_ids}",
    "{text: pixel_values, image: pixel_values}",
    "{text: project, image: project}",
    "project",
    "text",
]
NAMES = ["text", "vision", "project", "merged", "pixel_values", "input_ids"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    for name, text in PARTS.items():
        (tmp_path / "parts" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def outcome(folder: Path, spec: str = SPEC, tower: str = PARTS["tower"]) -> str:
    """Compile; gives the codes of the faults, or nothing."""
    (folder / "sample.yaml").write_text(spec, encoding="utf-8")
    (folder / "parts" / "tower.yaml").write_text(tower, encoding="utf-8")
    try:
        compiled = api.compile(folder / "sample.yaml", output=folder / "package")
    except SpecError as error:
        assert all(found.primary for found in error.diagnostics)
        return " ".join(d.code for d in error.diagnostics if d.severity == "error")
    for path in compiled.path.glob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"))
    return ""


@pytest.mark.parametrize("layers", LAYERS)
def test_odd_layers(folder: Path, layers: str) -> None:
    arguments = (
        f"  - layers: {{count: num_layers, {layers}}}\n    name: blocks\n    weights: layers\n"
    )
    outcome(folder, tower=HEAD.partition("  - layers:")[0] + arguments)


@pytest.mark.parametrize("key", STEP_KEYS)
def test_odd_values_of_steps_are_refused(folder: Path, key: str) -> None:
    step = "  - position_embedding: num_positions\n"
    assert outcome(folder, tower=PARTS["tower"].replace(step, f"{step}    {key}\n"))


@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes_of_inputs(folder: Path, shape: str) -> None:
    declared = f"pixel_values: {{kind: image, shape: {shape}}}"
    outcome(folder, SPEC.replace("pixel_values: image", declared))


@pytest.mark.parametrize("fused", FUSED)
def test_odd_operands_of_a_fusion_are_refused(folder: Path, fused: str) -> None:
    operands = "{text: input_ids, image: project}"
    assert outcome(folder, SPEC.replace(operands, fused))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "place", ["from: pixel_values", "from: vision", "from: merged", "{logits: text}"]
)
def test_odd_wires(folder: Path, place: str, name: str) -> None:
    wired = f"{{logits: {name}}}" if place.startswith("{") else f"from: {name}"
    found = outcome(folder, SPEC.replace(place, wired))
    if place.startswith("{") and name.endswith(("values", "ids")):
        assert found == "VS213"
