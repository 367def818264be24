"""The comparison is sharp: it finds every mistake planted in an emitted package, one at a time."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from parity import harness

from vlmspec import verification
from vlmspec.runtime import import_package


@dataclass(frozen=True)
class Fault:
    """A mistake, planted at each place where the pattern stands.

    Attributes:
        name: what is wrong.
        file: where to plant it.
        pattern: the right code, a regular expression.
        wrong: what takes its place.
    """

    name: str
    file: str
    pattern: str
    wrong: str


MODELING, FUNCTIONAL = "modeling.py", "functional.py"
FAULTS = (
    # The last norm of the tower is in the checkpoint, and nothing reads it.
    Fault("norm eps x 10", MODELING, r"(?<!post_norm = nn.LayerNorm\()"
          r"(config\.hidden_size, )eps=config\.eps", r"\1eps=10 * config.eps"),
    Fault("tanh instead of exact GELU", MODELING, r"F\.gelu\((.*?)\)\)",
          r'F.gelu(\1), approximate="tanh")'),
    Fault("quick GELU of 1.7", FUNCTIONAL, r"1\.702 \*", "1.7 *"),
    Fault("GELU instead of quick GELU", MODELING, r"quick_gelu\(self", "F.gelu(self"),
    Fault("attention scale x 1.001", FUNCTIONAL, r"scale=scale\b",
          "scale=1.001 * q.shape[-1] ** -0.5"),
    Fault("last layer instead of the one before", MODELING, r"self\.blocks\[:-1\]", "self.blocks"),
    Fault("one layer too few", MODELING, r"self\.blocks\[:-1\]", "self.blocks[:-2]"),
    Fault("class token kept, last patch dropped", MODELING, r"x\[:, 1:\]", "x[:, :-1]"),
    Fault("class token not dropped", MODELING, r"x\[:, 1:\]", "x"),
    Fault("positions added after the norm", MODELING,
          r"x = x \+ self\.position_embedding\n( +)x = self\.pre_norm\(x\)",
          r"x = self.pre_norm(x)\n\1x = x + self.position_embedding"),
    Fault("norm left out", MODELING, r"self\.(pre_norm|norm1|norm)\(x\)", "x"),
    Fault("rotary base off by 0.1 %", MODELING, r"self\.config\.rope_theta", r"\g<0> * 1.001"),
    Fault("rotation reversed", FUNCTIONAL, r"\[-sin, sin\]", "[sin, -sin]"),
    Fault("positions shifted for the keys", FUNCTIONAL, r"apply_rope\(k, cos, sin\)",
          "apply_rope(k, cos.roll(1, 1), sin.roll(1, 1))"),
    Fault("residual of the feed-forward left out", MODELING, r"return x \+ self\.mlp\(h\)",
          "return self.mlp(h)"),
    Fault("residual of the attention left out", FUNCTIONAL, r"(    )x = x \+ y\n", r"\1x = y\n"),
    Fault("padding mask ignored", FUNCTIONAL, r"if attention_mask is not None:\n", "if False:\n"),
    Fault("causal mask off by one", FUNCTIONAL, r"keys <= queries", "keys < queries + 2"),
    Fault("key heads in another order", FUNCTIONAL, r"k\.transpose\(1, 2\)",
          "k.flip(2).transpose(1, 2)"),
    Fault("key heads interleaved", FUNCTIONAL, r"(    )if cache is not None:\n",
          r"\1groups = q.shape[1] // k.shape[1]\n"
          r"\1q = q.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)\n\g<0>"),
    Fault("gate and up exchanged", MODELING, r"gate, up = ", "up, gate = "),
    Fault("queries and keys exchanged", MODELING, r"q, k, v = qkv\.chunk", "k, v, q = qkv.chunk"),
    Fault("visual tokens in another order", FUNCTIONAL, r"visual\.flatten\(0, -2\)",
          "visual.flip(1).flatten(0, -2)"),
    Fault("images in another order", FUNCTIONAL, r"visual\.flatten\(0, -2\)",
          "visual.flip(0).flatten(0, -2)"),
    Fault("height and width exchanged", MODELING, r"self\.patch_embed\(pixel_values\)",
          "self.patch_embed(pixel_values.transpose(2, 3))"),
)  # fmt: skip


def plantings() -> list:
    return [pytest.param(fault, id=fault.name.replace(" ", "-")) for fault in FAULTS]


@pytest.fixture(scope="module")
def tiny(shared_folder):
    return harness.tiny_checkpoint(shared_folder, "llava", "llava", "padded", 0)


@pytest.fixture(scope="module")
def wanted(tiny):
    stages = harness.stage_paths(tiny)
    model = verification.load_reference(tiny.folder)
    return verification.run_reference(model, stages, tiny.inputs, torch.float64)


def worst_error(package: Path, tiny, wanted) -> float:
    """The largest error of any stage, and of the last token through the cache.

    Infinite where the model does not even run.
    """
    model = import_package(package).Model.from_pretrained(tiny.folder, dtype=torch.float64).eval()
    try:
        got = verification.run_emitted(model, harness.stage_paths(tiny), tiny.inputs, torch.float64)
        last = through_the_cache(model, tiny)
    except (ValueError, RuntimeError):
        return float("inf")
    rows = verification.compare(got, wanted, 1e-10, tiny.mask)
    errors = [row["error"] for row in rows if row["error"] is not None]
    return max(*errors, harness.compare(last, wanted["logits"][:, -1:]))


def through_the_cache(model, tiny) -> torch.Tensor:
    """The logits of the last token, computed alone after the others."""
    given = tiny.given(torch.float64)
    ids, mask = given.pop("input_ids"), given.pop("attention_mask")
    cache = harness.new_cache(model, *ids.shape)
    with torch.no_grad():
        model(ids[:, :-1], attention_mask=mask[:, :-1], cache=cache, **given)
        return model(ids[:, -1:], attention_mask=mask, cache=cache).logits


def copy_package(source: Path, target: Path, file: str, text: str) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    (target / file).write_text(text, encoding="utf-8")
    return target


@pytest.mark.parametrize("fault", plantings())
def test_planted_fault_is_found(tiny, wanted, tmp_path, fault):
    source = Path(harness.compiled(tiny.spec, tiny.folder).path)
    right = (source / fault.file).read_text(encoding="utf-8")
    places = list(re.finditer(fault.pattern, right))
    assert places, "the emitted code no longer has what the fault changes"
    for number, place in enumerate(places):
        wrong = right[: place.start()] + place.expand(fault.wrong) + right[place.end() :]
        package = copy_package(source, tmp_path / f"planted_{number}", fault.file, wrong)
        line = right.count("\n", 0, place.start()) + 1
        assert worst_error(package, tiny, wanted) > 1e-10, f"missed at {fault.file}:{line}"


def test_unchanged_copy_has_no_fault(tiny, wanted, tmp_path):
    source = Path(harness.compiled(tiny.spec, tiny.folder).path)
    text = (source / MODELING).read_text(encoding="utf-8")
    package = copy_package(source, tmp_path / "unchanged", MODELING, text)
    assert worst_error(package, tiny, wanted) <= 1e-10
