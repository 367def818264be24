"""Broken checkpoints: what `check` and `from_pretrained` say of each.

`checkpoints/NAME.txt` holds the rendering of the check, then the message of the loader.
After a deliberate change: `VLMSPEC_WRITE_SNAPSHOTS=1 pytest tests/diagnostics`, then read the diff.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlmspec import api
from vlmspec.cli import run
from vlmspec.compiler.checks import stored_tensors
from vlmspec.diagnostics.model import SpecError
from vlmspec.diagnostics.render import render

HERE = Path(__file__).parent / "checkpoints"
FOLDER = Path("broken")
FC1 = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
NORM = "language_model.model.norm.weight"

Tensors = dict[str, np.ndarray]
CASES: dict[str, Callable[[Tensors, dict[str, Any]], None]] = {}


def case(function: Callable[[Tensors, dict[str, Any]], None]) -> Any:
    CASES[function.__name__] = function
    return function


def write(tensors: Tensors, name: str = "model.safetensors") -> None:
    save_file(tensors, FOLDER / name)


def write_config(config: dict[str, Any]) -> None:
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2))


def write_shards(tensors: Tensors) -> dict[str, str]:
    """Write two shards; gives the table of the index, which is written with it."""
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        write({name: tensors[name] for name in part}, shard)
        places |= dict.fromkeys(part, shard)
    write_index(places)
    return places


def write_index(places: dict[str, str]) -> None:
    index = FOLDER / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}, indent=2, sort_keys=True))


@case
def missing(tensors: Tensors, config: dict[str, Any]) -> None:
    del tensors[FC1], tensors[NORM]
    write(tensors)


@case
def renamed(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[FC1.replace("fc1", "fc_1")] = tensors.pop(FC1)
    write(tensors)


@case
def unexpected(tensors: Tensors, config: dict[str, Any]) -> None:
    for index in range(7):
        tensors[f"language_model.model.layers.{index + 2}.mlp.gate_proj.weight"] = tensors[NORM]
    write(tensors)


@case
def of_another_shape(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[FC1] = np.ascontiguousarray(tensors[FC1].T)
    tensors[NORM] = tensors[NORM][:-1].copy()
    write(tensors)


@case
def of_other_sizes(tensors: Tensors, config: dict[str, Any]) -> None:
    config["text_config"]["hidden_size"] = 32
    write_config(config)
    write(tensors)


@case
def of_another_architecture(tensors: Tensors, config: dict[str, Any]) -> None:
    write({f"transformer.h.{i}.attn.weight": np.zeros(3, np.float32) for i in range(9)})


@case
def of_another_model_type(tensors: Tensors, config: dict[str, Any]) -> None:
    write_config(config | {"model_type": "idefics"})
    write(tensors)


@case
def cut_off(tensors: Tensors, config: dict[str, Any]) -> None:
    write(tensors)
    path = FOLDER / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@case
def not_safetensors(tensors: Tensors, config: dict[str, Any]) -> None:
    (FOLDER / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


@case
def pickled(tensors: Tensors, config: dict[str, Any]) -> None:
    (FOLDER / "pytorch_model.bin").write_bytes(b"\x80\x04.")


@case
def shard_outside(tensors: Tensors, config: dict[str, Any]) -> None:
    write_index(write_shards(tensors) | {NORM: "../model.safetensors"})


@case
def shard_missing(tensors: Tensors, config: dict[str, Any]) -> None:
    write_shards(tensors)
    (FOLDER / "model-00002-of-00002.safetensors").unlink()


@case
def shard_without_its_tensor(tensors: Tensors, config: dict[str, Any]) -> None:
    places = write_shards(tensors)
    other = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    write_index(places | {NORM: (other - {places[NORM]}).pop()})


@case
def index_not_json(tensors: Tensors, config: dict[str, Any]) -> None:
    write_shards(tensors)
    (FOLDER / "model.safetensors.index.json").write_text('{"weight_map": {,}}')


@case
def shards_without_index(tensors: Tensors, config: dict[str, Any]) -> None:
    write_shards(tensors)
    (FOLDER / "model.safetensors.index.json").unlink()


@case
def without_config(tensors: Tensors, config: dict[str, Any]) -> None:
    write(tensors)
    (FOLDER / "config.json").unlink()


@case
def config_cut_off(tensors: Tensors, config: dict[str, Any]) -> None:
    write(tensors)
    path = FOLDER / "config.json"
    path.write_text(path.read_text()[:40])


@case
def config_too_deep(tensors: Tensors, config: dict[str, Any]) -> None:
    write(tensors)
    (FOLDER / "config.json").write_text('{"a": ' + "[" * 99 + "]" * 99 + "}")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("package") / "llava"
    return api.compile("llava", variant="tiny", output=folder)


@pytest.fixture
def checkpoint(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A sound checkpoint's tensors and config, with the config written to `broken/`."""
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir()
    config = package.load().modeling.Config().to_json()
    write_config(config)
    program = api.build("llava", variant="tiny").program
    stored = stored_tensors(program)
    return {t.key: np.zeros(t.shape, np.float32) for t in stored}, config


def checked() -> str:
    with pytest.raises(SpecError) as caught:
        api.check("llava", checkpoint=FOLDER)
    return render(caught.value.diagnostics)


def loaded(package: Any) -> str:
    # The loader compares sizes, options and tensors; the model type is the compiler's to check.
    if "VS406" in checked():
        return "loads"
    with pytest.raises(ValueError) as caught:
        package.load().Model.from_pretrained(FOLDER)
    return str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_a_broken_checkpoint_is_refused_in_exactly_these_words(
    name: str, package: Any, checkpoint: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    CASES[name](*checkpoint)
    found = f"{checked()}\n\n--- from_pretrained\n{loaded(package)}\n"
    found = found.replace(str(Path.cwd()), ".")
    expected = HERE / f"{name}.txt"
    if os.environ.get("VLMSPEC_WRITE_SNAPSHOTS"):
        expected.write_text(found, encoding="utf-8")
    assert found == expected.read_text(encoding="utf-8")
    assert run(["check", "llava", "--checkpoint", str(FOLDER)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err


def test_a_sound_checkpoint_passes(package: Any, checkpoint: Any) -> None:
    tensors, _ = checkpoint
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3, np.float32)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = np.zeros((1, 17), np.int64)
    write(tensors)
    assert api.check("llava", checkpoint=FOLDER) == ()
    package.load().Model.from_pretrained(FOLDER)


def test_the_other_spelling_of_a_prefix_passes(checkpoint: Any) -> None:
    tensors, _ = checkpoint
    write({key.replace(".vision_model.", "."): value for key, value in tensors.items()})
    assert api.check("llava", checkpoint=FOLDER) == ()


def test_a_tied_tensor_may_be_absent_or_there(checkpoint: Any) -> None:
    tensors, config = checkpoint
    write_config(config | {"tie_word_embeddings": True})
    write(tensors)
    assert api.check("llava", checkpoint=FOLDER) == ()
    del tensors["language_model.lm_head.weight"]
    write(tensors)
    assert api.check("llava", checkpoint=FOLDER) == ()


def test_a_folder_with_a_config_alone_gives_sizes(checkpoint: Any) -> None:
    assert api.check("llava", checkpoint=FOLDER) == ()
