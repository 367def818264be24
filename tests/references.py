"""Tiny, deterministic reference models from Hugging Face transformers: checkpoint, inputs, outputs.

    python tests/references.py list
    python tests/references.py make NAME OUTDIR [--seed N]   # `all`: into OUTDIR/NAME each
    python tests/references.py check OUTDIR                  # reload every checkpoint, bit for bit
    python tests/references.py audit NAME                    # do pixels and weights matter?
    python tests/references.py mutate NAME [--double]        # which mistakes would be missed?
    python tests/references.py wobble NAME                   # how far apart are sdpa, two threads

Needs torch and transformers 5.23 (plus timm for the references marked `needs timm`). CPU only,
float32, one thread, eager attention, eager experts. Tests use `build`, `save` and `float64_math`.

One reference that `make` writes is one folder:

    config.json, model.safetensors   what `save_pretrained` writes: the architecture's public layout
    plain.inputs.safetensors         forward(**inputs); no padding
    plain.expected.safetensors       outputs (`logits`, ...), `logits.float64` (double throughout),
                                     `image_features.N`, `trace.MODULE` (the first tensor that the
                                     module returned), `generated` (greedy, with the KV cache; as
                                     generate() returns it) and `generated.new` (its new tokens)
    plain.grads.safetensors          d(sum(logits * W)) / d(parameter), W = `grad_seed_weights`
    padded.*                         the same for a left-padded batch of two rows, where the model
                                     takes one; compare only where attention_mask is 1
    reference.json                   class, versions, parameter table, float64 error, hashes

Weights do not come from the class's own initialiser: it leaves gates at zero, vision towers at
1e-10 and norms at one, so that whole branches could be wrong unnoticed. Every parameter is drawn
from numpy's PCG64 keyed by (seed, name).
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

VOCAB = 160
PAD, BOS, EOS = 0, 1, 2
TEXT_LOW, TEXT_HIGH = 5, 120  # ordinary text tokens; special tokens live above
IMG, VID, START, END = 150, 151, 152, 153


@dataclasses.dataclass
class Ref:
    name: str
    cls: str
    mirrors: str
    build: Callable
    note: str = ""
    needs: str = ""
    cases: tuple[str, ...] = ("plain", "padded")
    generates: bool = True
    extra: Callable | None = None  # (model, inputs) -> dict of further outputs
    untie: bool = (
        False  # the class ties its T5 head whatever the config says; public checkpoints hold both
    )
    main: str = (
        ""  # the output that gradients and float64 errors are taken of, where it is not logits
    )


REFS: dict[str, Ref] = {}


def reference(cls: str, mirrors: str, **kw):
    def register(fn):
        REFS[fn.__name__] = Ref(fn.__name__, cls, mirrors, fn, **kw)
        return fn

    return register


class Case:
    """Deterministic sample inputs of one kind, and sizes that differ from the reference's own.

    `plain` is one row holding images 0 and 1; `padded` adds a second, shorter row with image 2.
    `right` pads that batch on the other side, `mixed` has rows of one, three and no images,
    and `text` has no image at all.
    """

    ROWS: ClassVar[dict[str, list[list[int]]]] = {
        "plain": [[0, 1]],
        "padded": [[0, 1], [2]],
        "right": [[0, 1], [2]],
        "mixed": [[0], [1, 2, 3], []],
        "text": [[], []],
    }

    def __init__(self, name: str, kind: str, seed: int, sizes: dict[str, dict] | None = None):
        import numpy as np

        self.kind = kind
        self.rng = np.random.Generator(
            np.random.PCG64([seed, zlib.crc32(f"{name}/{kind}/inputs".encode())])
        )
        self.rows = self.ROWS[kind]
        self.sizes = sizes or {}

    @property
    def n(self) -> int:
        return sum(len(r) for r in self.rows)

    def one_per_row(self) -> "Case":
        self.rows = [[0], [1]]
        return self

    def normal(self, *shape: int, scale: float = 0.8):
        import torch

        return torch.from_numpy((scale * self.rng.standard_normal(shape)).astype("float32"))

    def text(self, n: int) -> list[int]:
        return [int(t) for t in self.rng.integers(TEXT_LOW, TEXT_HIGH, n)]

    def prompt(
        self, blocks: list, *, equal: bool = False, pad_side: str = "left", bos: bool = True
    ) -> dict:
        """Rows of text around image blocks: `blocks[i]` is image i's token count or token ids."""
        import torch

        blocks = [[IMG] * b if isinstance(b, int) else list(b) for b in blocks]
        pad_side = "right" if self.kind == "right" else pad_side
        rows = []
        for r, images in enumerate(self.rows):
            shrink = 0 if (equal or self.kind == "plain") else 2 * r
            row = ([BOS] if bos else []) + self.text(max(1, 5 - shrink))
            for k, i in enumerate(images):
                row += blocks[i] + self.text(max(1, (3 if k + 1 < len(images) else 5) - shrink))
            rows.append(row)
        width = max(map(len, rows))
        ids, mask = [], []
        for row in rows:
            fill = width - len(row)
            ids.append([PAD] * fill + row if pad_side == "left" else row + [PAD] * fill)
            mask.append(
                [0] * fill + [1] * len(row) if pad_side == "left" else [1] * len(row) + [0] * fill
            )
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def pooled_counts(features) -> list[int]:
    """Visual tokens per image of a get_image_features result."""
    out = (
        features
        if isinstance(features, (list, tuple)) or hasattr(features, "ndim")
        else features.pooler_output
    )
    return [int(f.shape[0]) for f in out]


def randomize(model, seed: int) -> None:
    """Give every parameter and running statistic a value that matters, drawn by its name."""
    import numpy as np
    import torch
    from torch import nn

    def draw(name: str, shape) -> torch.Tensor:
        rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        return torch.from_numpy(rng.standard_normal(tuple(shape)).astype("float32"))

    convolutions = {
        f"{m}.{p}" if m else p
        for m, mod in model.named_modules()
        if isinstance(mod, nn.modules.conv._ConvNd)
        for p, _ in mod.named_parameters(recurse=False)
    }
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.is_floating_point():
                p.copy_(_value(p, draw(name, p.shape), name in convolutions))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.1 * draw(name, b.shape))
            elif name.endswith("running_var"):
                b.copy_(1 + 0.2 * draw(name, b.shape).abs())


def _value(p, z, convolution: bool):
    """What the parameter becomes, given a normal draw `z` of its shape."""
    import torch

    first = p.flatten()[0].item()
    if p.numel() == 1:  # gates, logit scales and biases: away from zero, sign kept random
        return first + torch.sign(z) * (0.3 + 0.2 * z.abs())
    if p.ndim >= 2 and convolution:  # the gain keeps pixels visible through a deep conv net
        return 1.6 * z / math.sqrt(math.prod(p.shape[1:]))
    if p.ndim >= 2 and p.shape[-1] > 1:
        return z / math.sqrt(p.shape[-1])
    if p.ndim >= 2:  # a column, such as a channel-wise scale or bias
        return first + 0.1 * z
    constant = bool((p == p.flatten()[0]).all())  # norms, biases, layer scales: spread around it
    return (first if constant else 0.0) + (0.1 if constant else 0.3) * z


def clip_vision(**kw):
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        **{
            **{
                "hidden_size": 48,
                "intermediate_size": 80,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 7,
                "projection_dim": 40,
            },
            **kw,
        }
    )


def siglip_vision(**kw):
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        **{
            **{
                "hidden_size": 48,
                "intermediate_size": 80,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 7,
            },
            **kw,
        }
    )


def decoder(kind: str, **kw):
    from transformers import AutoConfig

    base = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
    }
    return AutoConfig.for_model(kind, **{**base, **kw})


def patch_rows(case: Case, sizes: list[tuple[int, int, int]], width: int):
    """Flattened patches and grid_thw of native-resolution encoders; `sizes` count patches."""
    import torch

    return case.normal(sum(t * h * w for t, h, w in sizes), width), torch.tensor(sizes)


def token_types(ids):
    import torch

    return torch.where(ids == IMG, 1, torch.where(ids == VID, 2, 0)).to(torch.int)


@reference("LlavaForConditionalGeneration", mirrors="llava-hf/llava-1.5-7b-hf")
def llava(case: Case):
    text = {"rms_norm_eps": 1e-5, **case.sizes.get("text", {})}
    return _llava(case, clip_vision(**case.sizes.get("vision", {})), decoder("llama", **text))


def _llava(case: Case, vision, text, dropped: int = 0):
    """The class with this tower and this decoder; `dropped` patches of each image are left out."""
    from transformers import LlavaConfig

    tokens = (vision.image_size // vision.patch_size) ** 2 - dropped
    cfg = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMG, image_seq_length=tokens
    )

    def inputs(model):
        if not case.n:
            return case.prompt([])
        side = vision.image_size
        return {
            **case.prompt([tokens] * case.n),
            "pixel_values": case.normal(case.n, 3, side, side),
        }

    return cfg, inputs


@reference(
    "LlavaForConditionalGeneration",
    mirrors="llava-hf/bakLlava-v1-hf",
    note="the sliding window is shorter than the prompt",
)
def bakllava(case: Case):
    given = {"rms_norm_eps": 1e-5, "sliding_window": 12, **case.sizes.get("text", {})}
    given.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})
    return _llava(case, clip_vision(**case.sizes.get("vision", {})), decoder("mistral", **given))


@reference(
    "LlavaForConditionalGeneration",
    mirrors="TIGER-Lab/Mantis-8B-siglip-llama3",
    note="the first patch is dropped as if it were a class token",
)
def mantis(case: Case):
    vision = siglip_vision(**{"num_hidden_layers": 3, **case.sizes.get("vision", {})})
    given = {"rms_norm_eps": 1e-5, **case.sizes.get("text", {})}
    given.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 500000.0})
    return _llava(case, vision, decoder("llama", **given), dropped=1)


@reference(
    "LlavaForConditionalGeneration",
    mirrors="llava-hf/vip-llava style list of layers, `full` selection",
)
def llava_multilayer(case: Case):
    from transformers import LlavaConfig

    cfg = LlavaConfig(
        vision_config=clip_vision(),
        text_config=decoder("llama"),
        image_token_index=IMG,
        vision_feature_layer=[-1, -2],
        vision_feature_select_strategy="full",
        multimodal_projector_bias=False,
    )

    def inputs(model):
        if not case.n:
            return case.prompt([])
        return {**case.prompt([17] * case.n), "pixel_values": case.normal(case.n, 3, 28, 28)}

    return cfg, inputs


ANYRES_GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
ANYRES_SIZES = [(40, 75), (60, 31), (20, 80), (33, 29)]


def _pinpoints(side: int) -> list[list[int]]:
    return [[rows * side, columns * side] for rows, columns in ANYRES_GRIDS]


def _anyres(case: Case, cfg, fn):
    import torch

    sizes, side = ANYRES_SIZES[: case.n], cfg.vision_config.image_size
    counts = [fn(s, cfg.image_grid_pinpoints, side) for s in sizes]
    pixels = torch.zeros(case.n, max(counts), 3, side, side)
    for i, c in enumerate(counts):
        pixels[i, :c] = case.normal(c, 3, side, side)
    return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


@reference("LlavaNextForConditionalGeneration", mirrors="llava-hf/llava-v1.6-mistral-7b-hf")
def llava_next(case: Case):
    from transformers import LlavaNextConfig
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    vision = clip_vision(**case.sizes.get("vision", {}))
    cfg = LlavaNextConfig(
        vision_config=vision,
        text_config=decoder("mistral", sliding_window=None, **case.sizes.get("text", {})),
        image_token_index=IMG,
        image_grid_pinpoints=_pinpoints(vision.image_size),
    )

    def inputs(model):
        if not case.n:
            return case.prompt([])
        vis = _anyres(case, cfg, image_size_to_num_patches)
        counts = pooled_counts(
            model.get_image_features(
                **vis, vision_feature_layer=-2, vision_feature_select_strategy="default"
            )
        )
        return {**case.prompt(counts), **vis}

    return cfg, inputs


def _onevision(case: Case, **kw):
    from transformers import LlavaOnevisionConfig

    vision = siglip_vision(vision_use_head=False, **case.sizes.get("vision", {}))
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=decoder("qwen2", **case.sizes.get("text", {})),
        image_token_index=IMG,
        video_token_index=VID,
        image_grid_pinpoints=_pinpoints(vision.image_size),
        **kw,
    )


@reference(
    "LlavaOnevisionForConditionalGeneration", mirrors="llava-hf/llava-onevision-qwen2-7b-ov-hf"
)
def llava_onevision(case: Case):
    from transformers.models.llava_onevision.modeling_llava_onevision import (
        image_size_to_num_patches,
    )

    cfg = _onevision(case)

    def inputs(model):
        if not case.n:
            return case.prompt([])
        vis = _anyres(case, cfg, image_size_to_num_patches)
        counts = pooled_counts(
            model.get_image_features(
                **vis,
                vision_feature_layer=-1,
                vision_aspect_ratio="anyres_max_9",
                vision_feature_select_strategy="full",
            )
        )
        return {**case.prompt(counts), **vis}

    return cfg, inputs


@reference(
    "LlavaOnevisionForConditionalGeneration",
    mirrors="llava-hf/llava-onevision-qwen2-7b-ov-hf (video)",
    note="pixel_values_videos; anyres_max_1 exercises the bilinear down-scaling of large images",
)
def llava_onevision_video(case: Case):
    from transformers.models.llava_onevision.modeling_llava_onevision import (
        image_size_to_num_patches,
    )

    cfg = _onevision(case, vision_aspect_ratio="anyres_max_1")
    side = cfg.vision_config.image_size
    grid = side // cfg.vision_config.patch_size

    def inputs(model):
        if not case.n:
            return case.prompt([])
        vis = _anyres(case, cfg, image_size_to_num_patches)
        counts = pooled_counts(
            model.get_image_features(
                **vis,
                vision_feature_layer=-1,
                vision_aspect_ratio="anyres_max_1",
                vision_feature_select_strategy="full",
            )
        )
        blocks = [[IMG] * count for count in counts]
        # A video follows the last image of each row.
        last = [row[-1] for row in case.rows if row]
        video = case.normal(len(last), 3, 3, side, side)
        for i in last:
            blocks[i] += case.text(2) + [VID] * (3 * math.ceil(grid / 2) ** 2 + 1)
        return {**case.prompt(blocks), **vis, "pixel_values_videos": video}

    return cfg, inputs


@reference("LlavaForConditionalGeneration", mirrors="mistral-community/pixtral-12b")
def pixtral_llava(case: Case):
    import torch
    from transformers import LlavaConfig, PixtralVisionConfig

    sizes = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    vision = PixtralVisionConfig(**{**sizes, **case.sizes.get("vision", {})})
    cfg = LlavaConfig(
        vision_config=vision,
        text_config=decoder(
            "mistral", **{"head_dim": 24, "sliding_window": None, **case.sizes.get("text", {})}
        ),
        image_token_index=IMG,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )

    def inputs(model):
        if not case.n:
            return case.prompt([])
        sizes = [(24, 40), (32, 16), (16, 48), (8, 8)][: case.n]
        pixels = torch.zeros(case.n, 3, max(h for h, _ in sizes), max(w for _, w in sizes))
        for i, (h, w) in enumerate(sizes):
            pixels[i, :, :h, :w] = case.normal(3, h, w)
        blocks = []
        for h, w in sizes:  # [IMG]... [BREAK] per row, [END] last
            row = [IMG] * (w // 8) + [START]
            blocks.append([*(row * (h // 8))[:-1], END])
        return {**case.prompt(blocks), "pixel_values": pixels, "image_sizes": torch.tensor(sizes)}

    return cfg, inputs


@reference("AriaForConditionalGeneration", mirrors="rhymes-ai/Aria")
def aria(case: Case):
    import torch
    from transformers import AriaConfig, AriaTextConfig
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

    vision = Idefics3VisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
    )
    text = AriaTextConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        moe_num_experts=6,
        moe_topk=2,
        moe_num_shared_experts=2,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        max_position_embeddings=512,
    )
    cfg = AriaConfig(
        vision_config=vision,
        text_config=text,
        projector_patch_to_query_dict={16: 4, 64: 9},
        image_token_index=IMG,
    )

    def inputs(model):
        mask = torch.zeros(case.n, 28, 28, dtype=torch.bool)
        for i, (h, w) in enumerate([(28, 21), (14, 28), (28, 28)][: case.n]):
            mask[i, :h, :w] = True
        pixels = case.normal(case.n, 3, 28, 28) * mask[:, None]
        return {**case.prompt([4] * case.n), "pixel_values": pixels, "pixel_mask": mask}

    return cfg, inputs


def _janus_extra(model, inputs):
    """The image-generation half: head over the code book, aligner of codes, and the VQ decoder."""
    import torch

    hidden = model.model(**inputs).last_hidden_state[:, -4:]
    codes = (torch.arange(16).view(1, 16) * 7 + 3) % 32
    return {
        "generation_logits": model.model.generation_head(hidden),
        "generation_embeddings": model.prepare_embeddings_for_image_generation(codes),
        "decoded_image": model.decode_image_tokens(codes),
        "vq_codes": model.model.vqmodel.encode(inputs["pixel_values"]).image_tokens
        if hasattr(model.model.vqmodel.encode(inputs["pixel_values"]), "image_tokens")
        else model.model.vqmodel.encode(inputs["pixel_values"])[2],
    }


@reference(
    "JanusForConditionalGeneration",
    mirrors="deepseek-community/Janus-Pro-1B",
    extra=_janus_extra,
    generates=False,
)
def janus(case: Case):
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig

    vision = JanusVisionConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        mlp_ratio=2.0,
        projection_dim=64,
        depth=2,
        num_image_tokens=16,
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=32,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=1,
        num_patches=4,
        projection_dim=64,
        image_token_embed_dim=64,
        num_hidden_layers=2,
    )
    cfg = JanusConfig(
        vision_config=vision,
        vq_config=vq,
        text_config=decoder("llama"),
        image_token_id=IMG,
        tie_word_embeddings=False,
    )

    def inputs(model):
        return {**case.prompt([16] * case.n), "pixel_values": case.normal(case.n, 3, 32, 32)}

    return cfg, inputs


def _latest_image_mask(ids, n_images: int, tiles: int, valid):
    """(rows, text, images, tiles): a token sees the image opened last; none before the first."""
    import torch

    mask = torch.zeros(*ids.shape, n_images, tiles, dtype=torch.long)
    for r, row in enumerate(ids.tolist()):
        seen = -1
        for t, token in enumerate(row):
            seen += token == IMG
            if seen >= 0:
                mask[r, t, seen, : valid[r][seen]] = 1
    return mask


@reference("MllamaForConditionalGeneration", mirrors="meta-llama/Llama-3.2-11B-Vision")
def mllama(case: Case):
    import torch
    from transformers import MllamaConfig
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_global_layers": 2,
        "attention_heads": 4,
        "intermediate_size": 80,
        "image_size": 28,
        "patch_size": 7,
        "intermediate_layers_indices": [0, 2],
        "max_num_tiles": 4,
    } | case.sizes.get("vision", {})
    taps = len(sizes["intermediate_layers_indices"])
    vision = MllamaVisionConfig(vision_output_dim=sizes["hidden_size"] * (taps + 1), **sizes)
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    sizes = {
        "vocab_size": IMG,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 112,
        "cross_attention_layers": [1, 3],
        "max_position_embeddings": 512,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "rope_parameters": rope,
    }
    text = MllamaTextConfig(**sizes | case.sizes.get("text", {}))
    cfg = MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMG)

    def inputs(model):
        if not case.n:
            return case.prompt([])
        ratio_ids = {(1, 2): 2, (1, 1): 1, (3, 1): 7, (2, 2): 6}
        ratios = [(1, 2), (1, 1), (3, 1), (2, 2)][: case.n]
        side = vision.image_size
        per_row = max(map(len, case.rows))
        pixels = torch.zeros(len(case.rows), per_row, 4, 3, side, side)
        ids = torch.zeros(len(case.rows), per_row, dtype=torch.long)
        tiles = torch.zeros(len(case.rows), per_row, 4, dtype=torch.long)
        tiles[:, :, 0] = 1  # a missing image still has its first tile "valid"
        valid = [[0] * per_row for _ in case.rows]
        for r, images in enumerate(case.rows):
            for k, i in enumerate(images):
                n = ratios[i][0] * ratios[i][1]
                pixels[r, k, :n] = case.normal(n, 3, side, side)
                ids[r, k], valid[r][k] = ratio_ids[ratios[i]], n
                tiles[r, k, :n] = 1
        out = case.prompt([1] * case.n)
        return {
            **out,
            "pixel_values": pixels,
            "aspect_ratio_ids": ids,
            "aspect_ratio_mask": tiles,
            "cross_attention_mask": _latest_image_mask(out["input_ids"], per_row, 4, valid),
        }

    return cfg, inputs


def _idefics_images(case: Case, size: int, patch: int, sizes):
    """(rows, images, 3, H, W) with pixel masks; rows with fewer images get images of zeros."""
    import torch

    per_row = max(map(len, case.rows))
    pixels = torch.zeros(len(case.rows), per_row, 3, size, size)
    mask = torch.zeros(len(case.rows), per_row, size, size, dtype=torch.bool)
    for r, images in enumerate(case.rows):
        for k, i in enumerate(images):
            h, w = sizes[i]
            pixels[r, k, :, :h, :w] = case.normal(3, h, w)
            mask[r, k, :h, :w] = True
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def _idefics3(case: Case, config_class, vision_class, text, factor: int = 2):
    given = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        **case.sizes.get("vision", {}),
    }
    cfg = config_class(
        vision_config=vision_class(**given),
        text_config=text,
        image_token_id=IMG,
        scale_factor=factor,
        tie_word_embeddings=False,
    )
    side = given["image_size"]
    tokens = (side // given["patch_size"] // factor) ** 2

    def inputs(model):
        if not case.n:
            return case.prompt([])
        patch = given["patch_size"]
        sizes = [(side, side - patch), (side // 2 + 1, side), (side, side), (side - patch - 1, 3)]
        vis = _idefics_images(case, side, patch, sizes)
        return {**case.prompt([[START, *[IMG] * tokens, END]] * case.n), **vis}

    return cfg, inputs


@reference("Idefics3ForConditionalGeneration", mirrors="HuggingFaceM4/Idefics3-8B-Llama3")
def idefics3(case: Case):
    from transformers import Idefics3Config
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

    text = decoder("llama", **{"rms_norm_eps": 1e-5, **case.sizes.get("text", {})})
    return _idefics3(case, Idefics3Config, Idefics3VisionConfig, text)


@reference("SmolVLMForConditionalGeneration", mirrors="HuggingFaceTB/SmolVLM2-2.2B-Instruct")
def smolvlm(case: Case):
    from transformers import SmolVLMConfig
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    case.sizes.setdefault("vision", {"image_size": 36, "patch_size": 6})
    text = decoder("llama", **{"rms_norm_eps": 1e-5, **case.sizes.get("text", {})})
    return _idefics3(case, SmolVLMConfig, SmolVLMVisionConfig, text, factor=3)


def _internvl(case: Case, norm: str, qk: bool, bias: bool, text: str):
    from transformers import InternVLConfig, InternVLVisionConfig

    given = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "image_size": 28,
        "patch_size": 7,
        **case.sizes.get("vision", {}),
    }
    side = given["image_size"]
    given |= {"image_size": [side] * 2, "patch_size": [given["patch_size"]] * 2}
    vision = InternVLVisionConfig(**given, norm_type=norm, use_qk_norm=qk, attention_bias=bias)
    tokens = (side // vision.patch_size[0] // 2) ** 2
    cfg = InternVLConfig(
        vision_config=vision,
        text_config=decoder(text, **case.sizes.get("text", {})),
        image_token_id=IMG,
        image_seq_length=tokens,
        tie_word_embeddings=False,
    )

    def inputs(model):
        if not case.n:
            return case.prompt([])
        tiles = [3, 1, 2, 1][: case.n]  # dynamic tiling: tiles plus thumbnail
        return {
            **case.prompt([[START, *[IMG] * (tokens * t), END] for t in tiles]),
            "pixel_values": case.normal(sum(tiles), 3, side, side),
        }

    return cfg, inputs


@reference("InternVLForConditionalGeneration", mirrors="OpenGVLab/InternVL3-1B-hf")
def internvl(case: Case):
    return _internvl(case, "layer_norm", False, True, "qwen2")


@reference(
    "InternVLForConditionalGeneration",
    mirrors="OpenGVLab/InternVL2_5-8B (InternLM 2.5 in the layout of llama)",
)
def internvl_llama(case: Case):
    return _internvl(case, "layer_norm", False, True, "llama")


@reference(
    "InternVLForConditionalGeneration",
    mirrors="OpenGVLab/InternVL2_5-26B (InternViT-6B, and InternLM 2.5 in the layout of llama)",
)
def internvl_26b(case: Case):
    return _internvl(case, "rms_norm", True, False, "llama")


@reference(
    "InternVLForConditionalGeneration",
    mirrors="OpenGVLab/InternVL3-38B-hf (InternViT-6B: RMSNorm, q/k norm)",
)
def internvl_6b(case: Case):
    return _internvl(case, "rms_norm", True, False, "qwen3")


@reference("DeepseekVLForConditionalGeneration", mirrors="deepseek-community/deepseek-vl-1.3b-chat")
def deepseek_vl(case: Case):
    from transformers import DeepseekVLConfig

    vision = siglip_vision(**case.sizes.get("vision", {}))
    tokens = (vision.image_size // vision.patch_size) ** 2
    cfg = DeepseekVLConfig(
        vision_config=vision,
        text_config=decoder("llama", **case.sizes.get("text", {})),
        image_token_id=IMG,
        tie_word_embeddings=False,
    )

    def inputs(model):
        if not case.n:
            return case.prompt([])
        return {
            **case.prompt([tokens] * case.n),
            "pixel_values": case.normal(case.n, 3, *[vision.image_size] * 2),
        }

    return cfg, inputs


@reference(
    "DeepseekVLHybridForConditionalGeneration", mirrors="deepseek-community/deepseek-vl-7b-chat"
)
def deepseek_vl_hybrid(case: Case):
    from transformers import DeepseekVLHybridConfig
    from transformers.models.sam.configuration_sam import SamVisionConfig

    given = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
        "window_size": 3,
        "global_attn_indexes": [1],
        "mlp_ratio": 2.0,
    }
    high = SamVisionConfig(**given | case.sizes.get("high", {}))
    vision = siglip_vision(**case.sizes.get("vision", {}))
    tokens = (vision.image_size // vision.patch_size) ** 2
    cfg = DeepseekVLHybridConfig(
        vision_config=vision,
        high_res_vision_config=high,
        text_config=decoder("llama", **case.sizes.get("text", {})),
        image_token_id=IMG,
        tie_word_embeddings=False,
    )

    def inputs(model):
        if not case.n:
            return case.prompt([])
        return {
            **case.prompt([tokens] * case.n),
            "pixel_values": case.normal(case.n, 3, *[vision.image_size] * 2),
            "high_res_pixel_values": case.normal(case.n, 3, *[high.image_size] * 2),
        }

    return cfg, inputs


QWEN_SIZES = [(1, 4, 6), (1, 8, 4), (1, 2, 4), (1, 6, 10)]


def _qwen_inputs(
    case: Case, width: int, merge: int = 2, start: int = START, end: int = END, video=None
):
    if not case.n:
        return case.prompt([])
    vis, grid = patch_rows(case, QWEN_SIZES[: case.n], width)
    blocks = [[start, *[IMG] * (t * h * w // merge**2), end] for t, h, w in QWEN_SIZES[: case.n]]
    out = {"pixel_values": vis, "image_grid_thw": grid}
    if video is not None:
        pixels, vgrid = patch_rows(case, [video], width)
        t, h, w = video
        blocks[-1] = blocks[-1] + case.text(2) + [start, *[VID] * (t * h * w // merge**2), end]
        out |= {"pixel_values_videos": pixels, "video_grid_thw": vgrid}
    return {**case.prompt(blocks), **out}


MROPE = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]}


def _qwen2vl(case: Case):
    from transformers import Qwen2VLConfig

    return Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 48,
            "hidden_size": 64,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 7,
            **case.sizes.get("vision", {}),
        },
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": MROPE,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            **case.sizes.get("text", {}),
        },
        image_token_id=IMG,
        video_token_id=VID,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **case.sizes.get("model", {}),
    )


@reference("Qwen2VLForConditionalGeneration", mirrors="Qwen/Qwen2-VL-7B-Instruct")
def qwen2_vl(case: Case):
    def inputs(model):
        out = _qwen_inputs(case, 3 * 2 * 7 * 7)
        return {**out, "mm_token_type_ids": token_types(out["input_ids"])}

    return _qwen2vl(case), inputs


@reference(
    "Qwen2VLForConditionalGeneration",
    mirrors="Qwen/Qwen2-VL-7B-Instruct (image and video)",
    cases=("plain",),
)
def qwen2_vl_video(case: Case):
    def inputs(model):
        out = _qwen_inputs(case, 3 * 2 * 7 * 7, video=(3, 4, 4))
        return {**out, "mm_token_type_ids": token_types(out["input_ids"])}

    return _qwen2vl(case), inputs


def _qwen25vl(case: Case):
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 48,
            "out_hidden_size": 64,
            "intermediate_size": 80,
            "num_heads": 4,
            "patch_size": 7,
            "window_size": 28,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            **case.sizes.get("vision", {}),
        },
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": MROPE,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            **case.sizes.get("text", {}),
        },
        image_token_id=IMG,
        video_token_id=VID,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **case.sizes.get("model", {}),
    )


@reference("Qwen2_5_VLForConditionalGeneration", mirrors="Qwen/Qwen2.5-VL-7B-Instruct")
def qwen2_5_vl(case: Case):
    def inputs(model):
        out = _qwen_inputs(case, 3 * 2 * 7 * 7)
        return {**out, "mm_token_type_ids": token_types(out["input_ids"])}

    return _qwen25vl(case), inputs


@reference(
    "Qwen2_5_VLForConditionalGeneration",
    mirrors="Qwen/Qwen2.5-VL-7B-Instruct (image and video)",
    cases=("plain",),
)
def qwen2_5_vl_video(case: Case):
    import torch

    def inputs(model):
        out = _qwen_inputs(case, 3 * 2 * 7 * 7, video=(3, 4, 6))
        return {
            **out,
            "mm_token_type_ids": token_types(out["input_ids"]),
            "second_per_grid_ts": torch.tensor([1.0]),
        }

    return _qwen25vl(case), inputs


@reference("VideoLlama3ForConditionalGeneration", mirrors="lkhl/VideoLLaMA3-2B-Image-HF")
def video_llama3(case: Case):
    import torch
    from transformers import VideoLlama3Config
    from transformers.models.video_llama_3.configuration_video_llama_3 import (
        VideoLlama3VisionConfig,
    )

    cfg = VideoLlama3Config(
        vision_config=VideoLlama3VisionConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=2,
            **{"num_attention_heads": 4, "patch_size": 7, **case.sizes.get("vision", {})},
        ),
        text_config=decoder("qwen2", **case.sizes.get("text", {})),
        image_token_id=IMG,
        video_token_id=VID,
        **case.sizes.get("model", {}),
    )

    def inputs(model):
        if not case.n:
            return case.prompt([])
        merge = [1, 2, 1, 2][: case.n]
        vis, grid = patch_rows(case, QWEN_SIZES[: case.n], 3 * 7 * 7)
        blocks = [t * h * w // m**2 for (t, h, w), m in zip(QWEN_SIZES, merge, strict=False)]
        return {
            **case.prompt(blocks),
            "pixel_values": vis,
            "image_grid_thw": grid,
            "image_merge_sizes": torch.tensor(merge),
        }

    return cfg, inputs


@reference(
    "VideoLlama3ForConditionalGeneration",
    mirrors="lkhl/VideoLLaMA3-2B-Image-HF (video, compression mask)",
    cases=("plain",),
    note="video_compression_mask drops video tokens",
)
def video_llama3_video(case: Case):
    import torch
    from transformers import VideoLlama3Config
    from transformers.models.video_llama_3.configuration_video_llama_3 import (
        VideoLlama3VisionConfig,
    )

    cfg = VideoLlama3Config(
        vision_config=VideoLlama3VisionConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=2,
            num_attention_heads=4,
            patch_size=7,
        ),
        text_config=decoder("qwen2"),
        image_token_id=IMG,
        video_token_id=VID,
    )

    def inputs(model):
        vis, grid = patch_rows(case, [(3, 4, 4)], 3 * 7 * 7)
        keep = torch.tensor([1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1], dtype=torch.bool)
        case.rows = [[0]]
        out = case.prompt([[VID] * int(keep.sum())])
        return {
            **out,
            "pixel_values_videos": vis,
            "video_grid_thw": grid,
            "video_merge_sizes": torch.tensor([2]),
            "video_compression_mask": keep,
        }

    return cfg, inputs


def _blip(case: Case, vision_hidden: int = 48):
    from transformers import BlipConfig

    text = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 112,
        "projection_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "sep_token_id": 3,
        "pad_token_id": PAD,
    }
    vision = {
        "hidden_size": vision_hidden,
        "intermediate_size": 80,
        "projection_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
    }
    return BlipConfig(
        text_config=text | case.sizes.get("text", {}),
        vision_config=vision | case.sizes.get("vision", {}),
        projection_dim=40,
        image_text_hidden_size=24,
    )


def _blip_inputs(case: Case):
    case.one_per_row()
    side = case.sizes.get("vision", {}).get("image_size", 28)
    pixels = case.normal(2, 3, side, side)
    return {**case.prompt([[], []], pad_side="right"), "pixel_values": pixels}


@reference("BlipForConditionalGeneration", mirrors="Salesforce/blip-image-captioning-base")
def blip_caption(case: Case):
    return _blip(case), lambda model: _blip_inputs(case)


@reference(
    "BlipForQuestionAnswering",
    mirrors="Salesforce/blip-vqa-base",
    main="loss",
    note="forward returns no logits: loss and image embeddings are compared, generate() answers; "
    "the vision width equals the text width (the answer decoder attends the question's states)",
)
def blip_vqa(case: Case):
    import torch

    def inputs(model):
        labels = torch.tensor([[BOS, *case.text(3), 3], [BOS, *case.text(3), 3]])
        return {**_blip_inputs(case), "decoder_input_ids": labels, "labels": labels.clone()}

    return _blip(case, vision_hidden=64), inputs


@reference(
    "BlipForImageTextRetrieval",
    mirrors="Salesforce/blip-itm-base-coco",
    generates=False,
    extra=lambda model, inputs: {"itc_score": model(**inputs, use_itm_head=False).itm_score},
)
def blip_retrieval(case: Case):
    return _blip(case), lambda model: _blip_inputs(case)


def _qformer(**kw):
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 72,
        "cross_attention_frequency": 2,
        "max_position_embeddings": 64,
        "encoder_hidden_size": 48,
        "pad_token_id": PAD,
    }
    return {**sizes, **kw}


def _instructblip(case: Case, text):
    from transformers import InstructBlipConfig

    vision = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
    } | case.sizes.get("vision", {})
    queries = case.sizes.get("queries", {}).get("num_query_tokens", 5)
    qformer = {"encoder_hidden_size": vision["hidden_size"], **case.sizes.get("qformer", {})}
    cfg = InstructBlipConfig(
        vision_config=vision,
        qformer_config=_qformer(**qformer),
        text_config=text,
        num_query_tokens=queries,
        image_token_index=IMG,
    )

    def inputs(model):
        case.one_per_row()
        side = vision["image_size"]
        question = case.prompt([[], []], pad_side="right")
        out = {
            **case.prompt([queries, queries], bos=False),
            "pixel_values": case.normal(2, 3, side, side),
            "qformer_input_ids": question["input_ids"],
            "qformer_attention_mask": question["attention_mask"],
        }
        if cfg.text_config.is_encoder_decoder:
            out |= _decoder_ids(case)
        return out

    return cfg, inputs


def _decoder_ids(case: Case) -> dict:
    import torch

    return {"decoder_input_ids": torch.tensor([[PAD, *case.text(4)], [PAD, *case.text(4)]])}


def _t5(**kw):
    from transformers import AutoConfig

    sizes = {
        "vocab_size": VOCAB,
        "d_model": 64,
        "d_kv": 12,
        "d_ff": 112,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "decoder_start_token_id": PAD,
        "tie_word_embeddings": False,
    }
    return AutoConfig.for_model("t5", **{**sizes, **kw})


def _opt():
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "opt",
        vocab_size=VOCAB,
        hidden_size=64,
        ffn_dim=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=64,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


@reference("InstructBlipForConditionalGeneration", mirrors="Salesforce/instructblip-vicuna-7b")
def instructblip_vicuna(case: Case):
    return _instructblip(case, decoder("llama", **case.sizes.get("text", {})))


@reference(
    "InstructBlipForConditionalGeneration", mirrors="Salesforce/instructblip-flan-t5-xl", untie=True
)
def instructblip_t5(case: Case):
    return _instructblip(case, _t5(**case.sizes.get("text", {})))


@reference("Kosmos2ForConditionalGeneration", mirrors="microsoft/kosmos-2-patch14-224")
def kosmos2(case: Case):
    from transformers import Kosmos2Config

    cfg = Kosmos2Config(
        text_config={
            "vocab_size": VOCAB,
            "embed_dim": 64,
            "layers": 2,
            "ffn_dim": 112,
            "attention_heads": 4,
            "max_position_embeddings": 128,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "pad_token_id": 3,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            **case.sizes.get("text", {}),
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
            **case.sizes.get("vision", {}),
        },
        latent_query_num=case.sizes.get("latents", {}).get("count", 5),
    )
    side = cfg.vision_config.image_size

    def inputs(model):
        case.one_per_row()
        out = case.prompt([[START, *[IMG] * cfg.latent_query_num, END]] * 2)
        out["input_ids"][out["attention_mask"] == 0] = cfg.text_config.pad_token_id
        return {
            **out,
            "pixel_values": case.normal(2, 3, side, side),
            "image_embeds_position_mask": (out["input_ids"] == IMG).long(),
        }

    return cfg, inputs


@reference("FuyuForCausalLM", mirrors="adept/fuyu-8b")
def fuyu(case: Case):
    from transformers import FuyuConfig

    given = {"hidden_act": "relu2", "qk_layernorm": True, "layer_norm_eps": 1e-5}
    given["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 25000.0,
        "partial_rotary_factor": 0.5,
    }
    text = decoder("persimmon", **{**given, **case.sizes.get("text", {})})
    side = case.sizes.get("patch", {}).get("size", 10)
    cfg = FuyuConfig(
        text_config=text, image_size=40, patch_size=side, num_channels=3, image_token_id=IMG
    )

    def inputs(model):
        grids = [(2, 3), (3, 1), (1, 2), (2, 2)][: case.n]
        # A newline token closes each row of patches.
        prompt = case.prompt([([IMG] * w + [START]) * h for h, w in grids])
        patches = sum(h * w for h, w in grids)
        if not patches:
            return prompt
        return {**prompt, "pixel_values": case.normal(1, patches, side * side * 3)}

    return cfg, inputs


def _pairs(case: Case, size: int = 28, eos: bool = True):
    """Two images and three captions ending in EOS, padded, for contrastive models."""
    import torch

    rows = [[BOS, *case.text(n), EOS] for n in (6, 3, 4)]
    width = 8
    fill = [[0] * (width - len(r)) for r in rows]
    pads = [[PAD] * len(f) for f in fill]
    ones = [[1] * len(r) for r in rows]
    left = case.kind == "padded"
    return {
        "input_ids": torch.tensor(
            [p + r if left else r + p for p, r in zip(pads, rows, strict=True)]
        ),
        "attention_mask": torch.tensor(
            [f + o if left else o + f for f, o in zip(fill, ones, strict=True)]
        ),
        "pixel_values": case.normal(2, 3, size, size),
    }


def _dual_text(**kw):
    return dict(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        **kw,
    )


def _dual_vision(**kw):
    return dict(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
        **kw,
    )


@reference(
    "CLIPModel",
    mirrors="openai/clip-vit-base-patch32",
    cases=("plain",),
    generates=False,
    note="eos_token_id is not 2 on purpose: 2 selects the legacy arg-max pooling",
)
def clip(case: Case):
    return _clip(case, 3)


@reference(
    "CLIPModel",
    mirrors="openai/clip-vit-large-patch14-336",
    cases=("plain",),
    generates=False,
    note="eos_token_id is 2, as in the published configs: the largest id is pooled",
)
def clip_legacy(case: Case):
    return _clip(case, 2)


def _clip(case: Case, eos: int):
    from transformers import CLIPConfig

    text, vision = (case.sizes.get(name, {}) for name in ("text", "vision"))
    cfg = CLIPConfig(
        text_config=_dual_text(projection_dim=40) | {"eos_token_id": eos} | text,
        vision_config=_dual_vision(projection_dim=40) | vision,
        projection_dim=case.sizes.get("projection_dim", 40),
    )

    def inputs(model):
        out = _pairs(case, cfg.vision_config.image_size)
        out["input_ids"][out["input_ids"] == EOS] = eos
        return out

    return cfg, inputs


@reference(
    "SiglipModel", mirrors="google/siglip-base-patch16-224", cases=("plain",), generates=False
)
def siglip(case: Case):
    from transformers import SiglipConfig

    text, vision = (case.sizes.get(name, {}) for name in ("text", "vision"))
    vision = _dual_vision() | vision
    text = _dual_text(projection_size=vision["hidden_size"]) | text
    cfg = SiglipConfig(text_config=text, vision_config=vision)

    def inputs(model):
        out = _pairs(case, vision["image_size"])
        return {k: v for k, v in out.items() if k != "attention_mask"}

    return cfg, inputs


@reference(
    "Aimv2Model", mirrors="apple/aimv2-large-patch14-224-lit", cases=("plain",), generates=False
)
def aimv2(case: Case):
    from transformers import Aimv2Config

    text, vision = (case.sizes.get(name, {}) for name in ("text", "vision"))
    cfg = Aimv2Config(
        text_config={
            k: v for k, v in _dual_text().items() if k not in ("pad_token_id", "bos_token_id")
        }
        | text,
        vision_config=_dual_vision() | vision,
        projection_dim=40,
    )
    return cfg, lambda model: _pairs(case, cfg.vision_config.image_size)


@reference(
    "Aimv2VisionModel",
    mirrors="apple/aimv2-large-patch14-native",
    cases=("plain",),
    generates=False,
    note="native resolution: sin-cos positions, no pooling head",
)
def aimv2_native(case: Case):
    from transformers import Aimv2VisionConfig

    sizes = _dual_vision(is_native=True, use_head=False) | case.sizes.get("vision", {})
    cfg = Aimv2VisionConfig(**sizes)
    patch = cfg.patch_size
    grid = (5, 3) if case.kind == "plain" else (2, 4)
    return cfg, lambda model: {"pixel_values": case.normal(2, 3, *(patch * n for n in grid))}


@reference(
    "Aimv2VisionModel",
    mirrors="apple/aimv2-large-patch14-224",
    cases=("plain",),
    generates=False,
    note="a table of positions, no pooling head",
)
def aimv2_vision(case: Case):
    from transformers import Aimv2VisionConfig

    cfg = Aimv2VisionConfig(**(_dual_vision(use_head=False) | case.sizes.get("vision", {})))
    return cfg, lambda model: {"pixel_values": case.normal(2, 3, cfg.image_size, cfg.image_size)}


@reference(
    "MiniMaxForCausalLM",
    mirrors="MiniMaxAI/MiniMax-Text-01-hf",
    note="text only: lightning attention and MoE",
)
def minimax(case: Case):
    from transformers import MiniMaxConfig

    cfg = MiniMaxConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        block_size=4,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_attn_alpha_factor=1.3,
        linear_attn_beta_factor=0.9,
        full_attn_alpha_factor=1.1,
        full_attn_beta_factor=0.8,
        mlp_alpha_factor=1.2,
        mlp_beta_factor=0.7,
        pad_token_id=PAD,
        max_position_embeddings=512,
    )
    return cfg, lambda model: case.prompt([case.text(7)] * case.n)


def _deepseek_v2(case: Case, **kw):
    from transformers import DeepseekV2Config

    cfg = DeepseekV2Config(
        **{
            **{
                "vocab_size": VOCAB,
                "hidden_size": 64,
                "intermediate_size": 112,
                "moe_intermediate_size": 40,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "kv_lora_rank": 24,
                "q_lora_rank": 32,
                "qk_nope_head_dim": 16,
                "qk_rope_head_dim": 8,
                "v_head_dim": 20,
                "n_routed_experts": 8,
                "n_shared_experts": 2,
                "num_experts_per_tok": 3,
                "n_group": 4,
                "topk_group": 2,
                "topk_method": "group_limited_greedy",
                "routed_scaling_factor": 1.7,
                "first_k_dense_replace": 1,
                "max_position_embeddings": 512,
                "pad_token_id": PAD,
            },
            **kw,
        }
    )
    return cfg, lambda model: case.prompt([case.text(7)] * case.n)


@reference(
    "DeepseekV2ForCausalLM",
    mirrors="deepseek-ai/DeepSeek-V2",
    note="text only: latent attention, group-limited routing",
)
def deepseek_v2(case: Case):
    return _deepseek_v2(case)


@reference(
    "DeepseekV2ForCausalLM",
    mirrors="deepseek-ai/DeepSeek-V2-Lite",
    note="text only: no query compression, greedy routing",
)
def deepseek_v2_lite(case: Case):
    return _deepseek_v2(case, q_lora_rank=None, topk_method="greedy", n_group=None, topk_group=None)


def _sam2_extra(model, inputs):
    """The other prompts: a box, and a coarse mask given along with the points."""
    import torch

    pixels = inputs["pixel_values"]
    box = model(
        pixel_values=pixels,
        multimask_output=False,
        input_boxes=torch.tensor([[[4.0, 6.0, 40.0, 50.0]], [[10.0, 3.0, 60.0, 30.0]]]),
    )
    grid = torch.arange(24.0)
    mask = (
        ((grid[:, None] - 11) ** 2 + (grid - 9) ** 2 < 40)
        .float()
        .mul(8)
        .sub(4)
        .expand(2, 1, 24, 24)
    )
    masked = model(**inputs, input_masks=mask.contiguous(), multimask_output=True)
    return {
        "box_pred_masks": box.pred_masks,
        "box_iou_scores": box.iou_scores,
        "masked_pred_masks": masked.pred_masks,
        "masked_iou_scores": masked.iou_scores,
    }


@reference(
    "Sam2Model",
    mirrors="facebook/sam2.1-hiera-tiny",
    cases=("plain",),
    generates=False,
    extra=_sam2_extra,
)
def sam2(case: Case):
    import torch
    from transformers import Sam2Config

    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "num_attention_heads": 1,
        "image_size": [96, 96],
        "window_positional_embedding_background_size": [4, 4],
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 4, 2],
        "global_attention_blocks": [2],
        "mlp_ratio": 2.0,
    }
    cfg = Sam2Config(
        vision_config={
            "backbone_config": backbone,
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": [[24, 24], [12, 12], [6, 6]],
            "fpn_hidden_size": 32,
        },
        prompt_encoder_config={
            "hidden_size": 32,
            "image_size": 96,
            "patch_size": 16,
            "mask_input_channels": 8,
        },
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 48,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 24,
        },
    )

    def inputs(model):
        points = torch.tensor([[[[10.0, 12.0], [50.0, 40.0]]], [[[33.0, 5.0], [20.0, 61.0]]]])
        return {
            "pixel_values": case.normal(2, 3, 96, 96),
            "input_points": points,
            "input_labels": torch.tensor([[[1, 0]], [[1, 1]]]),
        }

    return cfg, inputs


def _torch():
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch


@functools.cache
def _torchvision_operators():
    """Declare the two operators that a torchvision built for CUDA misses in a CPU-only torch."""
    torch = _torch()
    if importlib.util.find_spec("torchvision") is None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@functools.cache
def _transformers():
    warnings.filterwarnings("ignore")
    _torchvision_operators()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def build(name: str, seed: int = 0, kind: str = "plain", sizes: dict[str, dict] | None = None):
    """The reference's (model in eval mode with deterministic weights, sample inputs)."""
    torch, r = _torch(), REFS[name]
    transformers = _transformers()
    torch.manual_seed(seed)
    cfg, make_inputs = r.build(Case(name, kind, seed, sizes))
    cls = getattr(transformers, r.cls)
    try:
        model = cls._from_config(cfg, attn_implementation="eager")
    except (ValueError, TypeError):
        model = cls(cfg)
    if hasattr(model, "set_experts_implementation"):
        with contextlib.suppress(Exception):
            model.set_experts_implementation("eager")
    model = model.float().eval()
    if r.untie:
        for head in [m for m in model.modules() if hasattr(m, "lm_head") and hasattr(m, "shared")]:
            head.lm_head.weight = torch.nn.Parameter(head.lm_head.weight.detach().clone())
    randomize(model, seed)
    with torch.no_grad():
        inputs = make_inputs(model)
    return model, inputs


def flatten(value, prefix: str = "") -> dict:
    """Tensors of a nested output, by dotted name."""
    torch = _torch()
    if torch.is_tensor(value):
        return {prefix: value.detach().clone().contiguous()}
    if hasattr(value, "items"):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {}
    out = {}
    for k, v in items:
        if k in (
            "past_key_values",
            "hidden_states",
            "attentions",
            "encoder_hidden_states",
            "encoder_attentions",
            "decoder_hidden_states",
            "decoder_attentions",
            "cross_attentions",
        ):
            continue
        out |= flatten(v, f"{prefix}.{k}" if prefix else str(k))
    return out


def main_output(name: str, out: dict) -> str:
    for key in (
        REFS[name].main,
        "logits",
        "logits_per_image",
        "pred_masks",
        "multimodal_output.last_hidden_state",
        "itm_score",
        "last_hidden_state",
        "loss",
    ):
        if key in out:
            return key
    raise KeyError(f"no main output among {sorted(out)}")


@contextlib.contextmanager
def tracing(model):
    """Record the first float tensor every repeated layer and top-level component returns."""
    torch = _torch()
    lists = {n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    trace, hooks = {}, []
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if (
            not name
            or isinstance(module, torch.nn.ModuleList)
            or not (parent in lists or name.count(".") <= 1)
        ):
            continue

        def hook(_m, _a, output, name=name):
            first = next((v for v in flatten(output).values() if v.is_floating_point()), None)
            if first is not None and f"trace.{name}" not in trace:
                trace[f"trace.{name}"] = first.to(torch.float32)

        hooks.append(module.register_forward_hook(hook))
    try:
        yield trace
    finally:
        for h in hooks:
            h.remove()


def run(model, inputs, *, extra=None, trace: bool = False) -> dict:
    """All outputs of one forward, flat."""
    torch = _torch()
    with torch.no_grad():
        with tracing(model) if trace else contextlib.nullcontext({}) as recorded:
            out = flatten(model(**inputs))
        out |= recorded
        if hasattr(model, "get_image_features") and "pixel_values" in inputs:
            with contextlib.suppress(Exception):
                names = inspect.signature(model.get_image_features).parameters
                feats = model.get_image_features(**{k: v for k, v in inputs.items() if k in names})
                out |= flatten(getattr(feats, "pooler_output", feats), "image_features")
        if extra:
            out |= flatten(extra(model, inputs), "")
    return out


def generate(model, inputs, tokens: int = 8):
    """Greedy tokens with the KV cache, and the smallest gap between the two best logits."""
    torch = _torch()
    given = {k: v for k, v in inputs.items() if k not in ("decoder_input_ids", "labels")}
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    out = model.generate(
        **given,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    top = torch.stack(out.logits).topk(2, dim=-1).values
    return out.sequences, float((top[..., 0] - top[..., 1]).min())


@contextlib.contextmanager
def float64_math():
    """Let code that upcasts "to float32" upcast to float64, so that a double model stays double."""
    torch = _torch()
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = saved[:3]
        torch.set_default_dtype(saved[3])


def widened(model, inputs):
    """The model and its inputs in float64; run it under float64_math()."""
    double = copy.deepcopy(model).double()
    for module in double.modules():  # rotary frequencies and the like, computed at construction
        for n, b in module.named_buffers(recurse=False):
            if b.is_floating_point():
                setattr(module, n, b.double())
    return double, {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def float64_output(model, inputs, key: str):
    torch = _torch()
    with float64_math(), torch.no_grad():
        double, wide = widened(model, inputs)
        exact = flatten(double(**wide))[key]
        assert exact.dtype == torch.float64
        return exact


def float64_error(inputs, single, exact) -> dict:
    """Error of a float32 output against the same model's float64 output."""
    keep = _valid(inputs, exact)
    single, exact = single.double()[keep], exact[keep]
    real = (
        exact.abs() < 1e30
    )  # some models set the logits of forbidden tokens to the dtype's minimum
    diff = (single - exact)[real]
    return {
        "max_abs": float(diff.abs().max()),
        "rel_l2": float(diff.norm() / exact[real].norm()),
        "scale": float(exact[real].abs().mean()),
    }


def _valid(inputs, tensor):
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != tensor.shape[: mask.ndim]:
        return ...
    return mask.bool()


def gradients(model, inputs, key: str, seed: int) -> tuple[dict, Any]:
    torch = _torch()
    import numpy as np

    model.zero_grad(set_to_none=True)
    out = flatten_with_grad(model(**inputs), key)
    w = torch.from_numpy(
        np.random.Generator(np.random.PCG64([seed, 7]))
        .standard_normal(tuple(out.shape))
        .astype("float32")
    )
    keep = _valid(inputs, out)
    if keep is not ...:
        w = w * keep.reshape(keep.shape + (1,) * (w.ndim - keep.ndim)).float()
    (out * w).sum().backward()
    return {
        n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None
    }, w


def flatten_with_grad(value, key: str):
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, (list, tuple)) else value[part]
    return value


def digest(tensors: dict) -> str:
    h = hashlib.sha256()
    for k in sorted(tensors):
        v = tensors[k]
        h.update(f"{k}{tuple(v.shape)}{v.dtype}".encode())
        h.update(v.detach().contiguous().cpu().numpy().tobytes())
    return h.hexdigest()[:16]


def make(name: str, folder: Path, seed: int = 0) -> dict:
    """Write the reference into the folder and return its record."""
    torch, r = _torch(), REFS[name]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    record: dict = {
        "name": name,
        "class": r.cls,
        "mirrors": r.mirrors,
        "note": r.note,
        "seed": seed,
        "transformers": _transformers().__version__,
        "torch": torch.__version__,
        "cases": {},
    }
    for kind in r.cases:
        model, inputs = build(name, seed, kind)
        record["cases"][kind] = _write_case(name, kind, seed, model, inputs, folder)
    model.save_pretrained(folder)
    record["parameters"] = sum(p.numel() for p in model.parameters())
    record["weights"] = {n: list(p.shape) for n, p in model.named_parameters()}
    record["seconds"] = round(time.perf_counter() - started, 2)
    (folder / "reference.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


def _write_case(name: str, kind: str, seed: int, model, inputs: dict, folder: Path) -> dict:
    """Write inputs, expected outputs and gradients of one case; return its record."""
    from safetensors.torch import save_file

    r = REFS[name]
    out = run(model, inputs, extra=r.extra, trace=True)
    key = main_output(name, out)
    case: dict = {"main_output": key, "shape": list(out[key].shape)}
    placeholder = getattr(model.config, "image_token_id", None)
    if placeholder is not None and "input_ids" in inputs:
        case["visual_tokens"] = int((inputs["input_ids"] == placeholder).sum())
    with _noting(case, "float64_failed"):
        out[f"{key}.float64"] = float64_output(model, inputs, key)
        case["float64"] = float64_error(inputs, out[key], out[f"{key}.float64"])
    if r.generates:
        with _noting(case, "generate_failed"):
            out["generated"], case["generate_min_gap"] = generate(model, inputs)
            out["generated.new"] = out["generated"][:, -8:].clone()
    if kind == "plain":
        with _noting(case, "gradients_failed"):
            grads, out["grad_seed_weights"] = gradients(model, inputs, key, seed)
            save_file(grads, folder / "plain.grads.safetensors")
            every = dict(model.named_parameters())
            case["parameters_without_gradient"] = sorted(set(every) - set(grads))
            case["parameters_with_zero_gradient"] = sorted(
                n for n, g in grads.items() if not g.any()
            )
    save_file({k: v.contiguous() for k, v in inputs.items()}, folder / f"{kind}.inputs.safetensors")
    save_file({k: v.contiguous() for k, v in out.items()}, folder / f"{kind}.expected.safetensors")
    case["inputs"] = {
        k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in inputs.items()
    }
    case["sha256"] = digest({k: v for k, v in out.items() if not k.startswith("trace.")})
    return case


@contextlib.contextmanager
def _noting(case: dict, key: str):
    """Record what a step of `make` cannot do for this reference, and go on."""
    try:
        yield
    except Exception as error:
        case[key] = f"{type(error).__name__}: {error}"[:200]


def check(folder: Path) -> dict:
    """Reload the checkpoint as a user would and compare every output bit for bit."""
    torch = _torch()
    from safetensors.torch import load_file

    record = json.loads((folder / "reference.json").read_text())
    r = REFS[record["name"]]
    cls = getattr(_transformers(), r.cls)
    model = cls.from_pretrained(folder, attn_implementation="eager").float().eval()
    if hasattr(model, "set_experts_implementation"):
        with contextlib.suppress(Exception):
            model.set_experts_implementation("eager")
    worst = {}
    for kind in record["cases"]:
        inputs = load_file(folder / f"{kind}.inputs.safetensors")
        want = load_file(folder / f"{kind}.expected.safetensors")
        got = run(model, inputs, extra=r.extra)
        for k, v in got.items():
            if not torch.equal(v, want[k]) and not (torch.isnan(v) & torch.isnan(want[k])).any():
                worst[f"{kind}:{k}"] = float((v.double() - want[k].double()).abs().max())
    return worst


def audit(name: str, seed: int = 0) -> dict:
    """Sensitivity: outputs must move with the pixels and with every parameter."""
    torch = _torch()
    model, inputs = build(name, seed)
    base = run(model, inputs)
    key = main_output(name, base)
    moved = {}
    for k, v in inputs.items():
        if v.is_floating_point() and "mask" not in k:
            other = {
                **inputs,
                k: torch.where(
                    v == 0, v, v + 0.3 * torch.cos(torch.arange(v.numel()).view(v.shape).float())
                ),
            }
            moved[k] = float((run(model, other)[key] - base[key]).abs().max())
    grads, _ = gradients(model, inputs, key, seed)
    dead = [n for n, _ in model.named_parameters() if n not in grads or not grads[n].any()]
    return {"moved": moved, "dead_parameters": dead, "of": len(list(model.named_parameters()))}


def rel_l2(a, b) -> float:
    keep = (b.abs() < 1e30) & (a.abs() < 1e30)
    return float((a.double() - b.double())[keep].norm() / b.double()[keep].norm())


@contextlib.contextmanager
def setting(owner, attribute, value):
    """Give an attribute another value for a while."""
    old = getattr(owner, attribute)
    setattr(owner, attribute, value)
    try:
        yield
    finally:
        setattr(owner, attribute, old)


@contextlib.contextmanager
def scaled(tensor, factor):
    """Multiply a tensor in place for a while."""
    torch = _torch()
    old = tensor.detach().clone()
    with torch.no_grad():
        tensor.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(old)


def mutants(model, inputs):
    """Typical porting mistakes, one at a time: (kind, where, context manager, inputs)."""
    for kind, where, change in _module_mutants(model):
        yield kind, where, change, inputs
    for kind, where, change in _tensor_mutants(model):
        yield kind, where, change, inputs
    for kind, where, other in _input_mutants(inputs):
        yield kind, where, contextlib.nullcontext(), {**inputs, where: other}


def _module_mutants(model):
    import torch.nn.functional as F

    tanh, exact = functools.partial(F.gelu, approximate="tanh"), F.gelu
    for name, m in model.named_modules():
        for attribute in ("eps", "variance_epsilon", "norm_eps"):
            value = getattr(m, attribute, None)
            if isinstance(value, float):
                yield "norm eps x 10", name, setting(m, attribute, value * 10)
        kind = type(m).__name__.lower()
        if not list(m.children()) and any(a in kind for a in ("gelu", "silu", "relu", "quick")):
            smooth = any(a in kind for a in ("tanh", "new", "quick", "silu"))
            other = exact if smooth or getattr(m, "approximate", None) == "tanh" else tanh
            swapped = setting(m, "forward", lambda x, *_, other=other: other(x))
            yield "other activation", name, swapped
        for attribute in ("scaling", "scale", "softmax_scale"):
            value = getattr(m, attribute, None)
            if isinstance(value, float) and "attn" in name.lower():
                yield "attention scale x 1.001", name, setting(m, attribute, value * 1.001)


def _tensor_mutants(model):
    for name, b in model.named_buffers():
        if name.endswith("inv_freq") and "original" not in name:
            yield "rope base off by 0.1 %", name, scaled(b, 1.001)
    for name, p in model.named_parameters():
        if p.ndim == 1 and name.endswith("bias"):
            yield "bias left out", name, scaled(p, 0.0)
        elif p.ndim == 1 and p.numel() > 1:
            yield "norm weight, layer scale or class token halved", name, scaled(p, 0.5)
        elif p.numel() == 1:
            yield "scalar gate x 1.01", name, scaled(p, 1.01)


def _input_mutants(inputs):
    torch = _torch()
    for name, v in inputs.items():
        square = v.ndim >= 4 and v.shape[-1] == v.shape[-2]
        if "pixel" in name and v.is_floating_point() and square:
            yield "height and width swapped", name, v.transpose(-1, -2).contiguous()
        if "mask" in name and "cross" not in name and not v.bool().all():
            yield "mask ignored", name, torch.ones_like(v)
        if "token_type" in name:
            yield "token types ignored", name, torch.zeros_like(v)


def mutate(name: str, double: bool = False, seed: int = 0) -> dict:
    """Mistakes that leave every output within the tolerance in every case, dead parameters aside.

    Float32 is compared at 1e-5 (relative L2), float64 at 1e-10.
    """
    tolerance = 1e-10 if double else 1e-5
    best: dict = {}
    for kind in REFS[name].cases:
        for mutant, error in _mutant_errors(name, kind, double, seed, tolerance):
            best[mutant] = max(best.get(mutant, 0.0), error)
    dead = set(audit(name, seed)["dead_parameters"])
    rows: dict = {}
    for (what, where), worst in best.items():
        if where in dead or any(d.startswith(where + ".") for d in dead):
            continue
        row = rows.setdefault(what, {"mutants": 0, "killed": 0, "survivors": []})
        row["mutants"] += 1
        row["killed"] += worst > tolerance
        if worst <= tolerance:
            row["survivors"].append(f"{where} {worst:.1e}")
    return rows


def _mutant_errors(name: str, kind: str, double: bool, seed: int, tolerance: float):
    """The largest error that each mutant causes in one case."""
    torch, r = _torch(), REFS[name]
    model, inputs = build(name, seed, kind)
    key = main_output(name, run(model, inputs))
    with float64_math() if double else contextlib.nullcontext(), torch.no_grad():
        if double:
            model, inputs = widened(model, inputs)

        def outputs(given):
            out = flatten(model(**given))
            return out | (flatten(r.extra(model, given)) if r.extra and not double else {})

        base = outputs(inputs)
        keep = _valid(inputs, base[key])
        others = [
            k
            for k, v in base.items()
            if v.is_floating_point() and "loss" not in k and v.shape[:2] != base[key].shape[:2]
        ]
        for what, where, change, given in mutants(model, inputs):
            with change:
                try:
                    got = outputs(given)
                    worst = rel_l2(got[key][keep], base[key][keep])
                    if worst <= tolerance:
                        worst = max([worst, *(rel_l2(got[k], base[k]) for k in others if k != key)])
                except Exception:
                    worst = math.inf
            yield (what, where), worst


def wobble(name: str, seed: int = 0) -> dict:
    """Relative L2 distance of the same model under other attention, expert and thread settings."""
    torch = _torch()
    model, inputs = build(name, seed)
    base = run(model, inputs)
    key, out = main_output(name, base), {}
    keep = _valid(inputs, base[key])
    with contextlib.suppress(Exception):
        model.set_attn_implementation("sdpa")
        out["sdpa"] = rel_l2(run(model, inputs)[key][keep], base[key][keep])
        model.set_attn_implementation("eager")
    with contextlib.suppress(Exception):
        model.set_experts_implementation("grouped_mm")
        out["grouped experts"] = rel_l2(run(model, inputs)[key][keep], base[key][keep])
        model.set_experts_implementation("eager")
    torch.set_num_threads(2)
    out["two threads"] = rel_l2(run(model, inputs)[key][keep], base[key][keep])
    torch.set_num_threads(1)
    with contextlib.suppress(Exception), torch.no_grad():
        half = copy.deepcopy(model).bfloat16()
        low = flatten(
            half(**{k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()})
        )[key]
        out["bfloat16"] = rel_l2(low.float()[keep], base[key][keep])
    return out


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sub = parser.add_subparsers(dest="command", required=True)
    sub.add_parser("list")
    sub.add_parser("check").add_argument("outdir", type=Path)
    for command in ("make", "audit", "mutate", "wobble"):
        p = sub.add_parser(command)
        p.add_argument("name")
        if command == "make":
            p.add_argument("outdir", type=Path)
            p.add_argument("--seed", type=int, default=0)
        if command == "mutate":
            p.add_argument("--double", action="store_true", help="in float64, at 1e-10")
    args = parser.parse_args(argv)
    if args.command == "list":
        for r in REFS.values():
            needs = f"  needs {r.needs}" if r.needs else ""
            print(f"{r.name:24} {r.cls:44} {r.mirrors}{needs}")
        return 0
    if args.command == "check":
        names = sorted(f.parent for f in args.outdir.rglob("reference.json"))
    else:
        names = [n for n in REFS if args.name in ("all", n)]
    if not names:
        parser.error("nothing of that name")
    failed = 0
    for name in names:
        try:
            print(name, json.dumps(_result(args, name)), flush=True)
        except Exception as error:
            print(f"{name} FAILED {type(error).__name__}: {error}"[:600], flush=True)
            failed += 1
    return int(failed > 0)


def _result(args: argparse.Namespace, name):
    """What one command says about one reference."""
    if args.command == "make":
        folder = args.outdir if args.name == name else args.outdir / name
        return make(name, folder, args.seed)["cases"]
    if args.command == "check":
        if differing := check(name):
            raise ValueError(f"outputs differ: {differing}")
        return "equal"
    if args.command == "mutate":
        return mutate(name, args.double)
    return {"audit": audit, "wobble": wobble}[args.command](name)


if __name__ == "__main__":
    sys.exit(main())
