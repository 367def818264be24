"""Images as a few learned queries, put where a mask marks the tokens that they replace."""

import itertools

import pytest
import torch
from parity import harness
from parity.suite import suite
from parity.test_models import Architecture, make, tower


def text(width: int, inner: int, layers: int, heads: int, pad: int) -> dict:
    return {
        "embed_dim": width,
        "ffn_dim": inner,
        "layers": layers,
        "attention_heads": heads,
        "pad_token_id": pad,
    }


ARCHITECTURES = (
    Architecture(
        "kosmos-2",
        "kosmos2",
        ("plain", "padded", "right"),
        sizes={
            "other": {
                "vision": tower(40, 56, 4, 5, 30, 6),
                "text": text(72, 100, 3, 6, 4),
                "latents": {"count": 3},
            },
            "one-head": {
                "vision": tower(26, 31, 3, 1, 15, 5),
                "text": text(34, 61, 1, 1, 121),
                "latents": {"count": 1},
            },
        },
        parameters={None: 1_664_485_376},
    ),
)
# Asked below: there is one image a row, and its mask is as long as the prompt.
INSTEAD = [
    "test_prefill_equals_steps_through_the_cache",
    "test_padding_does_not_matter",
    "test_greedy_tokens_agree",
]
globals().update(suite(ARCHITECTURES, INSTEAD))

EACH = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.reference)
MASK = "image_embeds_position_mask"


def prolonged(given: dict, count: int) -> dict:
    """The inputs with a mask for `count` more tokens of text."""
    return {**given, MASK: torch.nn.functional.pad(given[MASK], (0, count))}


@pytest.mark.parametrize("chunks", [(1,), (2, 3)])
@EACH
def test_prefill_equals_steps_through_the_cache(shared_folder, architecture, chunks):
    tiny = make(shared_folder, architecture, "plain")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    ids = given.pop("input_ids")
    follow = torch.randint(5, 120, (len(ids), 9), generator=torch.Generator().manual_seed(1))
    whole = torch.cat([ids, follow], 1)
    del given["attention_mask"]
    with torch.no_grad():
        want = model(whole, **prolonged(given, 9)).logits
        cache = harness.new_cache(model, len(ids), whole.shape[1])
        pieces = [model(ids, cache=cache, **given).logits]
        start = ids.shape[1]
        for step in itertools.cycle(chunks):
            end = min(start + step, whole.shape[1])
            pieces.append(model(whole[:, start:end], cache=cache).logits)
            start = end
            if start == whole.shape[1]:
                break
    assert harness.compare(torch.cat(pieces, 1), want) <= 1e-12


@pytest.mark.parametrize(
    ("kind", "seed", "size"),
    [("plain", 0, None), ("plain", 1, "other"), ("padded", 0, None), ("padded", 1, "one-head")],
)
@EACH
def test_greedy_tokens_agree(shared_folder, architecture, kind, seed, size):
    tiny = make(shared_folder, architecture, kind, seed, size)
    want = harness.greedy(harness.reference(tiny), tiny, 64)
    options = {"do_sample": False, "eos_token_id": [], "pad_token_id": 0, "max_new_tokens": 64}
    got = harness.emitted(tiny).generate(**tiny.inputs, **options)
    assert torch.equal(got[:, -64:], want)


@EACH
def test_generation_without_a_cache_keeps_the_images(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "plain")
    model = harness.emitted(tiny)
    options = {"do_sample": False, "eos_token_id": [], "pad_token_id": 0, "max_new_tokens": 12}
    cached, whole = (model.generate(**tiny.inputs, **options, use_cache=c) for c in (True, False))
    assert torch.equal(cached, whole)


@EACH
def test_padding_does_not_matter(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "padded")
    model, given = harness.emitted(tiny, torch.float64), tiny.given(torch.float64)
    keep = tiny.mask[1].bool()
    assert not keep.all()
    alone = {k: given[k][1:, keep] for k in ("input_ids", MASK)}
    alone["pixel_values"] = given["pixel_values"][1:]
    with torch.no_grad():
        got, want = model(**alone).logits[0], model(**given).logits[1][keep]
    assert harness.compare(got, want) <= 1e-12


@EACH
def test_a_mask_that_does_not_fit_the_images_is_refused(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "plain")
    given = {k: v.clone() for k, v in tiny.inputs.items()}
    given[MASK][0] = 0
    with pytest.raises(ValueError, match="visual placeholders"):
        harness.emitted(tiny)(**given)


@EACH
def test_text_needs_no_image(shared_folder, architecture):
    tiny = make(shared_folder, architecture, "plain")
    model = harness.emitted(tiny)
    ids = tiny.inputs["input_ids"]
    with torch.no_grad():
        got = model(ids).logits
        reference = harness.reference(tiny).text_model(input_ids=ids).logits
    assert harness.compare(got, reference) <= 1e-5
