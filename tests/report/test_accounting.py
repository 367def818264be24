import shutil
from pathlib import Path

import pytest

from vlmspec import api
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ops import OPS
from vlmspec.report import accounting, usage

PAIR = Path(__file__).parent / "data" / "pair.yaml"
LLAVA = {"7b": 7_063_427_072, "13b": 13_351_494_656}


@pytest.mark.parametrize(("variant", "expected"), LLAVA.items(), ids=LLAVA)
def test_parameters_are_those_of_the_emitted_module(
    variant: str, expected: int, tmp_path: Path
) -> None:
    import torch

    package = api.compile("llava", variant=variant, output=tmp_path / "package").load()
    with torch.device("meta"):
        model = package.Model(package.Config())
    data = api.show("llava", variant=variant)
    assert sum(p.numel() for p in model.parameters()) == data["total_parameters"] == expected
    for component in data["components"]:
        owned = getattr(model, component["name"], None)
        held = sum(p.numel() for p in owned.parameters()) if owned is not None else 0
        assert held == component["parameters"], component["name"]


def test_a_tied_parameter_counts_once(tmp_path: Path) -> None:
    import torch

    package = api.compile(PAIR, output=tmp_path / "package").load()
    with torch.device("meta"):
        model = package.Model(package.Config())
    total = sum(p.numel() for p in model.parameters())
    assert total == api.show(PAIR)["total_parameters"]


def test_unused_parameters_are_those_without_a_gradient(tmp_path: Path) -> None:
    import torch

    package = api.compile(PAIR, output=tmp_path / "package", dtype="float64").load()
    model = package.Model(package.Config()).double()
    model(**inputs(torch, model, images=1, text=3)).logits.sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    data = api.show(PAIR)
    reported = [entry["module"] for entry in data["unused_modules"]]
    assert reported == ["vision.blocks.3", "vision.post_norm"]
    assert idle and all(any(n.startswith(f"{m}.") for m in reported) for n in idle)
    total = sum(p.numel() for n, p in model.named_parameters() if n in idle)
    assert data["unused_parameters"] == total


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (-1, ["vision.post_norm"]),
        (-4, ["vision.blocks.1-3", "vision.post_norm"]),
        (0, ["vision.blocks", "vision.post_norm"]),
    ],
)
def test_layers_behind_the_tapped_one_are_unused(
    layer: int, expected: list[str], tmp_path: Path
) -> None:
    shutil.copytree(PAIR.parent / "parts", tmp_path / "parts")
    text = PAIR.read_text(encoding="utf-8").replace("layer: -2", f"layer: {layer}")
    (tmp_path / "pair.yaml").write_text(text, encoding="utf-8")
    program = usage.live(api.build(tmp_path / "pair.yaml").program)
    found = {entry["module"]: entry["parameters"] for entry in usage.unused(program)}
    assert list(found) == expected
    assert found.pop("vision.post_norm") == 48
    idle = {-1: 0, -4: 3, 0: 4}[layer]
    assert sum(found.values()) == idle * 7224


def inputs(torch, model, images: int, text: int):
    """Token ids with a placeholder for every visual token, and images."""
    program = api.build(PAIR).program
    size, placeholder = program.sizes["vision.image_size"], program.sizes["image_token_id"]
    tokens = images * program.sizes["vision.num_patches"]
    ids = torch.cat(
        [torch.full((1, tokens), placeholder), torch.ones(1, text, dtype=torch.long)], 1
    )
    dtype = next(model.parameters()).dtype
    return {"input_ids": ids, "pixel_values": torch.randn(images, 3, size, size, dtype=dtype)}


@pytest.mark.parametrize(("images", "text", "keep"), [(1, 5, 0), (3, 1, 1), (2, 63, 7)])
def test_flops_are_those_that_torch_counts(
    images: int, text: int, keep: int, tmp_path: Path
) -> None:
    """Exactly, for matrix products and attention; torch counts no norms, and convolutions apart."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # In float64 every matrix product is torch's own, which the counter knows; of attention it
    # knows no CPU kernel, but the matrix products of the plain form.
    package = api.compile(PAIR, output=tmp_path / "package", dtype="float64").load()
    model = package.Model(package.Config()).double().eval()
    given = inputs(torch, model, images, text)
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        model(**given, logits_to_keep=keep)
    theirs = counter.get_flop_counts()["Global"]
    convolution = sum(n for op, n in theirs.items() if "convolution" in str(op))
    program = usage.live(api.build(PAIR).program)
    tokens = given["input_ids"].shape[1]
    env = {"batch": 1, "images": images, "tokens": tokens, "keys": tokens, "kept": keep or tokens}
    ours: dict[str, int] = {}
    for ops in accounting.flops(program).values():
        for op, dim in ops.items():
            ours[op] = ours.get(op, 0) + (accounting.evaluate(dim, program.sizes, **env) or 0)
    assert ours["linear"] + ours["attention"] == sum(theirs.values()) - convolution
    if OPS["patch_embed"].flops is not None:
        assert ours["patch_embed"] == convolution


def test_flops_of_layers_that_do_not_run_do_not_count() -> None:
    shallow = usage.live(api.build(PAIR).program)
    deep = usage.live(api.build(PAIR, set=["vision.num_layers=5"]).program)
    env = {"batch": 1, "images": 1, "tokens": 20, "keys": 20, "kept": 1}

    def linear(program) -> int:
        dim = accounting.flops(program)["vision"]["linear"]
        return accounting.evaluate(dim, program.sizes, **env) or 0

    # 3 of 4 layers run, then 4 of 5; before dead nodes are dropped, the fourth as well, once.
    assert linear(deep) * 3 == linear(shallow) * 4
    assert linear(api.build(PAIR).program) * 3 == linear(shallow) * 4


def test_cache_is_keys_and_values_of_every_layer() -> None:
    data = api.show("llava")
    assert data["kv_cache"]["elements_per_token"] == 32 * 2 * 4096
    assert data["kv_cache"]["bytes_per_token"] == {"float32": 1_048_576, "bfloat16": 524_288}
    program = usage.live(api.build("llava").program)
    formula = Dim.of("2 * text.num_layers * text.num_kv_heads * text.head_dim")
    assert accounting.cached_elements(program) == formula
