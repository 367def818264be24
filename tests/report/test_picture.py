import json
import re
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import pytest

from vlmspec import api
from vlmspec.report.picture import draw, picture
from vlmspec.report.svg import arrange

PAIR = Path(__file__).parent / "data" / "pair.yaml"
SVG = "{http://www.w3.org/2000/svg}"


def component(name: str, reads: dict[str, str]) -> dict[str, Any]:
    return {"name": name, "kind": "encoder", "op": "x", "reads": reads, "output": f"[{name}]"}


def made(components: list[dict[str, Any]], outputs: dict[str, str]) -> dict[str, Any]:
    inputs = {"ids": {"kind": "text", "shape": "[t]"}, "px": {"kind": "image", "shape": "[p]"}}
    return {"name": "m", "inputs": inputs, "components": components, "outputs": outputs}


CHAIN = made(
    [
        component("a", {"x": "px"}),
        component("b", {"x": "a"}),
        component("c", {"x": "b", "t": "ids"}),
    ],
    {"out": "c"},
)
SKIP = made(
    [
        component("a", {"x": "px"}),
        component("b", {"x": "a"}),
        component("c", {"x": "b", "skip": "a", "image": "px"}),
        component("d", {"text": "ids", "memory": "a", "x": "c"}),
    ],
    {"logits": "d", "state": "c"},
)


@pytest.mark.parametrize("data", [CHAIN, SKIP], ids=["chain", "skip"])
def test_boxes_do_not_touch_and_read_from_the_left(data: dict[str, Any]) -> None:
    found = picture(data)
    places = arrange(found)
    boxes = list(places.values())
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart = one.right < other.x or other.right < one.x
            assert apart or one.y + one.height < other.y or other.y + other.height < one.y
    for arrow in found.arrows:
        assert places[arrow.source].right + 24 < places[arrow.target].x


@pytest.mark.parametrize("data", [CHAIN, SKIP], ids=["chain", "skip"])
def test_no_arrow_runs_through_a_box(data: dict[str, Any]) -> None:
    """An arrow keeps to its source's row until just before its target."""
    found = picture(data)
    places = arrange(found)
    for arrow in found.arrows:
        source, target = places[arrow.source], places[arrow.target]
        for place in places.values():
            between = source.right < place.x and place.right < target.x
            assert not (between and place.y == source.y), arrow


def test_svg_is_well_formed_and_inside_its_page() -> None:
    text = api.draw(PAIR)
    root = xml.fromstring(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [rect for rect in root.iter(f"{SVG}rect") if "rx" in rect.attrib]
    assert len(boxes) == 7
    for rect in boxes:
        x, y, w, h = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        assert 0 < x and x + w < width and 0 < y and y + h < height
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert {"vision", "seer", "image [images, 16, 16]", "logits"} <= words


def test_labels_are_escaped() -> None:
    data = made([component("a", {'q"<': "px"})], {"out": "a"})
    data["title"] = "A & B <c>"
    root = xml.fromstring(draw(data, "svg"))
    assert "A & B <c>" in {element.text for element in root.iter(f"{SVG}text")}
    assert '"q#quot;#lt; [p]"' in draw(data, "mermaid")
    assert r'label="q\"< [p]"' in draw(data, "dot")


def test_all_formats_have_the_same_arrows() -> None:
    arrows = json.loads(api.draw(PAIR, "json"))["arrows"]
    pairs = {(arrow["source"], arrow["target"]) for arrow in arrows}
    assert ("bridge", "merged") in pairs and len(pairs) == 6
    mermaid = re.findall(r'^  (\w+) -- ".*" --> (\w+)$', api.draw(PAIR, "mermaid"), re.MULTILINE)
    dot = re.findall(r"^  (\w+) -> (\w+) ", api.draw(PAIR, "dot"), re.MULTILINE)
    assert set(mermaid) == set(dot) == pairs
