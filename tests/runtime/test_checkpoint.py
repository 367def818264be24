"""Checkpoints: what is read is written back, misfits are refused, and no crash mixes two."""

import copy
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from toy_model import Toy, ToyConfig, make_tensors, read_files, write_checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from vlmspec.compiler.emit.runtime import storage
from vlmspec.compiler.emit.runtime.checkpoint import CheckpointError, Entry, Tied, Weight


def saved(model: Toy, folder: Path, **options) -> dict[str, bytes]:
    model.save_pretrained(folder, **options)
    return read_files(folder)


def refusal(folder: Path, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        Toy.from_pretrained(folder, **options)
    return str(error.value)


def renamed(tensors: dict[str, Tensor], **prefixes: str) -> dict[str, Tensor]:
    result = {}
    for key, value in tensors.items():
        first, _, rest = key.partition(".")
        result[prefixes[first] + rest if first in prefixes else key] = value
    return result


# Round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_file_round_trip(tmp_path, dtype):
    before = write_checkpoint(tmp_path / "in", make_tensors(dtype=dtype))
    model = Toy.from_pretrained(tmp_path / "in")
    assert model.out.dtype == dtype
    assert not model.training
    assert saved(model, tmp_path / "out") == before


def test_parameters_hold_what_the_map_says(tmp_path):
    tensors = make_tensors()
    write_checkpoint(tmp_path, tensors)
    model = Toy.from_pretrained(tmp_path)
    parts = [tensors[f"model.attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(model.qkv.weight, torch.cat(parts))
    assert torch.equal(model.out, tensors["model.attn.o_proj.weight"].T)
    experts = torch.stack([tensors[f"model.experts.{i}.weight"] for i in range(3)])
    assert torch.equal(model.experts, experts)
    assert model.seen == 7
    assert model.head.weight is model.embed.weight
    assert all(p.requires_grad and p.is_contiguous() for p in model.parameters())
    assert model.num_parameters() == 40 * 16 + 7 * 16 * 16 + 16
    assert torch.equal(model.frequencies, Toy(ToyConfig()).frequencies)


def test_shards_round_trip(tmp_path):
    tensors = make_tensors()
    keys = sorted(tensors, reverse=True)  # not the order of the weight map
    shards = [{k: tensors[k] for k in part} for part in (keys[:4], keys[4:7], keys[7:])]
    before = write_checkpoint(tmp_path / "in", *shards)
    model = Toy.from_pretrained(tmp_path / "in")
    limit = max(sum(t.nbytes for t in shard.values()) for shard in shards)
    after = saved(model, tmp_path / "out", max_shard_size=limit)
    index = "model.safetensors.index.json"
    assert json.loads(after.pop(index)) == json.loads(before.pop(index))
    assert after == before


def test_shards_follow_the_public_rule(tmp_path):
    write_checkpoint(tmp_path / "in", make_tensors())
    model = Toy.from_pretrained(tmp_path / "in")
    tensors = model._stored_tensors()
    for limit in (1, 1000, 1024, 1100, 2048, 2561, 3000, 5000, 10**6):
        plan = split_torch_state_dict_into_shards(
            {k: t.clone() for k, t in tensors.items()}, max_shard_size=limit
        )
        got = [list(shard) for shard in storage.split_shards(tensors, limit)]
        assert got == list(plan.filename_to_tensors.values()), limit


def test_tensor_of_just_the_limit_keeps_its_place():
    tensors = {key: torch.zeros(size) for key, size in (("a", 4), ("b", 8), ("c", 3))}
    assert [list(shard) for shard in storage.split_shards(tensors, 32)] == [["a"], ["b"], ["c"]]
    assert [list(shard) for shard in storage.split_shards(tensors, 31)] == [["b"], ["a", "c"]]


def test_a_saved_model_that_was_never_loaded_loads(tmp_path):
    model = Toy(ToyConfig(tied=False))
    model.save_pretrained(tmp_path / "a", max_shard_size="3KB")
    again = Toy.from_pretrained(tmp_path / "a")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert saved(again, tmp_path / "b", max_shard_size="3KB") == read_files(tmp_path / "a")


@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", ""])
def test_alternate_prefixes_are_kept(tmp_path, prefix):
    tensors = renamed(make_tensors(), model=prefix)
    before = write_checkpoint(tmp_path / "in", tensors)
    model = Toy.from_pretrained(tmp_path / "in")
    assert saved(model, tmp_path / "out") == before
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(tensors)


def test_each_group_of_prefixes_is_chosen_for_itself(tmp_path):
    tensors = renamed(make_tensors(tied=False), lm_head="language_model.lm_head.")
    before = write_checkpoint(tmp_path / "in", tensors, config={"tied": False})
    assert saved(Toy.from_pretrained(tmp_path / "in"), tmp_path / "out") == before


def test_tied_copy_is_written_if_it_was_there(tmp_path):
    tensors = make_tensors()
    tensors["language_model.lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    before = write_checkpoint(tmp_path / "in", tensors)
    model = Toy.from_pretrained(tmp_path / "in")
    assert model.head.weight is model.embed.weight
    assert saved(model, tmp_path / "out") == before


def test_tied_copy_that_differs_is_refused(tmp_path):
    tensors = make_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"][39, 15] += 1
    write_checkpoint(tmp_path, tensors)
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(tmp_path)


def test_tied_copy_of_another_type_is_refused(tmp_path):
    tensors = make_tensors(dtype=torch.bfloat16)
    same_bytes = tensors["model.embed_tokens.weight"].view(torch.float16).clone()
    write_checkpoint(tmp_path, tensors | {"lm_head.weight": same_bytes})
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(tmp_path)


def test_untied_model_is_not_saved(tmp_path):
    write_checkpoint(tmp_path / "in", make_tensors())
    model = Toy.from_pretrained(tmp_path / "in")
    model.head.weight = torch.nn.Parameter(model.head.weight.clone())
    with pytest.raises(CheckpointError, match="no longer tied"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_known_leftovers_are_kept_aside(tmp_path):
    tensors = make_tensors()
    tensors["model.layers.0.rotary_emb.inv_freq"] = torch.randn(5)
    tensors["vision.position_ids"] = torch.arange(9)[None]
    before = write_checkpoint(tmp_path / "in", tensors)
    assert saved(Toy.from_pretrained(tmp_path / "in"), tmp_path / "out") == before


def test_nan_and_negative_zero_survive(tmp_path):
    tensors = make_tensors(dtype=torch.bfloat16)
    odd = torch.tensor([0x7FC1, -0x003E, 0x7F80, -0x8000, 0x0001], dtype=torch.int16)
    tensors["model.norm.weight"][:5] = odd.view(torch.bfloat16)
    tensors["model.embed_tokens.weight"][0, :5] = odd.view(torch.bfloat16)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    before = write_checkpoint(tmp_path / "in", tensors)
    assert saved(Toy.from_pretrained(tmp_path / "in"), tmp_path / "out") == before


def test_files_are_written_as_safetensors_writes_them(tmp_path):
    data = torch.arange(240, dtype=torch.uint8)
    tensors = {
        f"z.{name}": data.view(dtype).clone()
        for name, dtype in storage.DTYPES.items()
        if name != "BOOL"
    }
    tensors |= {"z.BOOL": data > 9, "schlüssel": torch.ones(2, 3).T, "empty": torch.ones(0, 3)}
    tensors["scalar"] = torch.tensor(1.5)
    storage.write_shard(tmp_path / "a", tensors)
    want = save({k: t.contiguous() for k, t in tensors.items()}, {"format": "pt"})
    assert (tmp_path / "a").read_bytes() == want
    assert storage._read_header(tmp_path / "a")["z.F8_E4M3"][:2] == (torch.float8_e4m3fn, (240,))


def test_configs_are_kept_byte_for_byte(tmp_path):
    write_checkpoint(tmp_path / "in", make_tensors())
    config = b'{"tied":true,\n\n "text_config": {"eos_token_id": 5, "pad_token_id": 6}}  '
    generation = b'{ "eos_token_id" : [1,2],"temperature":0.60 }'
    (tmp_path / "in" / "config.json").write_bytes(config)
    (tmp_path / "in" / "generation_config.json").write_bytes(generation)
    model = Toy.from_pretrained(tmp_path / "in")
    assert model.generation_defaults == {"eos_token_id": [1, 2], "pad_token_id": 6}
    after = saved(model, tmp_path / "out")
    assert after["config.json"] == config
    assert after["generation_config.json"] == generation


def test_dtype_device_and_config(tmp_path):
    write_checkpoint(tmp_path, make_tensors())
    model = Toy.from_pretrained(tmp_path, dtype="bfloat16", device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.seen.dtype == torch.int64
    assert Toy.from_pretrained(tmp_path, dtype=torch.float64).out.dtype == torch.float64
    assert Toy.from_pretrained(tmp_path, dtype="auto").out.dtype == torch.float32
    for wrong in ("int8", "nn", torch.int64, 3):
        with pytest.raises(ValueError, match="floating-point type"):
            Toy.from_pretrained(tmp_path, dtype=wrong)
    (tmp_path / "config.json").unlink()
    assert Toy.from_pretrained(tmp_path, config=ToyConfig()).config.tied
    assert "config.json is missing" in refusal(tmp_path)


def test_copies_of_a_model_save_the_same(tmp_path):
    before = write_checkpoint(tmp_path / "in", make_tensors())
    model = copy.deepcopy(Toy.from_pretrained(tmp_path / "in"))
    assert saved(model, tmp_path / "out") == before


def test_training_then_saving_writes_the_new_values(tmp_path):
    write_checkpoint(tmp_path / "in", make_tensors())
    model = Toy.from_pretrained(tmp_path / "in")
    model(torch.tensor([[1, 2]])).logits.sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad
    model.save_pretrained(tmp_path / "out")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(again["model.attn.k_proj.weight"], model.qkv.weight[16:32])
    assert not torch.equal(again["model.norm.weight"], torch.ones(16))


# Refusals


def test_all_misfits_are_listed_at_once(tmp_path):
    tensors = make_tensors()
    tensors["model.norm.weigth"] = tensors.pop("model.norm.weight")
    tensors["model.attn.k_proj.weight"] = torch.zeros(16, 17)
    tensors["model.experts.1.weight"] = tensors["model.experts.1.weight"].half()
    write_checkpoint(tmp_path, tensors)
    assert refusal(tmp_path).splitlines() == [
        f"{tmp_path} does not fit this architecture",
        "  1 missing:",
        "    model.norm.weight (is it model.norm.weigth?)",
        "  1 unexpected:",
        "    model.norm.weigth (is it model.norm.weight?)",
        "  1 of another shape:",
        "    model.attn.k_proj.weight is [16, 17], expected [16, 16]",
        "  1 of several types in one parameter (give a dtype):",
        "    model.experts.0.weight is F32, model.experts.1.weight is F16, "
        "model.experts.2.weight is F32",
    ]


def test_long_lists_are_cut(tmp_path):
    tensors = make_tensors() | {f"junk.{i}": torch.zeros(1) for i in range(50)}
    write_checkpoint(tmp_path, tensors)
    message = refusal(tmp_path)
    assert "50 unexpected:" in message
    assert message.count("junk.") == 20
    assert message.endswith("... and 30 more")


def test_nothing_is_allocated_before_the_check(tmp_path, monkeypatch):
    tensors = make_tensors()
    del tensors["model.seen"]  # the last of the map
    write_checkpoint(tmp_path, tensors)
    empty = torch.empty

    def on_meta_only(*args, **options):
        value = empty(*args, **options)
        assert value.is_meta
        return value

    monkeypatch.setattr(torch, "empty", on_meta_only)
    assert "1 missing" in refusal(tmp_path)


def test_module_that_has_changed_is_not_saved(tmp_path):
    model = Toy(ToyConfig())
    model.adapter = torch.nn.Linear(2, 2, bias=False)
    with pytest.raises(CheckpointError, match=r"differ in adapter\.weight"):
        model.save_pretrained(tmp_path / "out")


def header_of(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def packed(header: dict | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def changed(key: str, **fields):
    def change(data: bytes) -> bytes:
        header, body = header_of(data)
        header[key] |= fields
        return packed(header, body)

    return change


def duplicated(data: bytes) -> bytes:
    header, body = header_of(data)
    text = json.dumps(header)[:-1] + ', "model.seen": ' + json.dumps(header["model.seen"]) + "}"
    return packed(text.encode(), body)


NORM = "model.norm.weight"
DAMAGE = {
    "empty": (lambda d: b"", "header of 0 bytes in a file of 0"),
    "short": (lambda d: d[:5], "in a file of 5"),
    "header past the end": (lambda d: d[:40], "in a file of 40"),
    "huge header": (lambda d: b"\xff" * 8 + d[8:], "header of 18446744073709551615 bytes"),
    "truncated": (lambda d: d[:-1], "bytes of data, but its tensors take"),
    "trailing": (lambda d: d + b"\0", "bytes of data, but its tensors take"),
    "not JSON": (lambda d: d[:8] + b"x" + d[9:], "Expecting value"),
    "not UTF-8": (lambda d: packed(b'{"\xff": 1}', b""), "can't decode"),
    "no object": (lambda d: packed(b"[]", b""), "does not hold an object"),
    "deep": (lambda d: packed(b'{"a":' * 40 + b"1" + b"}" * 40, b""), "more than 32 deep"),
    "very deep": (lambda d: packed(b"[" * 100_000, b""), "recursion"),
    "big number": (lambda d: packed(b'{"a":' + b"9" * 5000 + b"}", b""), "digits"),
    "duplicate": (duplicated, "'model.seen' appears twice"),
    "unknown type": (changed(NORM, dtype="F3"), "is described by"),
    "type of a list": (changed(NORM, dtype=["F32"]), "is described by"),
    "negative size": (changed(NORM, shape=[-16]), "is described by"),
    "true as a size": (changed(NORM, shape=[True]), "is described by"),
    "size that overflows": (changed(NORM, shape=[2**62, 2**62]), "is described by"),
    "many dimensions": (changed(NORM, shape=[1] * 100), "is described by"),
    "offsets of three": (changed(NORM, data_offsets=[0, 1, 2]), "is described by"),
    "offsets of text": (changed(NORM, data_offsets=["0", "64"]), "is described by"),
    "no offsets": (lambda d: packed({"a": {"dtype": "F32", "shape": [1]}}, b"0000"), "described"),
    "overlap": (changed(NORM, data_offsets=[8, 72]), "should take"),
    "outside": (changed(NORM, data_offsets=[10**9, 10**9 + 64]), "should take"),
    "backwards": (changed(NORM, data_offsets=[72, 8]), "should take"),
    "other size": (changed(NORM, shape=[15]), "should take 60 bytes"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_refused(tmp_path, damage, monkeypatch):
    change, message = DAMAGE[damage]
    write_checkpoint(tmp_path, make_tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    monkeypatch.setattr("safetensors.safe_open", None)  # never reached: we refuse first
    text = refusal(tmp_path)
    assert message in text
    assert str(path) in text


def test_every_flipped_header_bit_is_noticed_or_harmless(tmp_path):
    before = write_checkpoint(tmp_path / "in", make_tensors())
    good = before["model.safetensors"]
    length = int.from_bytes(good[:8], "little")
    refused = 0
    for bit in range(0, 8 * (8 + length), 37):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / "in" / "model.safetensors").write_bytes(data)
        try:
            model = Toy.from_pretrained(tmp_path / "in")
        except CheckpointError:
            refused += 1
        else:  # metadata or space between tokens
            assert saved(model, tmp_path / "out") == before
    assert refused > 150


def test_pickles_are_refused_with_the_way_out(tmp_path):
    write_checkpoint(tmp_path, make_tensors())
    (tmp_path / "model.safetensors").unlink()
    assert "has neither model.safetensors nor" in refusal(tmp_path)
    canary = tmp_path / "canary"
    code = f"cposix\nsystem\n(S'touch {canary}'\ntR."
    (tmp_path / "pytorch_model.bin").write_text(code)
    message = refusal(tmp_path)
    assert "holds only pytorch_model.bin" in message
    assert "safetensors.torch.save_file(" in message
    assert not canary.exists()


ATTACKS = ["../x.safetensors", "/etc/passwd", "a/b", "..", ".", "", "~/x", "~x", "a\0b", "C:\\x",
           "..\\x", "\\\\host\\x", "./x", "sub/../x", "C:x"]  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_index_leads_nowhere_else(tmp_path, name):
    folder = tmp_path / "in"
    write_checkpoint(folder, make_tensors(), {})
    save_file(make_tensors(), tmp_path / "x.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(make_tensors(), name)}))
    assert "is not a plain file name" in refusal(folder)


@pytest.mark.parametrize("value", [None, [], "x", {"a": 1}, {"a": None}])
def test_odd_index_is_refused(tmp_path, value):
    write_checkpoint(tmp_path, make_tensors(), {})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": value}))
    assert "weight_map must give each tensor" in refusal(tmp_path)


def test_index_must_agree_with_its_shards(tmp_path):
    tensors = make_tensors()
    norm = tensors.pop(NORM)
    write_checkpoint(tmp_path, tensors, {NORM: norm})
    save_file({"model.norm.bias": norm}, tmp_path / "model-00002-of-00002.safetensors")
    assert f"{NORM} is not there" in refusal(tmp_path)
    save_file(
        {NORM: norm, "model.seen": norm.clone()}, tmp_path / "model-00002-of-00002.safetensors"
    )
    assert "model.seen is also in model-00001-of-00002.safetensors" in refusal(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(tmp_path)


def test_links_lead_to_the_blobs_of_the_hub_cache_only(tmp_path):
    folder, blobs = tmp_path / "repo" / "snapshots" / "abc", tmp_path / "repo" / "blobs"
    before = write_checkpoint(folder, make_tensors())
    blobs.mkdir()
    path = folder / "model.safetensors"
    path.rename(blobs / "123")
    path.symlink_to("../../blobs/123")
    model = Toy.from_pretrained(folder)
    (blobs / "123").rename(tmp_path / "secret")
    path.unlink()
    for target in ("../../../secret", tmp_path / "secret", "../../blobs/../../secret"):
        path.symlink_to(target)
        assert "link out of its folder" in refusal(folder)
        path.unlink()
    assert saved(model, folder) == before
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "secret")
    assert "link out of its folder" in refusal(folder)


CONFIGS = {
    "duplicate": ('{"tied": true, "tied": false}', "'tied' appears twice"),
    "nested duplicate": ('{"a": [{"b": 1, "b": 1}]}', "'b' appears twice"),
    "deep": ('{"a":' + "[" * 32 + "]" * 32 + "}", "more than 32 deep"),
    "large": (json.dumps({"a": "x" * 2**22}), "larger than 4194304 bytes"),
    "not JSON": ("{tied: true}", "Expecting property name"),
    "list": ("[]", "does not hold an object"),
    "option": ('{"hidden_act": "relu"}', "hidden_act must be gelu"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_is_refused(tmp_path, case):
    text, message = CONFIGS[case]
    write_checkpoint(tmp_path, make_tensors())
    (tmp_path / "config.json").write_text(text)
    error = refusal(tmp_path)
    assert message in error
    assert str(tmp_path / "config.json") in error
    if case != "option":
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "generation_config.json").write_text(text)
        assert message in refusal(tmp_path)


def test_depth_of_32_is_fine(tmp_path):
    text = '{"a":' + "[" * 31 + "]" * 31 + "}"
    assert storage.parse_json(text.encode(), tmp_path)


def test_folder_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "is not a folder" in refusal(tmp_path / "none")
    asked = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert "nor could it be downloaded: offline" in refusal("owner/name-1.5", revision="v2")
    assert asked == [("owner/name-1.5", "v2", ["*.safetensors", "*.json"])]
    for name in ("a/b/c", "../b", "~/b", "a b/c", "/a", "a/"):
        assert "is not a folder" in refusal(name)
    assert len(asked) == 1


def test_repository_is_downloaded(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, make_tensors())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
    assert Toy.from_pretrained("owner/name").seen == 7


@pytest.mark.parametrize("size", ["", "5XB", "-1GB", "0", 0, "1e9GB", "0.1B"])
def test_odd_shard_size_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size"):
        Toy(ToyConfig()).save_pretrained(tmp_path / "out", max_shard_size=size)


def test_computed_buffer_must_have_a_value(tmp_path):
    class Careless(Toy):
        def __init__(self, config: ToyConfig):
            super().__init__(config)
            self.register_buffer("table", torch.ones(3), persistent=False)

    write_checkpoint(tmp_path, make_tensors())
    with pytest.raises(CheckpointError, match="buffers without a value: table"):
        Careless.from_pretrained(tmp_path)


# Saving over a folder


def test_other_files_stay_and_stale_ones_go(tmp_path):
    target = tmp_path / "out"
    write_checkpoint(target, make_tensors(), {"lm_head.weight": torch.ones(1)})
    (target / "generation_config.json").write_text("{}")
    (target / "tokenizer.json").write_text("tokens")
    (target / "sub").mkdir()
    (target / "sub" / "a.txt").write_text("a")
    (target / "link").symlink_to("tokenizer.json")
    target.chmod(0o750)
    before = write_checkpoint(tmp_path / "in", make_tensors())
    after = saved(Toy.from_pretrained(tmp_path / "in"), target)
    assert after == before | {"tokenizer.json": b"tokens", "link": b"tokens"}
    assert (target / "sub" / "a.txt").read_text() == "a"
    assert os.readlink(target / "link") == "tokenizer.json"
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_other_files_stay_without_hard_links(tmp_path, monkeypatch):
    target = tmp_path / "out"
    write_checkpoint(target, make_tensors())
    (target / "tokenizer.json").write_text("tokens")
    (target / "link").symlink_to("tokenizer.json")

    def refuse(*args, **options):
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    assert saved(Toy.from_pretrained(target), target)["tokenizer.json"] == b"tokens"
    assert (target / "link").is_symlink()


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        Toy(ToyConfig()).save_pretrained(tmp_path / "out", max_shard_size="2KB")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir()} == {0o640}


def test_saving_through_a_link_replaces_what_it_leads_to(tmp_path):
    write_checkpoint(tmp_path / "real", make_tensors())
    (tmp_path / "link").symlink_to("real")
    Toy.from_pretrained(tmp_path / "link").save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert Toy.from_pretrained(tmp_path / "real").seen == 7


def test_places_that_cannot_be_replaced(tmp_path, monkeypatch):
    model = Toy(ToyConfig())
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="file is not a folder"):
        model.save_pretrained(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="save into a folder in it"):
        model.save_pretrained(".")
    with pytest.raises(CheckpointError, match="save into a folder in it"):
        model.save_pretrained("/proc")
    assert read_files(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("operation", ["mkdir", "rename", "fsync", "link"])
@pytest.mark.parametrize("existing", [True, False])
def test_nth_failure_leaves_old_or_new(tmp_path, monkeypatch, operation, existing):
    write_checkpoint(tmp_path / "in", make_tensors())
    model = Toy.from_pretrained(tmp_path / "in")
    model.save_pretrained(tmp_path / "new", max_shard_size="3KB")
    new, old = read_files(tmp_path / "new"), None
    model.norm.weight.data += 1
    real = getattr(os, operation)
    for n in range(1, 40):
        target = tmp_path / f"out{n}"
        if existing:
            Toy(ToyConfig(tied=False)).save_pretrained(target, max_shard_size="2KB")
            (target / "tokenizer.json").write_text("tokens")
            (target / "link").mkdir()
            old = read_files(target)
        count = 0

        def failing(*args, **options):
            nonlocal count
            count += 1
            if count == n:  # noqa: B023
                raise OSError(errno.ENOSPC, "no space")
            return real(*args, **options)

        fresh = Toy.from_pretrained(tmp_path / "in")
        want = new | ({"tokenizer.json": b"tokens"} if existing else {})
        with monkeypatch.context() as patch:
            patch.setattr(os, operation, failing)
            try:
                fresh.save_pretrained(target, max_shard_size="3KB")
            except OSError as error:
                assert error.__notes__ == [f"while saving {target}"]
                state = read_files(target) if target.exists() else None
                assert state in (old, want), f"failure {n}"
            else:
                assert read_files(target) == want
        finished = count < n
        assert saved(fresh, target, max_shard_size="3KB") == want
        assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
        if finished:
            break
    assert finished
    assert n > 1 or (operation == "link" and not existing)


def test_everything_is_on_the_disk_before_the_old_goes(tmp_path, monkeypatch):
    target = tmp_path / "out"
    write_checkpoint(target, make_tensors())
    model, events = Toy.from_pretrained(target), []
    sync, remove = os.fsync, storage.shutil.rmtree

    def note_sync(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def note_removal(path: Path, **options: bool) -> None:
        events.append("removal")
        remove(path, **options)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(storage.shutil, "rmtree", note_removal)
    model.save_pretrained(target)
    names = [event if event == "removal" else event.name for event in events]
    assert names[:2] == ["model.safetensors", "config.json"]
    assert names[2].startswith(".out.tmp-")
    assert names[3:] == [tmp_path.name, "removal"]


def litter(folder: Path, kind: str, process: int) -> Path:
    path = folder.with_name(f".{folder.name}.{kind}-{process}-0123abcd")
    path.mkdir()
    (path / "half").write_text("x")
    return path


@pytest.fixture
def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_litter_of_the_dead_is_removed_and_the_rest_left(tmp_path, dead):
    target = tmp_path / "out"
    write_checkpoint(target, make_tensors())
    gone = [litter(target, kind, dead) for kind in ("tmp", "old")]
    kept = [litter(target, "tmp", os.getppid()), litter(tmp_path / "out2", "tmp", dead)]
    kept += [tmp_path / ".out.tmp-1-x", tmp_path / ".out.old-backup"]
    for path in kept[2:]:
        path.mkdir()
    Toy.from_pretrained(target).save_pretrained(target)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("by_loading", [True, False])
def test_half_done_swap_is_rolled_back(tmp_path, dead, by_loading):
    target = tmp_path / "out"
    before = write_checkpoint(tmp_path / f".out.old-{dead}-0123abcd", make_tensors())
    (tmp_path / f".out.old-{dead}-0123abcd" / "tokenizer.json").write_text("tokens")
    litter(target, "tmp", dead)
    if by_loading:
        Toy.from_pretrained(target)
    else:
        Toy(ToyConfig()).save_pretrained(target)
        before["model.safetensors"] = read_files(target)["model.safetensors"]
        before["config.json"] = read_files(target)["config.json"]
    assert read_files(target) == before | {"tokenizer.json": b"tokens"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folder_replaced_while_it_is_read(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "a", make_tensors())
    write_checkpoint(tmp_path / "b", make_tensors())
    read = storage._read_header

    def swapping(path: Path):
        (tmp_path / "a").rename(tmp_path / "c")
        (tmp_path / "b").rename(tmp_path / "a")
        return read(path)

    monkeypatch.setattr(storage, "_read_header", swapping)
    assert "was replaced while it was being read" in refusal(tmp_path / "a")


# In processes of their own


def start(code: str, *arguments: object) -> subprocess.Popen:
    paths = os.pathsep.join(path for path in sys.path if path)
    root = Path(storage.__file__).parents[4]  # where `vlmspec` lies if it is not installed
    environment = os.environ | {"PYTHONPATH": f"{paths}{os.pathsep}{root}"}
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


SAVE_FOR_EVER = """
import sys, torch
from toy_model import Toy, ToyConfig
torch.set_num_threads(1)
model = Toy(ToyConfig(vocab_size=4000, hidden_size=64, num_experts=40))
value = int(sys.argv[2])
while True:
    value += 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    model.save_pretrained(sys.argv[1], max_shard_size="100KB")
    print(value, flush=True)
"""


def test_kills_leave_a_whole_folder(tmp_path):
    target, last = tmp_path / "out", 0
    delays = torch.rand(10, generator=torch.Generator().manual_seed(0)) * 0.08
    litter_seen = 0
    for delay in delays.tolist():
        process = start(SAVE_FOR_EVER, target, last)
        assert process.stdout is not None
        done = int(process.stdout.readline())
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        done = max([done, *map(int, process.stdout.read().split())])
        process.wait()
        litter_seen += len(list(tmp_path.iterdir())) > 1
        model = Toy.from_pretrained(target)
        values = {float(v) for p in model.parameters() for v in p.detach().aminmax()}
        assert len(values) == 1, "old and new are mixed"
        assert values <= {done, done + 1}
        assert len(list(target.glob("model-*.safetensors"))) > 5
        last = done + 1
    assert litter_seen, "no kill hit a save: the test proves nothing"
    Toy(ToyConfig()).save_pretrained(target)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


MEASURE = """
import sys, threading, time, torch
from toy_model import Toy
torch.set_num_threads(1)

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

def watch(action):
    peak, running = [before := anonymous()], True
    def look():
        while running:
            peak.append(anonymous())
            time.sleep(0.0005)
    thread = threading.Thread(target=look)
    thread.start()
    result = action()
    running = False
    thread.join()
    return result, max(*peak, anonymous()) - before

Toy.from_pretrained(sys.argv[1] + "/small")
model, loading = watch(lambda: Toy.from_pretrained(sys.argv[1] + "/large"))
_, saving = watch(lambda: model.save_pretrained(sys.argv[1] + "/out", max_shard_size="100MB"))
size = sum(p.nbytes for p in model.parameters())
print(size, loading / size, saving / size)
"""


def test_memory_of_loading_and_saving(tmp_path):
    write_checkpoint(tmp_path / "small", make_tensors())
    config = {"vocab_size": 15000, "hidden_size": 1024, "num_experts": 40, "tied": True}
    tensors = {f"model.experts.{i}.weight": torch.randn(1024, 1024) for i in range(40)}
    for name in "qkvo":
        tensors[f"model.attn.{name}_proj.weight"] = torch.randn(1024, 1024)
    tensors |= {NORM: torch.ones(1024), "model.seen": torch.tensor(7)}
    tensors["model.embed_tokens.weight"] = torch.randn(15000, 1024)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    before = write_checkpoint(tmp_path / "large", tensors, config=config)
    del tensors
    process = start(MEASURE, tmp_path)
    size, loading, saving = map(float, process.communicate()[0].split())
    assert size > 200e6
    assert 0.5 < loading < 0.9  # what is fused is read; the embedding and the norm stay mapped
    assert saving < 0.2
    assert len(before["model.safetensors"]) > size


def flat(key: str) -> str:
    return key.replace(".", "_")


def test_transformers_loads_what_we_save(tmp_path):
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True, hidden_act="gelu",
    )  # fmt: skip
    reference = LlamaForCausalLM(config)
    reference.save_pretrained(tmp_path / "in")
    before = read_files(tmp_path / "in")
    shapes = {key: value.shape for key, value in reference.model.state_dict().items()}

    class Flat(Toy):
        """Holds the tensors of that model; it need not compute it."""

        alternates = ()

        def __init__(self, config: ToyConfig):
            torch.nn.Module.__init__(self)
            self.config = config
            for key, shape in shapes.items():
                self.register_parameter(flat(key), torch.nn.Parameter(torch.empty(shape)))
            self.head = self.get_parameter(flat("embed_tokens.weight"))

        @staticmethod
        def weight_map(config: ToyConfig) -> list[Entry]:
            tied = Tied("head", flat("embed_tokens.weight"), "lm_head.weight")
            return [tied, *(Weight(flat(key), f"model.{key}") for key in shapes)]

    model = Flat.from_pretrained(tmp_path / "in")
    after = saved(model, tmp_path / "out", max_shard_size="4KB")
    assert sum(name.endswith(".safetensors") for name in after) > 2
    assert after["generation_config.json"] == before["generation_config.json"]
    again, notes = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    want = LlamaForCausalLM.from_pretrained(tmp_path / "in").state_dict()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in want.items())
    assert saved(model, tmp_path / "one") == before
