"""The emitted module is no slower and no larger than transformers in eager mode.

Run alone (`pytest -m perf tests/perf -n0`): other work on the machine makes every figure noise.
"""

import sys
from pathlib import Path

import pytest
import torch

import vlmspec

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import racing

pytestmark = [pytest.mark.perf, pytest.mark.slow]
ROUNDS = 7
ATTEMPTS = 3


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    root = tmp_path_factory.mktemp("contest")
    racing.mid_size_checkpoint(root / "checkpoint")
    compiled = vlmspec.compile("llava", checkpoint=root / "checkpoint", output=root / "llava")
    return Path(compiled.path), root / "checkpoint"


def test_prefill_and_decode_are_no_slower(contest):
    package, checkpoint = contest
    inputs = torch.load(checkpoint / "inputs.pt")
    runners = [
        racing.emitted_runner(racing.load_package(package), checkpoint),
        racing.reference_runner(checkpoint, "eager"),
    ]
    times: list[dict] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # More rounds can only sharpen the best of each, so a disturbed start is mended by time.
        for _ in range(ATTEMPTS):
            times += racing.rounds(runners, inputs, 16, ROUNDS)
            ratios = {
                phase: racing.best(times, "eager", phase) / racing.best(times, "emitted", phase)
                for phase in ("prefill", "decode")
            }
            if min(ratios.values()) >= 1.0:
                break
    finally:
        torch.set_num_threads(threads)
    assert min(ratios.values()) >= 1.0, ratios


def test_peak_memory_is_no_larger(contest):
    peaks = {
        name: min(racing.fresh(*contest, name)["peak"] for _ in range(2))
        for name in ("emitted", "eager")
    }
    assert peaks["emitted"] <= peaks["eager"], peaks
