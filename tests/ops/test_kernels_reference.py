"""The plain torch functions of the kernel library against independent formulas, in float64."""

import cmath
import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from vlmspec.compiler.emit.runtime.generation import KVCache
from vlmspec.kernels.activation import reference as activation
from vlmspec.kernels.attention import reference as attention
from vlmspec.kernels.contrastive import reference as contrastive
from vlmspec.kernels.norm import reference as norm
from vlmspec.kernels.patches import reference as patches
from vlmspec.kernels.rope import reference as rope
from vlmspec.kernels.sincos import reference as sincos
from vlmspec.kernels.spatial import reference as spatial
from vlmspec.kernels.splice import reference as splice

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0, grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------ activation


@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4), (2, 0)])
def test_activations_are_their_formulas(shape: tuple[int, ...]):
    x = random(*shape)
    flat = x.flatten().tolist()
    gelu = [v / (1 + math.exp(-1.702 * v)) for v in flat]
    squared = [max(v, 0.0) ** 2 for v in flat]
    close(activation.quick_gelu(x), torch.tensor(gelu, dtype=torch.float64).view(shape))
    close(activation.squared_relu(x), torch.tensor(squared, dtype=torch.float64).view(shape))


@pytest.mark.parametrize("function", [activation.quick_gelu, activation.squared_relu])
def test_activations_have_gradients(function):
    assert gradcheck(function, (random(7, grad=True),))


# ------------------------------------------------------------------------------ norm


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 1, 1), (0, 3, 4), (7, 63)])
def test_norms_of_a_sum_are_their_formulas(shape: tuple[int, ...]):
    x, y = random(*shape), random(*shape, seed=1)
    weight, bias = random(shape[-1], seed=2), random(shape[-1], seed=3)
    total = x + y
    square = sum((total[..., i] ** 2 for i in range(shape[-1])), torch.zeros(shape[:-1]))
    rms = total / (square / shape[-1] + 1e-3).sqrt()[..., None] * weight
    found = norm.add_rms_norm(x, y, weight, 1e-3)
    close(found[0], total)
    close(found[1], rms)
    mean = total.mean(-1, keepdim=True)
    variance = ((total - mean) ** 2).mean(-1, keepdim=True)
    layer = (total - mean) / (variance + 1e-3).sqrt() * weight + bias
    found = norm.add_layer_norm(x, y, weight, bias, 1e-3)
    close(found[0], total)
    close(found[1], layer)


def test_norms_have_gradients():
    x, y, weight = (random(*s, seed=i, grad=True) for i, s in enumerate([(2, 4), (2, 4), (4,)]))
    assert gradcheck(partial(norm.add_rms_norm, eps=1e-3), (x, y, weight))
    bias = random(4, seed=5, grad=True)
    assert gradcheck(partial(norm.add_layer_norm, eps=1e-3), (x, y, weight, bias))


# ------------------------------------------------------------------------------ rope


@pytest.mark.parametrize(("tokens", "width"), [(5, 6), (1, 2), (0, 4), (3, 64)])
def test_rope_is_a_complex_rotation(tokens: int, width: int):
    """Halves of a head are real and imaginary parts, turned by position times frequency."""
    x = random(2, tokens, 3, width)
    positions = torch.arange(tokens)[None] * 7 + 1
    frequencies = rope.rope_frequencies(width, 100.0, CPU)
    cos, sin = rope.rope_table(positions, frequencies, torch.float64)
    assert cos.shape == sin.shape == (1, tokens, 1, width)
    found = rope.apply_rope(x, cos, sin)
    half = width // 2
    wanted = torch.empty_like(x)
    for t in range(tokens):
        for i in range(half):
            turn = cmath.exp(1j * int(positions[0, t]) * float(frequencies[i]))
            pair = torch.complex(x[:, t, :, i], x[:, t, :, i + half]) * turn
            wanted[:, t, :, i], wanted[:, t, :, i + half] = pair.real, pair.imag
    close(found, wanted, 1e-11)


@pytest.mark.parametrize("width", [2, 6, 64, 128])
def test_rope_frequencies_are_their_formula(width: int):
    found = rope.rope_frequencies(width, 10000.0, CPU)
    wanted = [10000.0 ** (-2 * i / width) for i in range(width // 2)]
    assert found.dtype == torch.float32
    close(found.double(), torch.tensor(wanted, dtype=torch.float64), 1e-6)
    scaled = rope.rope_frequencies_linear(width, 10000.0, 4.0, CPU)
    close(scaled.double(), torch.tensor(wanted, dtype=torch.float64) / 4, 1e-6)


@pytest.mark.parametrize("width", [16, 128])
def test_llama3_frequencies_are_their_formula(width: int):
    factor, low, high, original = 8.0, 1.0, 4.0, 8192
    found = rope.rope_frequencies_llama3(width, 500000.0, factor, low, high, original, CPU)
    wanted = []
    for i in range(width // 2):
        frequency = 500000.0 ** (-2 * i / width)
        length = 2 * math.pi / frequency
        if length < original / high:
            wanted.append(frequency)
        elif length > original / low:
            wanted.append(frequency / factor)
        else:
            smooth = (original / length - low) / (high - low)
            wanted.append((1 - smooth) * frequency / factor + smooth * frequency)
    assert any(w == 500000.0 ** (-2 * i / width) for i, w in enumerate(wanted))
    close(found.double(), torch.tensor(wanted, dtype=torch.float64), 1e-5)


def test_rope_table_is_exact_in_low_precision_for_late_positions():
    positions = torch.tensor([[100_000]])
    frequencies = rope.rope_frequencies(8, 10000.0, CPU)
    cos, sin = rope.rope_table(positions, frequencies, torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    angles = 100_000 * frequencies
    close(cos[0, 0, 0, :4].float(), angles.cos(), 1e-2)
    close(sin[0, 0, 0, 4:].float(), angles.sin(), 1e-2)


def test_rope_keeps_lengths_and_has_gradients():
    cos, sin = rope.rope_table(
        torch.arange(3)[None], rope.rope_frequencies(4, 100.0, CPU), torch.float64
    )
    x = random(1, 3, 2, 4, grad=True)
    close(rope.apply_rope(x, cos, sin).norm(dim=-1), x.norm(dim=-1))
    assert gradcheck(lambda x: rope.apply_rope(x, cos, sin), (x,))


# ------------------------------------------------------------------------------ attention


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, visible, scale: float | None) -> Tensor:
    """Attention with loops: [B, T, H, E] over [B, S, G, E]; `visible(b, t, s)` is the mask."""
    batch, queries, heads, width = q.shape
    scale = width**-0.5 if scale is None else scale
    found = torch.zeros(batch, queries, heads, v.shape[-1], dtype=q.dtype)
    for b in range(batch):
        for t in range(queries):
            seen = [s for s in range(k.shape[1]) if visible(b, t, s)]
            for h in range(heads):
                g = h // (heads // k.shape[2])
                scores = [float(q[b, t, h] @ k[b, s, g]) * scale for s in seen]
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                for s, weight in zip(seen, weights, strict=True):
                    found[b, t, h] += v[b, s, g] * weight / sum(weights)
    return found


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "groups"), [(3, 5, 2, 2), (1, 1, 1, 1), (5, 3, 4, 2), (2, 2, 3, 1)]
)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_a_softmax(queries, keys, heads, groups, scale):
    q, k, v = (
        random(2, n, h, 6, seed=i)
        for i, (n, h) in enumerate([(queries, heads), (keys, groups), (keys, groups)])
    )
    wanted = softmax_attention(q, k, v, lambda b, t, s: True, scale)
    close(attention.attention(q, k, v, scale), wanted)


@pytest.mark.parametrize(
    ("tokens", "heads", "groups"), [(4, 2, 2), (1, 4, 2), (5, 6, 2), (3, 3, 1)]
)
def test_causal_attention_is_a_softmax_over_the_past(tokens: int, heads: int, groups: int):
    q, k, v = (random(2, tokens, h, 6, seed=i) for i, h in enumerate((heads, groups, groups)))
    wanted = softmax_attention(q, k, v, lambda b, t, s: s <= t, 0.3)
    close(attention.causal_attention(q, k, v, None, None, 0.3), wanted)


def test_attention_of_no_tokens_is_empty():
    q = random(2, 0, 4, 6)
    assert attention.attention(q, q, q).shape == (2, 0, 4, 6)
    assert attention.causal_attention(q, q, q, None, None).shape == (2, 0, 4, 6)
    none = random(0, 3, 4, 6)
    assert attention.causal_attention(none, none, none, None, None).shape == (0, 3, 4, 6)


@pytest.mark.parametrize("steps", [(5,), (3, 2), (1, 1, 1, 1, 1), (2, 1, 2)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_cached_attention_is_that_of_the_whole_sequence(steps, padded: bool, rotated: bool):
    q, k, v = (random(2, 5, h, 4, seed=i) for i, h in enumerate((4, 2, 2)))
    kept = torch.ones(2, 5, dtype=torch.long)
    kept[1, :2] = 0
    cos, sin = rope.rope_table(
        torch.arange(5)[None], rope.rope_frequencies(4, 50.0, CPU), torch.float64
    )

    def visible(b: int, t: int, s: int) -> bool:
        return s == t or s < t and (not padded or bool(kept[b, s]))

    turned = [rope.apply_rope(x, cos, sin) if rotated else x for x in (q, k)]
    wanted = softmax_attention(*turned, v, visible, None)
    cache = KVCache(2, 2, 5, 4, dtype=torch.float64)
    found, start = [], 0
    for count in steps:
        part = slice(start, start + count)
        mask = attention.causal_mask(
            q[:, part, 0], kept[:, : start + count] if padded else None, start
        )
        new = (q[:, part], k[:, part], v[:, part])
        if rotated:
            tables = cos[:, part], sin[:, part]
            found.append(attention.rope_causal_attention(*new, *tables, mask, cache))
        else:
            found.append(attention.causal_attention(*new, mask, cache))
        start += count
    close(torch.cat(found, 1), wanted)


def test_attention_has_gradients():
    q, k, v = (random(1, 3, h, 2, seed=i, grad=True) for i, h in enumerate((2, 1, 1)))
    assert gradcheck(attention.attention, (q, k, v))
    assert gradcheck(lambda *x: attention.causal_attention(*x, None, None), (q, k, v))
    mask = torch.tensor([[True, False, False], [True, True, False], [False, True, True]])
    assert gradcheck(lambda *x: attention.causal_attention(*x, mask[None, None], None), (q, k, v))


@pytest.mark.parametrize("past", [0, 1, 4])
@pytest.mark.parametrize("length", [0, 1, 3])
@pytest.mark.parametrize("padding", [None, "left", "right", "all", "middle"])
def test_causal_mask_is_what_brute_force_says(past: int, length: int, padding: str | None):
    total = past + length
    kept = torch.ones(2, total, dtype=torch.long)
    match padding:
        case "left":
            kept[1, : total // 2] = 0
        case "right":
            kept[1, total - total // 2 :] = 0
        case "all":
            kept[1] = 0
        case "middle":
            kept[1, 1:3] = 0
    x = random(2, length, 4)
    mask = attention.causal_mask(x, None if padding is None else kept, past)
    if mask is None:
        assert padding is None and (past == 0 or length == 1)
        return
    assert mask.dtype == torch.bool
    mask = mask.expand(2, 1, length, total)
    for b in range(2):
        for t in range(length):
            row = past + t
            for s in range(total):
                wanted = s == row or (s < row and bool(kept[b, s]))
                assert bool(mask[b, 0, t, s]) == wanted, (b, t, s)


def test_positions_are_given_or_counted():
    x = random(2, 3, 4)
    assert attention.token_positions(x, None, 4).tolist() == [[4, 5, 6]]
    assert attention.token_positions(x[:, :0], None, 4).shape == (1, 0)
    given = torch.tensor([[1, 2, 3], [0, 0, 1]])
    assert attention.token_positions(x, given, 4) is given


# ------------------------------------------------------------------------------ splice


@pytest.mark.parametrize(
    ("rows", "tokens", "places"),
    [(1, 4, [1, 2]), (2, 3, [0, 2, 3, 5]), (2, 3, []), (1, 1, [0]), (3, 2, range(6)), (1, 0, [])],
)
def test_splice_is_a_loop(rows: int, tokens: int, places):
    text, visual = random(rows, tokens, 4), random(len(places), 4, seed=1)
    flags = torch.zeros(rows * tokens, dtype=torch.bool)
    wanted = text.clone().view(-1, 4)
    for number, place in enumerate(places):
        flags[place] = True
        wanted[place] = visual[number]
    flags = flags.view(rows, tokens)
    close(splice.splice(text, visual, flags), wanted.view(rows, tokens, 4))
    close(splice.splice(text, visual[None], flags), wanted.view(rows, tokens, 4))


def test_splice_keeps_the_dtype_of_the_text():
    flags = torch.tensor([[True, False]])
    found = splice.splice(torch.zeros(1, 2, 3, dtype=torch.bfloat16), torch.ones(1, 3), flags)
    assert found.dtype == torch.bfloat16
    assert found[0, :, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("count", [1, 3])
def test_splice_refuses_another_number_of_tokens(count: int):
    flags = torch.tensor([[True, False], [True, False]])
    with pytest.raises(
        ValueError, match=rf"2 visual placeholders \(per row: \[1, 1\]\).*{count} v"
    ):
        splice.splice(random(2, 2, 4), random(count, 4), flags)


def test_splice_without_any_visual_token_keeps_the_text():
    """A prompt without images, given an empty batch of them."""
    text = random(2, 3, 4)
    flags = torch.zeros(2, 3, dtype=torch.bool)
    close(splice.splice(text, random(0, 5, 4), flags), text)


def test_splice_has_gradients():
    flags = torch.tensor([[True, False, True]])
    text, visual = random(1, 3, 2, grad=True), random(2, 2, seed=1, grad=True)
    assert gradcheck(lambda t, v: splice.splice(t, v, flags), (text, visual))


# ------------------------------------------------------------------------------- maps


@pytest.mark.parametrize(("rows", "columns", "factor"), [(4, 4, 2), (6, 3, 3), (2, 6, 2)])
def test_cells_are_loops(rows: int, columns: int, factor: int):
    x = random(2, rows * columns, 3)
    found = spatial.cells(x, factor, rows)
    for cell in range(rows * columns // factor**2):
        top, left = divmod(cell, columns // factor)
        for i in range(factor):
            for j in range(factor):
                place = (top * factor + i) * columns + left * factor + j
                close(found[:, cell, i, j], x[:, place])


@pytest.mark.parametrize(("rows", "columns", "side"), [(4, 6, 2), (5, 7, 3), (2, 2, 4), (1, 9, 2)])
def test_windows_are_cut_and_put_back(rows: int, columns: int, side: int):
    x = random(2, rows, columns, 3)
    found = spatial.cut_windows(x, side)
    across = -(-columns // side)
    whole = found.view(2, -1, side, side, 3)
    for r in range(-(-rows // side) * side):
        for c in range(across * side):
            window = whole[:, r // side * across + c // side, r % side, c % side]
            inside = r < rows and c < columns
            close(window, x[:, r, c] if inside else torch.zeros(2, 3, dtype=x.dtype))
    close(spatial.join_windows(found, rows, columns), x)


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (1, 4), (3, 3)])
def test_offsets_along_axes_are_loops(rows: int, columns: int):
    q = random(2, rows * columns, 2, 3)
    down, across = random(2 * rows - 1, 3, seed=1), random(2 * columns - 1, 3, seed=2)
    found = spatial.axis_bias(q, down, across)
    for i in range(rows * columns):
        for j in range(rows * columns):
            (r, c), (s, d) = divmod(i, columns), divmod(j, columns)
            table = down[r - s + rows - 1] + across[c - d + columns - 1]
            close(found[:, :, i, j], q[:, i] @ table)


# ---------------------------------------------------------------- padded batches of images


def test_patches_spread_over_the_table():
    """A whole image counts on; half of one takes every second row of positions."""
    pixels, kept = torch.ones(1, 3, 1, 8, 8), torch.tensor([0, 2])
    mask = torch.zeros(1, 3, 8, 8, dtype=torch.long)
    mask[0, 0], mask[0, 2, :3, :] = 1, 1
    found = patches.spread_positions(pixels, mask, kept, 2, 4)
    assert found[0].tolist() == list(range(16))
    assert found[1].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, *[0] * 8]
    seen = patches.seen_patches(pixels, mask, kept, 2)
    assert seen is not None and seen.flatten(1).tolist() == [[True] * 16, [True] * 8 + [False] * 8]
    assert patches.seen_patches(pixels, None, kept, 2) is None


def test_an_image_of_zeros_is_padding():
    pixels = torch.zeros(2, 2, 1, 2, 2)
    pixels[0, 1, 0, 1, 1] = pixels[1, 0, 0, 0, 0] = -1e-6
    assert patches.real_images(pixels).tolist() == [1, 2]
    assert patches.real_images(pixels * 0).tolist() == []
    assert patches.real_images(pixels * 0, keep_one=True).tolist() == [0]


# ------------------------------------------------------------------------------ towers


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2)])
def test_causal_self_attention_is_causal_attention_without_a_cache(heads, groups, masked):
    q, k, v = (random(2, 5, h, 6, seed=i) for i, h in enumerate((heads, groups, groups)))
    padding = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]) if masked else None
    mask = attention.causal_mask(q, padding, 0)
    found = attention.causal_self_attention(q, k, v, mask)
    close(found, attention.causal_attention(q, k, v, mask, None))
    assert not torch.equal(found, attention.attention(q, k, v))


@pytest.mark.parametrize(("log", "wanted"), [(-3.0, 1.0), (0.0, 1.0), (1.0, math.e), (9.0, 100.0)])
def test_the_bounded_exponential_stays_between_1_and_its_bound(log: float, wanted: float):
    value = torch.tensor(log, dtype=torch.float64)
    close(contrastive.bounded_exp(value, 100.0), torch.tensor(wanted, dtype=torch.float64))


def test_the_row_at_a_token_is_pooled():
    x = random(3, 4, 2)
    ids = torch.tensor([[5, 7, 9, 7], [7, 8, 2, 2], [1, 3, 4, 6]])
    first = contrastive.pool_at_token(x, ids, 7, 2)
    close(first, torch.stack([x[0, 1], x[1, 0], x[2, 0]]))  # the last row has no such token
    largest = contrastive.pool_at_token(x, ids, 2, 2)
    close(largest, torch.stack([x[0, 2], x[1, 1], x[2, 3]]))
    close(contrastive.pool_at_token(x, ids, 2), torch.stack([x[0, 0], x[1, 2], x[2, 0]]))


@pytest.mark.parametrize("columns_first", [False, True])
def test_the_sines_of_a_grid_are_those_of_rows_and_columns(columns_first: bool):
    found = sincos.sincos_grid(random(1, 6, 8), 2, 3, 100.0, columns_first)
    rows = []
    for place in range(6):
        axes = divmod(place, 3)
        for position in reversed(axes) if columns_first else axes:
            angles = [position * 100.0 ** -(i / 2) for i in range(2)]
            rows += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    close(found, torch.tensor(rows, dtype=torch.float64).view(6, 8))


@pytest.mark.parametrize("past", [0, 4])
def test_sines_of_positions_count_from_the_padding(past: int):
    ids = torch.tensor([[1, 1, 8, 9], [5, 6, 7, 1]])
    found = sincos.sinusoid_positions(random(2, 4, 6), ids, past, 1, 10000.0)
    wanted = torch.zeros(2, 4, 6, dtype=torch.float64)
    for (row, column), place in {(0, 2): 2, (0, 3): 3, (1, 0): 2, (1, 1): 3, (1, 2): 4}.items():
        for i in range(3):
            angle = (place + past) * 10000.0 ** -(i / 2)
            wanted[row, column, i], wanted[row, column, 3 + i] = math.sin(angle), math.cos(angle)
    close(found, wanted, 1e-6)  # computed in float32, as public tables are
