from pathlib import Path

import pytest

from vlmspec import api
from vlmspec.compiler.ir.dim import Dim

PAIR = Path(__file__).parent / "data" / "pair.yaml"
SIDE = "vision.image_size // vision.patch_size"


def test_visual_tokens_are_a_formula_in_the_image_size() -> None:
    (entry,) = api.show("llava")["visual_tokens"].values()
    assert entry["formula"] == f"({SIDE}) * ({SIDE})"
    assert (entry["value"], entry["image"], entry["per"]) == (576, "[3, 336, 336]", "image")
    assert entry["input"] == "pixel_values"


@pytest.mark.parametrize("size", [28, 63, 336])
def test_visual_tokens_follow_the_image_size(size: int) -> None:
    data = api.show("llava", set=[f"vision.image_size={size}"])
    entry = data["visual_tokens"]["merged"]
    assert entry["value"] == (size // 14) ** 2
    assert Dim.of(entry["formula"]).value(data["sizes"]) == entry["value"]


def test_shapes_have_values_and_names() -> None:
    vision = api.show(PAIR)["components"][0]
    assert vision["input"] == "[images, 3, 28, 28]"
    assert vision["output"] == "[images, 16, 24]"
    assert vision["output_formula"] == "[images, vision.num_patches, vision.hidden_size]"
    assert vision["spec"].endswith("pair.yaml:13")


def test_components_stand_in_the_order_of_the_spec_with_what_they_read() -> None:
    components = api.show(PAIR)["components"]
    assert [(c["name"], c["kind"], c["op"]) for c in components] == [
        ("vision", "encoder", "seer"),
        ("bridge", "connector", "mlp"),
        ("merged", "fusion", "splice"),
        ("text", "decoder", "teller"),
    ]
    assert components[2]["reads"] == {"text": "input_ids", "image": "bridge"}


def test_children_add_up_to_their_parent() -> None:
    def check(entry: dict) -> None:
        inside = sum(child["parameters"] for child in entry["children"])
        if entry["children"]:
            assert inside * entry.get("count", 1) == entry["parameters"], entry["name"]
        for child in entry["children"]:
            check(child)

    data = api.show("llava")
    for component in data["components"]:
        check(component)
    assert sum(c["parameters"] for c in data["components"]) == data["total_parameters"]


def test_a_module_that_nothing_reads_is_marked() -> None:
    vision = api.show(PAIR)["components"][0]
    marked = [child["name"] for child in vision["children"] if child.get("unused")]
    assert marked == ["post_norm"]
