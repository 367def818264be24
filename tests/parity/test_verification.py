"""`vlmspec.verification` agrees with a right model, and names the first stage of a wrong one."""

import sys
from types import SimpleNamespace

import pytest
import torch
from parity import harness

from vlmspec import verification
from vlmspec.diagnostics.model import SpecError


@pytest.fixture(scope="module")
def tiny(shared_folder):
    return harness.tiny_checkpoint(shared_folder, "llava", "llava", "padded", 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_model_agrees_at_every_stage(tiny, dtype):
    result = verification.verify(harness.compiled(tiny.spec, tiny.folder), tiny.folder, dtype=dtype)
    assert result["ok"] and result["first_divergence"] is None
    assert {row["name"] for row in result["stages"]} >= {"project", "logits", "text.blocks.1"}
    assert {"torch", "transformers", "vlmspec"} <= result["versions"].keys()
    text = verification.render_verification(result)
    assert "Every stage agrees" in text and "text.blocks.1" in text


def disturbed(tiny, change):
    """The compiled package, with a mistake in every model that it loads."""
    right = harness.compiled(tiny.spec, tiny.folder)

    def load(folder, **options):
        model = right.load().Model.from_pretrained(folder, **options)
        with torch.no_grad():
            change(model)
        return model

    package = SimpleNamespace(Model=SimpleNamespace(from_pretrained=load))
    return SimpleNamespace(path=right.path, spec=right.spec, load=lambda: package)


@pytest.mark.parametrize("stage", ["vision.blocks.1", "project", "text.blocks.1"])
def test_first_stage_that_differs_is_named(tiny, stage):
    def change(model):
        next(model.get_submodule(stage).parameters()).mul_(1 + 1e-8)

    result = verification.verify(disturbed(tiny, change), tiny.folder)
    assert not result["ok"]
    assert result["first_divergence"] == stage
    assert f"differs is `{stage}`" in verification.render_verification(result)


def test_tolerance_may_be_given(tiny):
    def change(model):
        next(model.get_submodule("project").parameters()).mul_(1 + 1e-8)

    assert verification.verify(disturbed(tiny, change), tiny.folder, tolerance=1e-3)["ok"]


def test_text_alone_is_enough(tiny):
    result = verification.verify(harness.compiled(tiny.spec, tiny.folder), tiny.folder, images=0)
    assert result["ok"]


def test_unknown_dtype_is_refused(tiny):
    with pytest.raises(ValueError, match="float16"):
        verification.verify(None, tiny.folder, dtype="float16")


def test_missing_transformers_is_explained(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SpecError, match=r"VS670.*not installed"):
        verification.load_reference(tiny.folder)


@pytest.mark.parametrize("config", ['{"model_type": "nonesuch"}', "{}", "[]", "{"])
def test_unknown_model_type_is_explained(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(SpecError, match="VS671"):
        verification.load_reference(tmp_path)


def test_code_of_a_checkpoint_is_never_run(tmp_path):
    code = tmp_path / "configuration_own.py"
    code.write_text("raise SystemExit('ran')")
    auto = '{"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.Own"}}'
    (tmp_path / "config.json").write_text(auto)
    with pytest.raises(SpecError, match="VS671"):
        verification.load_reference(tmp_path)


def test_wide_math_is_undone_after_an_error():
    with pytest.raises(RuntimeError), verification.float64_math():
        assert torch.ones(1, dtype=torch.float32).float().dtype == torch.float64
        raise RuntimeError
    assert torch.float32 != torch.float64
    assert torch.ones(1, dtype=torch.float64).float().dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4)])
def test_error_ignores_padding_and_forbidden_logits(shape):
    want = torch.ones(2, 3, 4, dtype=torch.float64)
    want[0, 1, 2] = -1e38
    got = want.clone()
    got[1, 2] = 5.0
    got[0, 1, 2] = -2e38
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert verification.relative_error(got.reshape(shape), want, mask) == 0
    assert verification.relative_error(got.reshape(shape), want) > 1
    got[0, 1, 2] = 0.0
    assert verification.relative_error(got.reshape(shape), want, mask) >= 1


def test_error_of_another_size_or_of_nan_is_infinite():
    want = torch.ones(3)
    assert verification.relative_error(torch.ones(4), want) == float("inf")
    assert verification.relative_error(torch.tensor([1.0, float("nan"), 1.0]), want) == float("inf")
