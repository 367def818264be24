"""The worked example of `docs/adding-an-op.md`, in a temporary registry."""

import importlib.util

import pytest
import torch
from pages import DOCS, ROOT, blocks
from test_snippets import check_excerpt, write

import vlmspec
from vlmspec.compiler import ops
from vlmspec.compiler.emit import library

PAGE = DOCS / "adding-an-op.md"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's files, whose records are registered as long as the test runs."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGE):
        if "file" in block.values:
            write(block)
    monkeypatch.setattr(
        library, "FILES", (*library.FILES, str(tmp_path / "kernels/tanh/reference.py"))
    )
    library.library.cache_clear()
    records = load(tmp_path / "compiler/ops/tanh.py")
    for table, record in (
        (ops.OPS, records.TANH),
        (ops.MODULE_KINDS, records.TANH_MODULE),
        (ops.STEPS, records.TANH_STEP),
    ):
        monkeypatch.setitem(table, record.name, record)
    yield tmp_path
    library.library.cache_clear()


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_new_op_compiles_and_computes_the_formula(place):
    package = vlmspec.compile("bounded.yaml").load()
    model = package.Model().double()
    norm = model.text.dynamic_tanh
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn_like(parameter))
        x = torch.randn(2, 5, 16, dtype=torch.float64)
        want = (norm.alpha * x).tanh() * norm.weight + norm.bias
        torch.testing.assert_close(norm(x), want)
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 50)
    model.save_pretrained("checkpoint")
    again = package.Model.from_pretrained("checkpoint")
    assert all(map(torch.equal, again.parameters(), model.parameters()))


def test_excerpts_are_what_is_emitted(place):
    for block in blocks(PAGE):
        source = block.values.get("excerpt", "")
        if source.endswith(".yaml"):
            check_excerpt(block)
        elif source:
            assert block.text in (ROOT / source).read_text(encoding="utf-8"), block.place
