"""Pages hold together: fences, links, anchors, tables, and an index that names all of them."""

import os
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from pages import (
    DOCS,
    GENERATED,
    LANGUAGES,
    PAGES,
    ROOT,
    anchors,
    blocks,
    links,
    name,
    prose,
    tables,
)

from vlmspec.api import list_specs

EACH = pytest.mark.parametrize("page", PAGES, ids=name)
WRITTEN = [page for page in PAGES if page.name not in GENERATED]


@EACH
def test_fences_have_a_language_and_are_closed(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.place}: say what this block is"


@EACH
def test_links_lead_somewhere(page):
    for line, target in links(page):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_relative_to(ROOT) and file.exists(), f"{page.name}:{line}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}:{line}: no heading is {target}"


@EACH
def test_tables_have_as_many_cells_in_each_row(page):
    for table in tables(page):
        widths = {len(cells) for _, cells in table}
        assert len(widths) == 1, f"{page.name}:{table[0][0]}: rows of {sorted(widths)} cells"
        rule = table[1][1]
        assert all(re.fullmatch(r":?-+:?", cell) for cell in rule), f"{page.name}:{table[1][0]}"


@EACH
def test_page_renders_as_it_is_read_here(page):
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    kinds = [token.type for token in tokens]
    assert kinds.count("fence") == len(blocks(page)), "a fence inside of something else"
    assert kinds.count("table_open") == len(tables(page)), "a table without an empty line before it"


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_paths_in_prose_exist(page):
    for line, text in prose(page):
        for path in re.findall(
            r"`((?:compiler|kernels|vlmspec|specs|tests|bench|docs)/[\w./-]+)`", text
        ):
            placeholder = any(part.isupper() for part in Path(path).with_suffix("").parts)
            assert placeholder or (ROOT / path).exists(), f"{page.name}:{line}: there is no {path}"


def test_index_names_every_page():
    named = {target for _, target in links(DOCS / "README.md")}
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= named


def test_readme_lists_the_architectures():
    readme = ROOT / "README.md"
    table = "".join(map(row, list_specs()))
    text = readme.read_text(encoding="utf-8")
    head = "| spec | architecture | variants |\n| --- | --- | --- |\n"
    shown = text.partition(head)[2].partition("\n\n")[0] + "\n"
    if shown != table and os.environ.get("VLMSPEC_WRITE_SNAPSHOTS"):
        readme.write_text(text.replace(head + shown, head + table), encoding="utf-8")
    else:
        assert shown == table, "VLMSPEC_WRITE_SNAPSHOTS=1 pytest tests/docs writes it anew"


def row(spec):
    """One line of the README's table of architectures."""
    paper = spec["paper"] or ""
    number = paper.removeprefix("arXiv:")
    link = f" ([{number}](https://arxiv.org/abs/{number}))" if number != paper else ""
    variants = ", ".join(spec["variants"])
    return (
        f"| [`{spec['name']}`](specs/{spec['name']}.yaml) | {spec['title']}{link} | {variants} |\n"
    )
