"""Every example of the language reference compiles, or is refused in the words below it."""

import os
import re
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from pages import DOCS, Block, blocks

import vlmspec
from vlmspec import api
from vlmspec.diagnostics.model import SpecError
from vlmspec.diagnostics.render import render

PAGE = DOCS / "language.md"
EXAMPLES = [block for block in blocks(PAGE) if block.language == "yaml"]
ANSWERS = {a: b for a, b in pairwise(blocks(PAGE)) if "error" in a.marks}

ARCHITECTURE = """\
vlmspec: 1
name: host
title: "A small host"
inputs: {input_ids: text, pixel_values: image}
graph:
  vision: {encoder: clip-vit, from: pixel_values, config: vision_config}
  project: {connector: linear, from: vision, out: text.hidden_size}
  merged: {fusion: splice, from: {text: input_ids, image: project}, placeholder: 9}
  text: {decoder: llama, from: merged, config: text_config}
outputs: {logits: text}
"""
PART = """\
vlmspec: 1
part: guest
kind: decoder
title: A small guest
sizes:
  vocab_size: 100
embed: [{embedding: {rows: vocab_size, width: 64}}]
body: [rms_norm]
head: [{linear: {out: vocab_size}, name: head}]
"""
USERS = {
    "decoder": """\
vlmspec: 1
name: host
title: "A small host"
inputs: {input_ids: text}
graph:
  text: {decoder: NAME, from: input_ids}
outputs: {logits: text}
""",
    "connector": ARCHITECTURE.replace("{connector: linear, from", "{connector: NAME, from")
    .replace(", out: text.hidden_size", "")
    .replace("config: text_config", "config: text_config, hidden_size: 64"),
    "memory": """\
vlmspec: 1
name: host
title: "A host with a memory"
inputs: {input_ids: text, pixel_values: image}
graph:
  vision: {encoder: clip-vit, from: pixel_values, config: vision_config}
  project: {connector: linear, from: vision, out: 64}
  text: {decoder: NAME, from: {tokens: input_ids, memory: project}}
outputs: {logits: text}
""",
}


def sections(text: str, indent: int = 0) -> dict[str, str]:
    """A mapping's text by key; what stands before the first key has the key ``."""
    found: dict[str, str] = {}
    key = ""
    for line in text.splitlines(keepends=True):
        if match := re.match(rf" {{{indent}}}(\w+):", line):
            key = match[1]
        found[key] = found.get(key, "") + line
    return found


def merged(host: str, fragment: str) -> str:
    """The host with the fragment's sections in place of its own, components and sizes singly."""
    whole = sections(host)
    for key, text in sections(fragment).items():
        if key in ("graph", "sizes") and key in whole:
            text = "".join((sections(whole[key], 2) | sections(text, 2)).values())
        whole[key] = text
    return "".join(whole.values())


def write(block: Block) -> str:
    """Write the files that an example needs; gives the spec's name."""
    if block.marks & {"architecture", "fragment"}:
        whole = block.text if "architecture" in block.marks else merged(ARCHITECTURE, block.text)
        Path("spec.yaml").write_text(whole, encoding="utf-8")
        return "spec.yaml"
    part = block.text
    if "part-fragment" in block.marks:
        part = merged(PART, block.text)
    elif "body" in block.marks:
        part = merged(PART, "body:\n" + textwrap.indent(block.text, "  "))
    name, kind = (re.search(rf"^{key}: (.+)$", part, re.M)[1] for key in ("part", "kind"))  # pyright: ignore[reportOptionalSubscript]
    Path("parts").mkdir()
    Path(f"parts/{name}.yaml").write_text(part, encoding="utf-8")
    kind = "memory" if "memory" in block.marks else kind
    Path("spec.yaml").write_text(USERS[kind].replace("NAME", name), encoding="utf-8")
    return "spec.yaml"


def lines(block: Block) -> str:
    return f"{block.line}-{'-'.join(sorted(block.marks)) or 'unmarked'}"


@pytest.mark.parametrize("block", [b for b in EXAMPLES if "error" not in b.marks], ids=lines)
def test_example_compiles_and_imports(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = vlmspec.compile(write(block), output="package").load()
    with torch.device("meta"):
        package.Model()


@pytest.mark.parametrize("block", ANSWERS, ids=lines)
def test_fault_is_told_as_the_page_tells_it(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        api.check(write(block))
    found = render(caught.value.diagnostics) + "\n"
    answer = ANSWERS[block].text
    if found != answer and os.environ.get("VLMSPEC_WRITE_SNAPSHOTS"):
        page = PAGE.read_text(encoding="utf-8")
        old = f"{block.text}```\n\n```text\n"
        PAGE.write_text(page.replace(f"{old}{answer}", f"{old}{found}"), encoding="utf-8")
        return
    assert found == answer, f"{block.place}\n{found}"


def test_every_example_has_a_mark():
    known = {"architecture", "part", "fragment", "part-fragment", "body"}
    for block in EXAMPLES:
        assert len(block.marks & known) == 1, block.place
