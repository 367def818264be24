"""Reading YAML: values and places."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmspec.diagnostics.model import Source
from vlmspec.dsl.yaml import ListNode, MapNode, ScalarNode, load_document, locate


def load(text: str) -> object:
    return load_document(Source("a.yaml", text)).plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-0", 0),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("1:30:00", "1:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("2001-99-99", "2001-99-99"),
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5e+3", -1500.0),
        ("0.0", 0.0),
        ("1e", "1e"),
        (".", "."),
        ("inf", "inf"),
        ("nan", "nan"),
        ("9223372036854775808", 2**63),
        ("-9223372036854775808", -(2**63)),
        ("'12'", "12"),
        ('"true"', "true"),
        ("'0755'", "0755"),
        ('"a\\nb\\u00e9"', "a\nb\u00e9"),
        ("\u0661\u0662", "\u0661\u0662"),
        ("|\n  x\n  y\n", "x\ny\n"),
        (">-\n  x\n  y\n", "x y"),
        ("a#b", "a#b"),
        ("${vision.hidden_size * 2}", "${vision.hidden_size * 2}"),
    ],
)
def test_scalar_has_the_value_of_the_core_schema(text: str, value: object) -> None:
    node = load_document(Source("a.yaml", f"k: {text}")).get("k")
    assert isinstance(node, ScalarNode)
    assert node.value == value
    assert type(node.value) is type(value)


def test_document_keeps_order_and_nesting() -> None:
    text = "b: {x: [1, [2, {y: 3}]], z: []}\na:\n- 1\n- k: v\n  l: {}\n7: seven\n"
    assert load(text) == {
        "b": {"x": [1, [2, {"y": 3}]], "z": []},
        "a": [1, {"k": "v", "l": {}}],
        "7": "seven",
    }
    assert list(load(text)) == ["b", "a", "7"]


@pytest.mark.parametrize(
    "text", ["---\na: 1\n", "a: 1\n...\n", "# c\na: 1 # d\n", "a: 1\r\n", "\n\na: 1", "a: 1\r"]
)
def test_framing_of_a_document_does_not_matter(text: str) -> None:
    assert load(text) == {"a": 1}


def test_anything_within_the_limits_is_read() -> None:
    assert load("a: " + "[" * 63 + "]" * 63) is not None
    items = load("a: [" + "1," * 49_997 + "]")
    assert isinstance(items, dict)
    assert len(items["a"]) == 49_997


def test_spans_cover_exactly_their_text() -> None:
    text = (
        "a:\n  b: [1,\n    'x']  # c\n\n  # d\nlist:\n- k: v\n- |\n  text\n\nlast: {p: q}\nempty:\n"
    )
    root = load_document(Source("a.yaml", text))
    for loc, expected in {
        ("a",): "b: [1,\n    'x']",
        ("a", "b"): "[1,\n    'x']",
        ("a", "b", 1): "'x'",
        ("list",): "- k: v\n- |\n  text",
        ("list", 0): "k: v",
        ("list", 1): "|\n  text",
        ("last",): "{p: q}",
        ("last", "p"): "q",
        ("empty",): "",
        (): text.rstrip(),
    }.items():
        assert locate(root, loc).text == expected
    assert locate(root, ("empty",)).location == "a.yaml:12:7"


def test_locate_skips_what_does_not_resolve() -> None:
    root = load_document(Source("a.yaml", "a:\n  b: 1\n  c: [x, y]\n3: z\n"))
    assert locate(root, ("a", "tag", "b")).location == "a.yaml:2:6"
    assert locate(root, ("a", "tag", "b"), key=True).location == "a.yaml:2:3"
    assert locate(root, ("a", "missing"), key=True).text == "a"
    assert locate(root, ("missing",), key=True) == root.span
    assert locate(root, ("a", "c", 1)).text == "y"
    assert locate(root, ("a", "c", 1), key=True).text == "y"
    assert locate(root, ("a", "c", 2)).text == "[x, y]"
    assert locate(root, ("a", "c", -1)).text == "[x, y]"
    assert locate(root, (3,)).text == "z"
    assert locate(root, ("a", "b", "[key]")).text == "b"


def test_nodes_answer_for_missing_keys() -> None:
    root = load_document(Source("a.yaml", "a: {b: [1]}"))
    inner = root.get("a")
    assert isinstance(inner, MapNode)
    assert isinstance(inner.get("b"), ListNode)
    assert inner.get("c") is None
    assert inner.key_span("b").text == "b"
    assert inner.key_span("c") == inner.span


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.sampled_from(["x", "no", "1_0"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), PLAIN, max_size=4))
def test_what_is_written_is_read_back(data: dict[str, object]) -> None:
    assert load("\n".join(block(data, 0))) == data


def block(data: dict[str, object], depth: int) -> list[str]:
    """Write a mapping as indented lines, the simplest way there is."""
    lines = ["{}"] if not data else []
    for key, value in data.items():
        lines.append(f"{key}:")
        inner = block(value, 0) if isinstance(value, dict) else [flow(value)]
        lines += [f"  {line}" for line in inner]
    return lines


def flow(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow(item)}' for key, item in value.items())}}}"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def test_reading_needs_neither_pydantic_nor_torch() -> None:
    code = "import sys, vlmspec.dsl.yaml; print(*{'pydantic', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
