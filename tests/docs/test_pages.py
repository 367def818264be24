"""Pages hold together: fences, links, anchors, tables, and an index that names all of them."""

import re
from pathlib import Path

import pytest
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
