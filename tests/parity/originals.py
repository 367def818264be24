"""Numbers that systems' own code gave, and what it takes to compare an emitted model with them.

A folder of `originals/` holds a tiny checkpoint under the names of that code, inputs and outputs;
its
`origin.json` says which code ran, and how. Its prompts have one id where an image goes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from parity import harness
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).with_name("originals")


@dataclass(frozen=True)
class Case:
    """What went in and what came out; `mask` is 1 at the outputs that count."""

    inputs: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]

    @property
    def mask(self) -> torch.Tensor:
        names = ("fused_attention_mask", "attention_mask.expanded")
        found = next((self.expected[n] for n in names if n in self.expected), None)
        return torch.ones(self.expected["logits"].shape[:2]) if found is None else found


def case(name: str, kind: str) -> Case:
    """One case of an original."""
    files = [FOLDER / name / f"{kind}.{part}.safetensors" for part in ("inputs", "expected")]
    return Case(*map(load_file, files))


def settings(name: str, file: str = "config.json") -> dict:
    """The configuration that the original code read."""
    return json.loads((FOLDER / name / file).read_text())


def model(root: Path, spec: str | Path, name: str, config: dict, names: dict[str, str], dtype):
    """The emitted model with an original's weights, renamed by the first prefix that fits."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    tensors = load_file(FOLDER / name / "model.safetensors")
    save_file({_renamed(k, names): v for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    output = root / f"{name}.package"
    package = harness.vlmspec.compile(spec, checkpoint=folder, output=output, force=True).load()
    return package.Model.from_pretrained(folder, dtype=dtype).eval()


def _renamed(key: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def prompt(
    given: dict[str, torch.Tensor], marker: int, blocks: list[list[int]], left: bool
) -> dict[str, torch.Tensor]:
    """The rows with each marker replaced by the next block of ids, padded again on one side."""
    ids = given["input_ids"]
    mask = given.get("attention_mask", torch.ones_like(ids))
    waiting, rows = list(blocks), []
    for row, real in zip(ids.tolist(), mask.tolist(), strict=True):
        taken = [t for t, r in zip(row, real, strict=True) if r]
        rows.append([i for t in taken for i in (waiting.pop(0) if t == marker else [t])])
    assert not waiting
    width = max(map(len, rows))
    fill = [[0] * (width - len(row)) for row in rows]
    joined = [f + r if left else r + f for f, r in zip(fill, rows, strict=True)]
    ones = [[1] * len(row) for row in rows]
    masks = [f + o if left else o + f for f, o in zip(fill, ones, strict=True)]
    return {"input_ids": torch.tensor(joined), "attention_mask": torch.tensor(masks)}


def error(model, given: dict, wanted: Case, output: str = "logits") -> float:
    """Relative L2 distance of the logits of real tokens."""
    with torch.no_grad():
        got = model(**given).logits[given["attention_mask"].bool()]
    want = wanted.expected[output][wanted.mask.bool()]
    return harness.compare(got, want)


def generated(model, given: dict, tokens: int) -> torch.Tensor:
    """The new tokens of greedy decoding."""
    options = {"do_sample": False, "eos_token_id": [], "pad_token_id": 0}
    whole = model.generate(**given, max_new_tokens=tokens, **options)
    return whole[:, -tokens:]
