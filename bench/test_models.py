"""Emitted modules beside transformers (eager and sdpa), interleaved in one run.

    pytest bench/test_models.py

Prints ratios and stores them under bench/results/ with the commit, the versions and the machine.
"""

import pytest
import racing
import torch

ROUNDS = 7
TOKENS = 16


@pytest.fixture(scope="session")
def runners(contest):
    package, checkpoint = contest
    emitted = racing.emitted_runner(racing.load_package(package), checkpoint)
    others = [racing.reference_runner(checkpoint, a) for a in ("eager", "sdpa")]
    return [emitted, *others]


@pytest.mark.perf
@pytest.mark.parametrize("threads", [1, 2])
def test_prefill_and_decode(benchmark, contest, runners, results, threads):
    inputs = torch.load(contest[1] / "inputs.pt")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        source = racing.rounds(runners, inputs, TOKENS, ROUNDS)
        times: list[dict] = []
        benchmark.pedantic(lambda: times.append(next(source)), rounds=ROUNDS)
    finally:
        torch.set_num_threads(before)
    for phase in ("prefill", "decode"):
        row = {r.name: racing.best(times, r.name, phase) for r in runners}
        results[f"{phase} s, {threads} thread{'s' * (threads > 1)}"] = row
        benchmark.extra_info[phase] = row


@pytest.mark.perf
def test_memory_loading_and_import(contest, results):
    runs = {name: [racing.fresh(*contest, name) for _ in range(3)] for name in racing.RUNNERS}
    torch_alone = f"import s (torch: {racing.import_torch():.2f})"
    names = {"peak": "peak MB above imports", "load": "load s", "import": torch_alone}
    for what, name in names.items():
        scale = 1e6 if what == "peak" else 1
        results[name] = {r: min(run[what] for run in found) / scale for r, found in runs.items()}
