"""Samples of every op: operands with their types, attributes and module, as in the IR's text form.

A new op needs a line in `SAMPLES`; where its shape rule refuses something, one in `FAULTS` as well.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Values of the symbols that a sample's types may mention without declaring them.
EXTENTS = {"b": 2, "t": 5, "n": 3, "s": 5, "batch": 2, "tokens": 5, "keys": 5, "kept": 5}


@dataclass(frozen=True)
class Sample:
    """One use of an op.

    Attributes:
        operands: type of each operand by role; `-` is an operand that is None when the code runs.
        attrs: attributes, as in `{factor=2.0}`.
        module: kind and attributes of the module, as in `linear {in_features=d, out_features=3}`.
        sizes: named sizes, which the emitted code reads from its config.
        values: makes the operands that may not be random, from torch and the shape.
        loose: whether dimensions of the result may be 1 where they would be broadcast.
        graphs: other graphs that the module refers to.
    """

    op: str
    operands: Mapping[str, str]
    attrs: str = ""
    module: str = ""
    sizes: Mapping[str, int | float] = field(default_factory=dict)
    values: Mapping[str, Callable[[Any, tuple[int, ...]], Any]] = field(default_factory=dict)
    loose: bool = False
    graphs: str = ""


@dataclass(frozen=True)
class Fault:
    """Operands that a shape rule refuses, and what it says."""

    op: str
    operands: Mapping[str, str]
    message: str
    attrs: str = ""
    module: str = ""
    sizes: Mapping[str, int | float] = field(default_factory=dict)
    code: str = "VS305"


X = "float[b, t, d]"
HEADS = {role: "float[batch, tokens, 4, 6]" for role in "qkv"}
GROUPS = {"q": "float[batch, tokens, 4, 6]"} | {r: "float[batch, tokens, 2, 6]" for r in "kv"}
TABLES = {"cos": "float[batch, tokens, 1, 6]", "sin": "float[batch, tokens, 1, 6]"}
MASK = "bool[batch, 1, tokens, keys]|none"
IDS = {"ids": lambda torch, shape: torch.arange(10).view(shape) % 7}
D = {"d": 8}
EPS = {"d": 8, "eps": 0.001}
ROPE = "original_max_position=64, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0"
BLOCK = """
graph @block {
  input x: float[b, t, d]
  module up: linear {in_features=d, out_features=d}
    param weight: [d, d] {keys=["w"]}
    param bias: [d] {keys=["b"]}
  h: float[b, t, d] = linear(x=x) @up
  return h
}
"""


def placeholders(torch, shape):
    """Ids with exactly six placeholders (9)."""
    return torch.tensor([[9, 1, 9, 9, 2], [9, 3, 9, 4, 9]])


SAMPLES = [
    Sample(
        "embedding", {"ids": "int[b, t]"}, module="embedding {rows=7, width=d}", sizes=D, values=IDS
    ),
    Sample("embedding", {"ids": "int[10]"}, module="embedding {rows=7, width=3}", values=IDS),
    Sample(
        "patch_embed",
        {"x": "float[n, c, 9, 6]"},
        module="patch_embed {channels=c, width=d, patch_size=p, bias=True}",
        sizes=D | {"p": 3, "c": 2},
    ),
    Sample(
        "patch_embed",
        {"x": "float[n, 3, 10, 7]"},
        module="patch_embed {channels=3, width=4, patch_size=3, bias=False}",
    ),
    Sample("prepend_token", {"x": X}, module="parameter {shape=[d]}", sizes=D),
    Sample("position_embedding", {"x": X}, module="parameter {shape=[5, d]}", sizes=D | {"t": 5}),
    Sample("linear", {"x": X}, module="linear {in_features=d, out_features=3}", sizes=D),
    Sample(
        "linear", {"x": X}, module="linear {in_features=8, out_features=d * 2, bias=False}", sizes=D
    ),
    Sample("linear", {"x": "float[4]"}, module="linear {in_features=4, out_features=1}"),
    Sample("split", {"x": X}, "{sizes=[d // 2, d // 2]}", sizes=D),
    Sample("split", {"x": X}, "{sizes=[1, d - 1]}", sizes=D),
    Sample("split", {"x": "float[b, t, 6, d]"}, "{sizes=[3, 2, 1], dim=-2}", sizes=D),
    Sample("layer_norm", {"x": X}, module="layer_norm {width=d, eps=eps}", sizes=EPS),
    Sample("rms_norm", {"x": X}, module="rms_norm {width=d, eps=eps}", sizes=EPS),
    Sample("rms_norm", {"x": "float[b, t, 3, 4]"}, module="rms_norm {width=4, eps=1e-06}"),
    Sample("add_layer_norm", {"x": X, "y": X}, module="layer_norm {width=d, eps=1e-05}", sizes=D),
    Sample("add_rms_norm", {"x": X, "y": X}, module="rms_norm {width=d, eps=eps}", sizes=EPS),
    *(
        Sample("activation", {"x": X}, f'{{kind="{kind}"}}', sizes=D)
        for kind in (
            *("gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "squared_relu"),
            *("tanh", "sigmoid"),
        )
    ),
    Sample("add", {"x": X, "y": X}, sizes=D),
    Sample("add", {"x": "float[b, 4]", "y": "float[b, d // 2]"}, sizes=D),
    Sample("mul", {"x": X, "y": X}, sizes=D),
    Sample("scale", {"x": X}, "{factor=0.5}", sizes=D),
    Sample("scale", {"x": X}, "{factor=eps}", sizes=EPS),
    Sample("split_heads", {"x": X}, "{num_heads=4, head_dim=2}", sizes=D),
    Sample("split_heads", {"x": X}, "{num_heads=h, head_dim=d // h}", sizes=D | {"h": 2}),
    Sample("merge_heads", {"x": "float[b, t, 4, d]"}, sizes=D),
    Sample("cached_tokens", {"cache": "cache"}),
    Sample("cached_tokens", {"cache": "-cache"}),
    Sample(
        "token_positions",
        {"x": X, "position_ids": "-int[batch, tokens]|none", "past": "host_int"},
        sizes=D,
        loose=True,
    ),
    Sample(
        "token_positions",
        {"x": X, "position_ids": "int[batch, tokens]|none", "past": "host_int"},
        sizes=D,
    ),
    Sample(
        "causal_mask",
        {"x": X, "attention_mask": "int[batch, keys]|none", "past": "host_int"},
        sizes=D,
    ),
    Sample(
        "causal_mask",
        {"x": X, "attention_mask": "-int[batch, keys]|none", "past": "host_int"},
        sizes=D,
    ),
    *(
        Sample("rope_table", {"x": X, "positions": "int[batch, tokens]"}, attrs, sizes=D)
        for attrs in (
            "{head_dim=6, theta=100.0}",
            '{head_dim=d, theta=100.0, type="linear", factor=2.0}',
            f'{{head_dim=d, theta=100.0, type="llama3", {ROPE}}}',
        )
    ),
    Sample("rope", {"x": "float[batch, tokens, 4, 6]"} | TABLES),
    Sample("attention", HEADS, "{head_dim=6}"),
    Sample("attention", GROUPS, "{head_dim=6}"),
    Sample("attention", HEADS, "{head_dim=6, scale=0.25}"),
    Sample(
        "attention",
        HEADS | {"k": "float[batch, s, 4, 6]", "v": "float[batch, s, 4, 6]"},
        "{head_dim=6}",
    ),
    Sample("attention", GROUPS | {"mask": "-" + MASK, "cache": "-kv"}, "{head_dim=6, causal=True}"),
    Sample(
        "attention", GROUPS | {"mask": MASK, "cache": "kv"}, "{head_dim=6, causal=True, scale=0.5}"
    ),
    Sample(
        "attention", GROUPS | TABLES | {"mask": MASK, "cache": "kv"}, "{head_dim=6, causal=True}"
    ),
    Sample("partial_rope", {"x": "float[batch, tokens, 4, 9]"} | TABLES),
    Sample("partial_rope", {"x": "float[batch, tokens, 4, 6]"} | TABLES),
    Sample("scaled_add", {"x": X, "y": X}, "{alpha=2.5, beta=eps}", sizes=EPS),
    Sample("scaled_add", {"x": X, "y": X}, "{beta=0.5}", sizes=D),
    Sample("route", {"logits": X}, '{top_k=k, score="softmax"}', sizes=D | {"k": 2}),
    Sample(
        "route", {"logits": X}, '{top_k=3, score="softmax", normalize=True, scale=2.5}', sizes=D
    ),
    Sample("route", {"logits": X}, '{top_k=3, score="top-softmax"}', sizes=D),
    Sample(
        "experts",
        {"x": X, "weights": "float[b, t, 2]", "chosen": "int[b, t, 2]"},
        module='experts {count=3, width=d, inner=5, act="silu"}',
        sizes=D,
    ),
    Sample(
        "route",
        {"logits": X},
        '{top_k=2, score="softmax", groups=4, top_groups=2, scale=2.5}',
        sizes=D,
    ),
    Sample(
        "route",
        {"logits": X, "bias": "float[d]"},
        '{top_k=2, score="sigmoid", normalize=True, scale=eps}',
        sizes=EPS,
    ),
    Sample("rotate_tail", {"x": "float[batch, tokens, 4, 9]"} | TABLES),
    Sample("rotate_tail", {"x": "float[batch, tokens, 1, 6]"} | TABLES),
    *(
        Sample(
            "latent_attention",
            {
                "q": f"float[batch, {tokens}, 4, 9]",
                "k": f"float[batch, {tokens}, 1, 6]",
                "v": f"float[batch, {tokens}, d]",
                "mask": "-" + MASK,
                "cache": "-kv",
            },
            "{own_dim=3, value_dim=5}",
            "linear {in_features=d, out_features=32, bias=False}",
            sizes=D,
        )
        for tokens in (1, 5)
    ),
    Sample("token_mask", {"x": X, "attention_mask": "int[batch, keys]|none"}, sizes=D, loose=True),
    Sample("token_mask", {"x": X, "attention_mask": "-int[batch, keys]|none"}, sizes=D),
    *(
        Sample("decay_rates", {"x": X}, f'{{heads={h}, layer=1, layers=4, form="{f}"}}', sizes=D)
        for h in (6, 8)
        for f in ("exact", "stored")
    ),
    *(
        Sample(
            "lightning_attention",
            HEADS | {"rates": "float[4]", "valid": f"{v}|none", "cache": "-kv"},
            "{block=size}",
            sizes={"size": size},
            values={"rates": lambda torch, shape: torch.rand(shape)},
        )
        for size in (2, 5, 256)
        for v in ("float[batch, tokens, 1, 1]", "-float[batch, tokens, 1, 1]")
    ),
    Sample("advance_cache", {"x": X, "cache": "cache"}, sizes=D),
    Sample("call", {"x": X}, module="graph @block", sizes=D, graphs=BLOCK),
    Sample(
        "repeat", {"x": X}, "{start=0, stop=3}", "repeat @block {count=3}", sizes=D, graphs=BLOCK
    ),
    Sample(
        "repeat",
        {"x": X},
        "{start=1, stop=d - 6}",
        "repeat @block {count=d - 5}",
        sizes=D,
        graphs=BLOCK,
    ),
    Sample("slice_tokens", {"x": X}, "{start=1}", sizes=D),
    Sample("slice_tokens", {"x": X}, "{start=d - 5}", sizes=D),
    Sample("last_tokens", {"x": X, "keep": "host_int"}, sizes=D),
    Sample(
        "splice",
        {"x": "float[b, t, d]", "visual": "float[n, 2, d]", "ids": "int[b, t]"},
        "{placeholder=9}",
        sizes=D,
        values={"ids": placeholders},
    ),
    Sample(
        "splice",
        {"x": "float[b, t, d]", "visual": "float[6, d]", "ids": "int[b, t]"},
        "{placeholder=image_id}",
        sizes=D | {"image_id": 9},
        values={"ids": placeholders},
    ),
]

FAULTS = [
    Fault(
        "embedding",
        {"ids": "float[b, t]"},
        "an embedding looks up ids, and is given float[b, t]",
        module="embedding {rows=7, width=3}",
    ),
    Fault(
        "patch_embed",
        {"x": "float[b, t, d]"},
        "patch_embed takes images [images, channels, height, width], not float[b, t, d]",
        module="patch_embed {channels=3, width=4, patch_size=3, bias=False}",
    ),
    Fault(
        "patch_embed",
        {"x": "float[n, c, 9, 9]"},
        "the number of channels differs: `c` (2) against 3",
        module="patch_embed {channels=3, width=4, patch_size=3, bias=False}",
        sizes={"c": 2},
    ),
    Fault(
        "prepend_token",
        {"x": X},
        "the prepended token takes vectors of 9 numbers, and is given `d` (8)",
        module="parameter {shape=[9]}",
        sizes=D,
    ),
    Fault(
        "position_embedding",
        {"x": "float[b, 4, d]"},
        "the table has another length than the sequence: 4 against 5",
        module="parameter {shape=[5, d]}",
    ),
    Fault(
        "position_embedding",
        {"x": "float[b, 5, 9]"},
        "the position table takes vectors of `d` (8) numbers, and is given 9",
        module="parameter {shape=[5, d]}",
        sizes=D,
    ),
    *(
        Fault(
            op,
            {"x": "cache"},
            "operand `x` is a cache, not a tensor",
            module="linear {in_features=3, out_features=3}" if op == "linear" else "",
            attrs="{num_heads=1, head_dim=1}" if op == "split_heads" else "",
        )
        for op in ("linear", "split_heads", "merge_heads")
    ),
    Fault(
        "linear",
        {"x": X},
        "the linear layer `m` takes vectors of 9 numbers, and is given `d` (8)",
        module="linear {in_features=9, out_features=3}",
        sizes=D,
    ),
    Fault(
        "split",
        {"x": X},
        "the pieces do not add up to what is split: `d` (8) against `d + 1` (9)",
        "{sizes=[d, 1]}",
        sizes=D,
    ),
    *(
        Fault(
            op,
            {"x": X, "y": X},
            "the norm `m` takes vectors of 9 numbers, and is given `d` (8)",
            module=f"{op.removeprefix('add_')} {{width=9, eps=1e-05}}",
            sizes=D,
        )
        for op in ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")
    ),
    *(
        Fault(op, {"x": X, "y": "float[b, t, e]"}, "the two operands differ: `d` against `e`")
        for op in ("add", "mul")
    ),
    *(
        Fault(op, {"x": X, "y": "float[b, d]"}, "the two operands differ: float[b, t, d] against")
        for op in ("add", "mul")
    ),
    Fault(
        "split_heads",
        {"x": X},
        "the split into heads takes vectors of 6 numbers, and is given `d` (8)",
        "{num_heads=3, head_dim=2}",
        sizes=D,
    ),
    Fault(
        "rope",
        {"x": "float[b, t, 4, 8]", "cos": "float[b, t, 1, 6]", "sin": "float[b, t, 1, 6]"},
        "head and rotary table differ: 8 against 6",
    ),
    Fault(
        "partial_rope",
        {"x": "float[b, t, 4, 5]", "cos": "float[b, t, 1, 6]", "sin": "float[b, t, 1, 6]"},
        "the rotary table is wider than a head: 6 against 5",
    ),
    Fault(
        "route",
        {"logits": X},
        "9 of `d` (8) experts cannot be chosen",
        '{top_k=9, score="softmax"}',
        sizes=D,
    ),
    Fault(
        "experts",
        {"x": X, "weights": "float[b, t, 2]", "chosen": "int[b, t, 2]"},
        "each expert takes vectors of 9 numbers, and is given `d` (8)",
        module='experts {count=3, width=9, inner=5, act="silu"}',
        sizes=D,
    ),
    Fault(
        "latent_attention",
        {"q": "float[b, t, 4, 9]", "k": "float[b, t, 1, 5]", "v": X},
        "queries and keys differ in width: 9 against 8",
        "{own_dim=3, value_dim=5}",
        "linear {in_features=8, out_features=32, bias=False}",
        sizes=D,
    ),
    Fault(
        "lightning_attention",
        HEADS | {"k": "float[batch, tokens, 4, 5]", "rates": "float[4]"},
        "queries and keys have heads of different widths: 6 against 5",
        "{block=4}",
    ),
    Fault(
        "attention",
        HEADS | {"k": "float[batch, tokens, 4, 5]"},
        "queries and keys have heads of different widths: 6 against 5",
        "{head_dim=6}",
    ),
    Fault(
        "attention",
        HEADS | {"k": "float[batch, tokens, 2, 6]"},
        "keys and values have different numbers of heads: 2 against 4",
        "{head_dim=6}",
    ),
    Fault(
        "attention",
        {"q": "float[b, t, 5, 6]", "k": "float[b, t, 2, 6]", "v": "float[b, t, 2, 6]"},
        "5 query heads cannot share 2 key heads",
        "{head_dim=6, causal=True}",
        code="VS306",
    ),
    Fault(
        "splice",
        {"x": "float[b, t, d]", "visual": "float[n, 2, 9]", "ids": "int[b, t]"},
        "visual tokens and text embeddings differ in width: 9 against `d` (8)",
        "{placeholder=9}",
        sizes=D,
    ),
    Fault(
        "splice",
        {"x": "float[b, t, d]", "visual": "int[n, 2]", "ids": "int[b, t]"},
        "splice takes visual tokens, not int[n, 2]",
        "{placeholder=9}",
    ),
]
