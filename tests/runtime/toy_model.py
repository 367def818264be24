"""A small model that uses every entry of the weight map, as an emitted package would."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vlmspec.compiler.emit.runtime.checkpoint import (
    CheckpointMixin,
    Concat,
    Entry,
    Stack,
    Tied,
    Weight,
)
from vlmspec.compiler.emit.runtime.generation import Cache, GenerationMixin, KVCache, Output


@dataclass
class ToyConfig:
    """Sizes of the toy."""

    vocab_size: int = 40
    hidden_size: int = 16
    num_heads: int = 2
    num_experts: int = 3
    tied: bool = True

    @classmethod
    def from_json(cls, data: dict) -> "ToyConfig":
        """Read the keys that are known."""
        if data.get("hidden_act", "gelu") != "gelu":
            raise ValueError("hidden_act must be gelu")
        return cls(**{k: data[k] for k in cls.__dataclass_fields__ if k in data})

    def to_json(self) -> dict:
        """Return a public config."""
        return asdict(self)


def weight_map(config: ToyConfig) -> list[Entry]:
    """Return where the parameters live."""
    width, experts = config.hidden_size, range(config.num_experts)
    qkv = tuple(f"model.attn.{name}_proj.weight" for name in "qkv")
    return [
        Weight("embed.weight", "model.embed_tokens.weight"),
        Concat("qkv.weight", qkv, (width,) * 3),
        Weight("out", "model.attn.o_proj.weight", (1, 0)),
        Stack("experts", tuple(f"model.experts.{i}.weight" for i in experts)),
        Weight("norm.weight", "model.norm.weight"),
        Weight("seen", "model.seen"),
        Tied("head.weight", "embed.weight", "lm_head.weight")
        if config.tied
        else Weight("head.weight", "lm_head.weight"),
    ]


class Toy(nn.Module, CheckpointMixin, GenerationMixin):
    """Embedding, one attention layer, averaged experts, head."""

    config_class = ToyConfig
    weight_map = staticmethod(weight_map)
    alternates = (("model.", "language_model.model.", ""), ("lm_head.", "language_model.lm_head."))

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.embed = nn.Embedding(config.vocab_size, width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Parameter(torch.randn(width, width) * 0.3)
        self.experts = nn.Parameter(torch.randn(config.num_experts, width, width) * 0.3)
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        step = torch.arange(width // config.num_heads // 2, device="cpu") / 4
        self.register_buffer("frequencies", 10.0**-step, persistent=False)

    def new_cache(
        self,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Cache:
        """Return an empty cache."""
        heads = self.config.num_heads
        width = self.config.hidden_size // heads
        dtype = dtype or self.out.dtype
        layer = KVCache(batch_size, heads, max_length, width, dtype=dtype, device=device)
        return Cache([layer])

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn pairs of features by their position."""
        angle = positions[:, None, :, None] * self.frequencies
        a, b = x.chunk(2, -1)
        sin, cos = angle.sin().to(x.dtype), angle.cos().to(x.dtype)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        logits_to_keep: int = 0,
        bias: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Output:
        """Return logits."""
        batch, count = input_ids.shape
        past = 0 if cache is None else cache.length
        if position_ids is None:
            position_ids = torch.arange(past, past + count)[None]
        x = self.embed(input_ids)
        if bias is not None:
            x = x + bias[:, None]
        if token_type_ids is not None:
            x = x + token_type_ids[:, :, None]
        split = (batch, count, 3, self.config.num_heads, -1)
        q, k, v = self.qkv(x).view(split).permute(2, 0, 3, 1, 4)
        q, k = self.rotate(q, position_ids), self.rotate(k, position_ids)
        if cache is not None:
            k, v = cache[0].append(k, v)
            cache.advance(count)
        allowed = torch.ones(count, k.shape[2], dtype=torch.bool).tril(k.shape[2] - count)[None]
        if attention_mask is not None:
            allowed = allowed & attention_mask[:, None].bool()
            allowed = allowed | ~allowed.any(-1, keepdim=True)
        attended = F.scaled_dot_product_attention(q, k, v, allowed[:, None])
        x = x + attended.transpose(1, 2).flatten(2) @ self.out
        x = self.norm(x + F.gelu(torch.einsum("btd,nde->bte", x, self.experts)))
        return Output(self.head(x[:, -logits_to_keep:]) * 4)


def make_tensors(tied: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return a checkpoint of a toy as a publisher would have it, independent of the weight map."""
    torch.manual_seed(3)
    tensors = {"model.embed_tokens.weight": torch.randn(40, 16)}
    for name in "qkvo":
        tensors[f"model.attn.{name}_proj.weight"] = torch.randn(16, 16) * 0.3
    for number in range(3):
        tensors[f"model.experts.{number}.weight"] = torch.randn(16, 16) * 0.3
    tensors["model.norm.weight"] = torch.ones(16)
    if not tied:
        tensors["lm_head.weight"] = torch.randn(40, 16)
    tensors = {key: value.to(dtype) for key, value in tensors.items()}
    return tensors | {"model.seen": torch.tensor(7)}


def write_checkpoint(
    folder: Path, *shards: dict[str, Tensor], config: dict | None = None
) -> dict[str, bytes]:
    """Write a checkpoint with the public libraries only, and return the bytes of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"tied": True, "extra": [1.0, 2]}))
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", {"format": "pt"})
        return read_files(folder)
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        places |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    text = json.dumps(index, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text)
    return read_files(folder)


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a folder."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
