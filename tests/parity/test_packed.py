"""Models that pack images and videos of all sizes into one sequence are the public ones.

Their forward traces when it is given a plan; see `Model.plan`.
"""

import inspect
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import references
import torch
from parity import harness
from parity.harness import Tiny
from parity.test_models import DTYPES, SEARCH, Architecture, assert_same_tensors
from safetensors.torch import save_file


@dataclass(frozen=True)
class Packed(Architecture):
    """What is tested of one spec; see `Architecture`. A video alone has rows of one length.

    Attributes:
        set: options that make the spec follow the reference where it would not.
    """

    set: tuple[str, ...] = ()


SIDE = ("text.advance=side",)
QWEN2_SIZES = {
    "tied": {"model": {"tie_word_embeddings": True}, "text": {"num_key_value_heads": 1}},
    "wide": {
        "vision": {"embed_dim": 40, "num_heads": 5, "depth": 3, "mlp_ratio": 3, "hidden_size": 72},
        "text": {
            "hidden_size": 72,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "rope_parameters": {**references.MROPE, "rope_theta": 1e4, "mrope_section": [1, 2, 3]},
        },
    },
}
WINDOW_SIZES = {
    "wide-windows": {
        "vision": {"window_size": 56, "fullatt_block_indexes": [0, 2], "num_heads": 2},
        "model": {"tie_word_embeddings": True},
    },
    "all-full": {"vision": {"depth": 4, "fullatt_block_indexes": [0, 1, 2, 3]}},
}
PIXTRAL_SIZES = {
    "silu": {"vision": {"hidden_act": "silu", "num_attention_heads": 2, "num_hidden_layers": 3}},
    "grouped": {"text": {"head_dim": 16, "num_attention_heads": 6, "num_key_value_heads": 1}},
}
NAVIT_SIZES = {
    "wide": {
        "vision": {"num_attention_heads": 3, "layer_norm_eps": 1e-5},
        "text": {"num_key_value_heads": 1},
    },
    "tied": {"text": {"tie_word_embeddings": True}, "model": {"tie_word_embeddings": True}},
}
ARCHITECTURES = (
    Packed(
        "qwen2-vl",
        "qwen2_vl",
        sizes=QWEN2_SIZES,
        parameters={None: 8_291_375_616, "2b": 2_208_985_600, "72b": 73_405_560_320},
        set=SIDE,
    ),
    Packed("qwen2-vl", "qwen2_vl_video", kinds=("plain", "padded", "right"), set=SIDE),
    Packed(
        "qwen2.5-vl",
        "qwen2_5_vl",
        sizes=WINDOW_SIZES,
        parameters={
            None: 8_292_166_656,
            "3b": 3_754_622_976,
            "32b": 33_452_718_336,
            "72b": 73_410_777_344,
        },
        set=SIDE,
    ),
    Packed("qwen2.5-vl", "qwen2_5_vl_video", kinds=("plain", "padded", "right"), set=SIDE),
    Packed(
        "pixtral",
        "pixtral_llava",
        sizes=PIXTRAL_SIZES,
        parameters={None: 12_682_739_712, "124b": 124_134_870_400},
    ),
    Packed(
        "videollama-3",
        "video_llama3",
        sizes=NAVIT_SIZES,
        parameters={None: 1_959_993_584, "7b": 8_044_744_944},
    ),
    Packed("videollama-3", "video_llama3_video", kinds=("plain",)),
    Packed("ui-tars", "qwen2_vl", kinds=("padded",), parameters={None: 8_291_375_616}, set=SIDE),
    Packed(
        "ui-tars-1.5", "qwen2_5_vl", kinds=("padded",), parameters={None: 8_292_166_656}, set=SIDE
    ),
)
PIXTRAL = next(a for a in ARCHITECTURES if a.spec == "pixtral")
EACH = pytest.mark.parametrize(
    "architecture", ARCHITECTURES, ids=lambda a: f"{a.spec}-{a.reference}"
)


def batches() -> list:
    """Every kind of batch, and every size with one kind and another seed."""
    rows = []
    for a in ARCHITECTURES:
        rows += [(a, kind, 0, None) for kind in a.kinds]
        kinds = itertools.cycle(["padded", "plain"])
        rows += [(a, next(kinds), 1, size) for size in a.sizes]
    return [
        pytest.param(*row, id="-".join(map(str, (row[0].spec, row[0].reference, *row[1:]))))
        for row in rows
    ]


EACH_BATCH = pytest.mark.parametrize(("architecture", "kind", "seed", "size"), batches())
EACH_KIND = pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        pytest.param(a, kind, id=f"{a.spec}-{a.reference}-{kind}")
        for a in ARCHITECTURES
        for kind in ("plain", "padded", "right")
        if kind in a.kinds
    ],
)
SEVERAL = pytest.mark.parametrize(
    "architecture", [a for a in ARCHITECTURES if "padded" in a.kinds], ids=lambda a: a.reference
)


def make(root: Path, a: Packed, kind: str | None = None, seed: int = 0, size=None) -> Tiny:
    sizes = a.sizes[size] if size else None
    kind = kind or ("padded" if "padded" in a.kinds else "plain")
    tiny = harness.tiny_checkpoint(root, a.spec, a.reference, kind, seed, sizes)
    return Tiny(tiny.spec, tiny.reference, tiny.folder, tiny.inputs, a.set)


def plan_of(model, given: dict):
    """The plan for some inputs."""
    names = inspect.signature(model.plan).parameters
    return model.plan(**{k: v for k, v in given.items() if k in names})


@DTYPES
@EACH_BATCH
def test_every_stage_agrees(shared_folder, architecture, kind, seed, size, dtype):
    tiny = make(shared_folder, architecture, kind, seed, size)
    errors = harness.stage_errors(tiny, harness.emitted(tiny, dtype), dtype)
    assert "logits" in errors and len(errors) >= 2
    assert None not in errors.values()
    assert not {n: e for n, e in errors.items() if e > harness.TOLERANCES[dtype]}


@DTYPES
@EACH
def test_gradients_of_every_parameter_agree(shared_folder, tmp_path, architecture, dtype):
    tiny = make(shared_folder, architecture)
    ours, theirs = harness.emitted(tiny, dtype), harness.reference(tiny, dtype)
    harness.backward(ours, tiny, dtype)
    with harness.precision(dtype):
        harness.backward(theirs, tiny, dtype)
    got = harness.public_gradients(ours, tmp_path / "ours")
    want = harness.public_gradients(theirs, tmp_path / "theirs")
    assert got.keys() == want.keys()
    assert sum(bool(g.any()) for g in want.values()) > len(want) // 2
    errors = harness.gradient_errors(got, want, dtype)
    limit = harness.GRADIENT_TOLERANCES[dtype]
    assert not {key: error for key, error in errors.items() if error > limit}


# Generation continues rows at their end, so their padding stands on the left.
@pytest.mark.parametrize(
    ("architecture", "kind", "seed", "size"), [b for b in batches() if "right" not in b.values]
)
def test_greedy_tokens_agree(shared_folder, architecture, kind, seed, size):
    tiny = make(shared_folder, architecture, kind, seed, size)
    want = harness.greedy(harness.reference(tiny), tiny, 48)
    got = harness.emitted(tiny).generate(**tiny.inputs, max_new_tokens=48, **SEARCH)
    assert torch.equal(got[:, : tiny.mask.shape[1]], tiny.inputs["input_ids"])
    assert torch.equal(got[:, tiny.mask.shape[1] :], want)


@EACH_KIND
def test_generation_with_and_without_a_cache_agree(shared_folder, architecture, kind):
    tiny = make(shared_folder, architecture, kind)
    model = harness.emitted(tiny, torch.float64)
    given = tiny.given(torch.float64)
    with torch.no_grad():  # a random model may say placeholders, for which there are no images
        model.text.head.weight[[references.IMG, references.VID]] = 0
    one, two = (
        model.generate(**given, max_new_tokens=8, use_cache=c, **SEARCH) for c in (True, False)
    )
    assert torch.equal(one, two)


@EACH_BATCH
def test_checkpoint_is_written_back_byte_for_byte(
    shared_folder, tmp_path, architecture, kind, seed, size
):
    tiny = make(shared_folder, architecture, kind, seed, size)
    harness.emitted(tiny).save_pretrained(tmp_path)
    assert_same_tensors(harness.tensors_of(tmp_path), harness.tensors_of(tiny.folder))
    assert (tmp_path / "config.json").read_bytes() == (tiny.folder / "config.json").read_bytes()


@EACH
def test_transformers_loads_what_was_saved(shared_folder, tmp_path, architecture):
    tiny = make(shared_folder, architecture)
    harness.emitted(tiny).save_pretrained(tmp_path)
    reference = harness.reference(tiny)
    again, report = type(reference).from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        want = reference(**tiny.inputs).logits
        assert torch.equal(again.eval()(**tiny.inputs).logits, want)


@EACH
def test_transformers_reads_the_config_of_a_new_model(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    theirs = harness.reference(tiny).config
    again = type(theirs).from_dict(harness.emitted(tiny).config.to_json())
    for part in ("vision_config", "text_config"):
        ours, want = getattr(again, part).to_dict(), getattr(theirs, part).to_dict()
        # Not part of what a forward computes; or, as the type of a plain decoder, another word for
        # it.
        passive = {"dtype", "bos_token_id", "eos_token_id", "pad_token_id", "head_dim", "use_cache"}
        passive |= {"max_position_embeddings", "image_size", "initializer_range", "model_type"}
        assert not {k for k in want if k in ours and ours[k] != want[k]} - passive


@pytest.mark.parametrize("chunks", [(1,), (3, 2)], ids=["token by token", "in chunks"])
@EACH_KIND
def test_prefill_equals_steps_through_the_cache(shared_folder, architecture, kind, chunks):
    tiny = make(shared_folder, architecture, kind)
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    ids = given.pop("input_ids")
    follow = torch.randint(5, 120, (len(ids), 9), generator=torch.Generator().manual_seed(1))
    whole = torch.cat([ids, follow], 1)
    mask = torch.cat([given.pop("attention_mask"), torch.ones_like(follow)], 1)
    per_token = {k: v for k, v in given.items() if v.shape == ids.shape}
    longer = {k: torch.cat([v, torch.zeros_like(follow)], 1) for k, v in per_token.items()}
    with torch.no_grad():
        want = model(whole, attention_mask=mask, **(given | longer)).logits
        cache = harness.new_cache(model, len(ids), whole.shape[1])
        start = ids.shape[1]
        pieces = [model(ids, attention_mask=mask[:, :start], cache=cache, **given).logits]
        for step in itertools.cycle(chunks):
            end = min(start + step, whole.shape[1])
            piece = model(whole[:, start:end], attention_mask=mask[:, :end], cache=cache)
            pieces.append(piece.logits)
            start = end
            if start == whole.shape[1]:
                break
    assert harness.compare(torch.cat(pieces, 1), want, mask) <= 1e-12


@SEVERAL
def test_padding_does_not_matter(shared_folder, architecture):
    padded = make(shared_folder, architecture, "padded")
    model = harness.emitted(padded, torch.float64)
    given = padded.given(torch.float64)
    order = padded.mask.argsort(dim=1, stable=True, descending=True)
    moved = {k: v.gather(1, order) if v.shape == order.shape else v for k, v in given.items()}
    assert not torch.equal(given["input_ids"], moved["input_ids"])
    with torch.no_grad():
        left, other = model(**given).logits, model(**moved).logits
    for row, to in zip(range(len(order)), order, strict=True):
        keep = moved["attention_mask"][row].bool()
        assert harness.compare(other[row][keep], left[row][to][keep]) <= 1e-12


@SEVERAL
def test_batch_rows_are_independent(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    first = {k: v.clone() for k, v in given.items()}
    first["pixel_values"][-1] += 1.0
    with torch.no_grad():
        one, two = model(**given).logits, model(**first).logits
    assert not torch.equal(one[-1], two[-1])
    assert torch.equal(one[:-1][tiny.mask[:-1].bool()], two[:-1][tiny.mask[:-1].bool()])


@EACH
def test_compiles_in_one_graph_with_a_plan(shared_folder, architecture):
    torch._dynamo.reset()
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    given = {**tiny.inputs, "plan": plan_of(model, tiny.inputs)}
    whole = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert harness.compare(whole(**given).logits, model(**tiny.inputs).logits) <= 1e-6
    whole(**given).logits.sum().backward()


@EACH
def test_exports_with_a_plan(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model = harness.emitted(tiny)
    given = {**tiny.inputs, "plan": plan_of(model, tiny.inputs)}
    ids = given.pop("input_ids")
    program = torch.export.export(Logits(model), (ids,), given)
    with torch.no_grad():
        got, want = program.module()(ids, **given), model(ids, **given).logits
    assert harness.compare(got, want) <= 1e-6


class Logits(torch.nn.Module):
    """A model that returns the bare logits, as exports want."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, **inputs):
        return self.model(input_ids, **inputs).logits


@pytest.mark.parametrize(
    ("spec", "variant", "count"),
    [
        pytest.param(a.spec, variant, count, id=f"{a.spec}-{variant or 'default'}")
        for a in (*ARCHITECTURES, Packed("tarsier2", "", parameters={None: 8_291_375_616}))
        for variant, count in a.parameters.items()
    ],
)
def test_full_size_parameter_count_is_exact(tmp_path, spec, variant, count):
    options = {"variant": variant} if variant else {}
    package = harness.vlmspec.compile(spec, output=tmp_path / "package", **options).load()
    with torch.device("meta"):
        model = package.Model(package.Config())
    assert model.num_parameters() == count


def test_images_may_come_in_a_later_turn(shared_folder):
    """Positions of a second prefill go on from the cache, images included."""
    tiny = make(shared_folder, ARCHITECTURES[0], "plain")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    cut = int((given["input_ids"][0] == references.END).nonzero()[0]) + 2
    first = given["image_grid_thw"][:1]
    patches = int(first.prod())
    halves = [
        {
            "input_ids": given["input_ids"][:, part],
            "mm_token_type_ids": given["mm_token_type_ids"][:, part],
            "pixel_values": pixels,
            "image_grid_thw": grid,
        }
        for part, pixels, grid in (
            (slice(0, cut), given["pixel_values"][:patches], first),
            (slice(cut, None), given["pixel_values"][patches:], given["image_grid_thw"][1:]),
        )
    ]
    with torch.no_grad():
        want = model(**given).logits
        for mask in (None, given["attention_mask"]):
            cache = harness.new_cache(model, 1, want.shape[1])
            one = model(
                **halves[0], attention_mask=None if mask is None else mask[:, :cut], cache=cache
            )
            two = model(**halves[1], attention_mask=mask, cache=cache)
            got = torch.cat([one.logits, two.logits], 1)
            assert harness.compare(got, want) <= 1e-12


def original_positions(inputs: dict, merge: int, speed: float | None) -> torch.Tensor:
    """Positions as the original code gives them: text goes on after the largest one [3, B, T]."""
    result = torch.zeros(3, *inputs["input_ids"].shape, dtype=torch.long)
    grids = {
        1: inputs["image_grid_thw"].tolist(),
        2: inputs.get("video_grid_thw", torch.zeros(0, 3, dtype=torch.long)).tolist(),
    }
    for row, types in enumerate(inputs["mm_token_type_ids"]):
        places = inputs["attention_mask"][row].nonzero().flatten().tolist()
        top, index = -1, 0
        while index < len(places):
            kind = int(types[places[index]])
            if kind == 0:
                top += 1
                result[:, row, places[index]] = top
                index += 1
                continue
            t, h, w = grids[kind].pop(0)
            start, step = top + 1, speed if kind == 2 and speed else 1
            for frame, y, x in itertools.product(range(t), range(h // merge), range(w // merge)):
                at = torch.tensor([int(frame * step), y, x]) + start
                result[:, row, places[index]] = at
                top = max(top, int(at.max()))
                index += 1
    return result


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a.set == SIDE])
def test_positions_follow_the_original_by_default(shared_folder, architecture):
    tiny = make(shared_folder, architecture)
    model = harness.emitted(Tiny(tiny.spec, tiny.reference, tiny.folder, tiny.inputs))
    speed = getattr(model.config.text, "tokens_per_second", None)
    places = original_positions(tiny.inputs, 2, speed)
    planned = plan_of(model, tiny.inputs).token_places
    assert torch.equal(planned.movedim(-1, 0), places)
    reference = harness.reference(tiny)
    with torch.no_grad():
        got = model(**tiny.inputs).logits
        want = reference(**tiny.inputs, position_ids=places).logits
        given = model(**tiny.inputs, position_ids=places).logits
        other = reference(**tiny.inputs).logits
    assert harness.compare(got, want, tiny.mask) <= 1e-5
    assert torch.equal(got, given)
    differs = harness.compare(got, other, tiny.mask) > 1e-3
    assert differs == ("video_grid_thw" in tiny.inputs)


def test_grids_without_token_types_are_refused(shared_folder):
    tiny = make(shared_folder, ARCHITECTURES[0], "plain")
    given = {k: v for k, v in tiny.inputs.items() if k != "mm_token_type_ids"}
    with pytest.raises(ValueError, match="mm_token_type_ids"):
        harness.emitted(tiny)(**given)


@pytest.mark.parametrize("size", [(56, 56), (90, 41), (200, 33), (41, 180)])
def test_visual_tokens_are_those_of_the_processor(shared_folder, size):
    references._transformers()
    from transformers import Qwen2VLImageProcessor

    tiny = make(shared_folder, ARCHITECTURES[0], "plain")
    model = harness.emitted(tiny)
    processor = Qwen2VLImageProcessor(patch_size=7, min_pixels=14 * 14, max_pixels=84 * 84)
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(2))
    out = processor(images=[image.to(torch.uint8)], return_tensors="pt")
    count = processor.get_number_of_image_patches(*size) // 4
    assert count == int(out["image_grid_thw"].prod()) // 4 > 1
    ids = torch.tensor([[references.START, *[references.IMG] * count, references.END, 7]])
    given = {"input_ids": ids, "mm_token_type_ids": references.token_types(ids), **out}
    with torch.no_grad():
        got, want = model(**given).logits, harness.reference(tiny)(**given).logits
    assert harness.compare(got, want) <= 1e-5
    with pytest.raises(ValueError, match="placeholder"):
        extra = torch.cat([ids, torch.full((1, 1), references.IMG)], 1)
        model(**{**given, "input_ids": extra, "mm_token_type_ids": torch.zeros_like(extra)})


def test_images_alone_and_packed_give_the_same(shared_folder):
    """No image sees another one, nor the padding that brings them to one size."""
    tiny = make(shared_folder, PIXTRAL, "plain")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    pixels, sizes = given["pixel_values"], given["image_sizes"]
    with harness.verification.capture(model, {"vision": "vision"}) as seen, torch.no_grad():
        model(**given)
        packed = seen["vision"]
        counts = (sizes // 8).prod(-1).tolist()
        alone = []
        for image, (height, width), count in zip(pixels, sizes.tolist(), counts, strict=True):
            seen["vision"] = None
            ids = torch.full((1, count), references.IMG)
            model(ids, image[None, :, :height, :width])  # sizes are needed for padding only
            alone.append(seen["vision"])
    for one, two in zip(alone, packed.split(counts), strict=True):
        assert harness.compare(one, two) <= 1e-12


@pytest.mark.parametrize("size", [(64, 64), (100, 33), (20, 130), (8, 8)])
def test_rows_of_placeholders_are_those_of_the_processor(shared_folder, size):
    references._transformers()
    from transformers import PixtralImageProcessor

    tiny = make(shared_folder, PIXTRAL, "plain")
    model = harness.emitted(tiny)
    processor = PixtralImageProcessor(patch_size=8, size={"longest_edge": 64})
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(2))
    out = dict(processor(images=[image.to(torch.uint8)], return_tensors="pt"))
    out["image_sizes"] = torch.as_tensor(out["image_sizes"])
    rows, columns = (out["image_sizes"][0] // 8).tolist()
    ids = ([*[references.IMG] * columns, references.START] * rows)[:-1] + [references.END, 7]
    assert len(ids) - 1 == rows * (columns + 1)
    given = {"input_ids": torch.tensor([ids]), **out}
    with torch.no_grad():
        got, want = model(**given).logits, harness.reference(tiny)(**given).logits
    assert harness.compare(got, want) <= 1e-5


@pytest.mark.parametrize("merge", [1, 2, 3, 4, 5])
def test_cells_are_reduced_as_bilinear_interpolation_does(merge):
    from vlmspec.kernels.packed.reference import cell_middles, grid_positions

    grid, merges = torch.tensor([[2, 2 * merge, 3 * merge]]), torch.tensor([merge])
    frames = torch.randn(2, 4, 2 * merge, 3 * merge, dtype=torch.float64)
    want = torch.nn.functional.interpolate(frames, size=(2, 3), mode="bilinear")
    rows, columns = grid_positions(grid, merges)[: frames[0, 0].numel()].unbind(-1)
    packed = frames[:, :, rows, columns].transpose(1, 2).flatten(0, 1)
    got = packed[cell_middles(grid, merges)].mean(1)
    assert harness.compare(got, want.flatten(2).transpose(1, 2).flatten(0, 1)) <= 1e-12


def test_images_and_a_video_in_one_prompt(shared_folder):
    images, video = (a for a in ARCHITECTURES if a.spec == "videollama-3")
    one, two = make(shared_folder, images, "plain"), make(shared_folder, video)
    ids = torch.cat([one.inputs["input_ids"], two.inputs["input_ids"][:, 1:]], 1)
    given = two.inputs | one.inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        got = harness.emitted(one)(**given).logits
        want = harness.reference(one)(**given).logits
    assert harness.compare(got, want) <= 1e-5


def test_a_video_without_a_mask_keeps_all_tokens(shared_folder):
    video = next(a for a in ARCHITECTURES if a.reference == "video_llama3_video")
    tiny = make(shared_folder, video)
    given = {k: v for k, v in tiny.inputs.items() if k != "video_compression_mask"}
    ids = torch.tensor([[references.BOS, *[references.VID] * 12, 9, 8]])
    given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        got = harness.emitted(tiny)(**given).logits
        want = harness.reference(tiny)(**given).logits
    assert harness.compare(got, want) <= 1e-5


CONTAINER = {
    "visual.": "vision_tower.",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


@DTYPES
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_vl_video"])
def test_the_same_network_in_a_container(shared_folder, tmp_path, name, dtype):
    """Tarsier 2 is Qwen2-VL under the names of a container."""
    tiny = harness.tiny_checkpoint(shared_folder, "tarsier2", name, "padded", 0)
    folder = tmp_path / "container"
    folder.mkdir()
    tensors = harness.tensors_of(tiny.folder)
    renamed = {
        new + key.removeprefix(old): tensor
        for key, tensor in tensors.items()
        for old, new in CONTAINER.items()
        if key.startswith(old)
    }
    assert len(renamed) == len(tensors)
    save_file(renamed, folder / "model.safetensors")
    config = json.loads((tiny.folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    model = harness.emitted(Tiny(tiny.spec, name, folder, tiny.inputs, SIDE), dtype)
    reference = Tiny("qwen2-vl", name, tiny.folder, tiny.inputs, SIDE)
    errors = harness.stage_errors(reference, model, dtype)
    assert None not in errors.values() and "logits" in errors
    assert not {n: e for n, e in errors.items() if e > harness.TOLERANCES[dtype]}
    if dtype == torch.float32:
        got = model.generate(**tiny.inputs, max_new_tokens=24, **SEARCH)[:, tiny.mask.shape[1] :]
        assert torch.equal(got, harness.greedy(harness.reference(tiny), tiny, 24))
        model.save_pretrained(tmp_path / "again")
        assert_same_tensors(harness.tensors_of(tmp_path / "again"), renamed)
