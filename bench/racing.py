"""Race an emitted module against its public reference: same weights, same inputs, one run.

    python bench/racing.py PACKAGE CHECKPOINT RUNNER    # one runner alone, its memory as JSON

A race is interleaved: every round runs each runner once, in a new order, so that a busy machine
slows all of them. The best round counts.
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of transformers
ROOT = Path(__file__).resolve().parent.parent
RUNNERS = ("emitted", "eager", "sdpa")


@dataclass(frozen=True)
class Runner:
    """One implementation, reduced to its two phases.

    Attributes:
        name: what tables call it.
        model: the loaded model, in eval mode.
        new_cache: makes an empty cache for (rows, tokens); None where the model makes its own.
        cache_argument: how its forward calls the cache.
    """

    name: str
    model: Any
    new_cache: Callable[[int, int], Any] | None
    cache_argument: str

    def prefill(self, inputs: dict, room: int) -> tuple[Any, Any]:
        """Run the prompt; give the last logits [B, 1, V] and the cache."""
        rows, tokens = inputs["input_ids"].shape
        given = {}
        if self.new_cache is not None:
            given[self.cache_argument] = self.new_cache(rows, tokens + room)
        output = self.model(**inputs, **given, logits_to_keep=1)
        cache = given.get(self.cache_argument)
        return output.logits, output.past_key_values if cache is None else cache

    def step(self, token: Any, mask: Any, cache: Any) -> Any:
        """Run one more token of each row [B, 1]; give its logits [B, 1, V]."""
        return self.model(token, attention_mask=mask, **{self.cache_argument: cache}).logits


def emitted_runner(package: Any, checkpoint: Path) -> Runner:
    """Load a checkpoint with an emitted package."""
    model = package.Model.from_pretrained(checkpoint).eval()
    return Runner("emitted", model, model.new_cache, "cache")


def reference_runner(checkpoint: Path, attention: str) -> Runner:
    """Load a checkpoint with transformers."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, attn_implementation=attention, local_files_only=True
    )
    return Runner(attention, model.eval(), None, "past_key_values")


def load_package(folder: Path) -> Any:
    """Import an emitted package from its folder."""
    name = folder.name.replace("-", "_")
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return package


def once(runner: Runner, inputs: dict, tokens: int) -> dict[str, float]:
    """Seconds for the prompt, and for each of `tokens` greedy tokens after it."""
    import torch

    with torch.inference_mode():
        started = time.perf_counter()
        logits, cache = runner.prefill(inputs, tokens)
        prefill = time.perf_counter() - started
        mask = inputs["attention_mask"]
        started = time.perf_counter()
        for _ in range(tokens):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            logits = runner.step(logits[:, -1:].argmax(-1), mask, cache)
        decode = (time.perf_counter() - started) / tokens
    return {"prefill": prefill, "decode": decode}


def rounds(runners: list[Runner], inputs: dict, tokens: int, count: int) -> Iterator[dict]:
    """Run every runner once per round, in a new order each; the first round only warms up."""
    order = random.Random(0)
    for index in range(count + 1):
        times = {r.name: once(r, inputs, tokens) for r in order.sample(runners, len(runners))}
        if index:
            yield times


def best(times: list[dict], name: str, phase: str) -> float:
    """The best round of a runner."""
    return min(row[name][phase] for row in times)


def middle(times: list[dict], name: str, phase: str) -> float:
    """The median round of a runner."""
    ordered = sorted(row[name][phase] for row in times)
    return ordered[len(ordered) // 2]


def memory(kind: str) -> int:
    """A memory figure of this process in bytes: `VmHWM` (its peak) or `VmRSS`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {kind}")


def alone(package: Path, checkpoint: Path, runner: str, tokens: int = 8) -> dict[str, float]:
    """What one runner costs in this fresh process: imports, loading, and memory above imports."""
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    if runner == "emitted":
        module = load_package(package)
    else:
        import transformers

        getattr(
            transformers, json.loads((checkpoint / "config.json").read_text())["architectures"][0]
        )
    imported = time.perf_counter() - started
    resident = memory("VmRSS")
    started = time.perf_counter()
    if runner == "emitted":
        racer = emitted_runner(module, checkpoint)
    else:
        racer = reference_runner(checkpoint, runner)
    loaded = time.perf_counter() - started
    once(racer, torch.load(checkpoint / "inputs.pt"), tokens)
    return {"import": imported, "load": loaded, "peak": memory("VmHWM") - resident}


def fresh(package: Path, checkpoint: Path, runner: str) -> dict[str, float]:
    """`alone`, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), str(package), str(checkpoint), runner]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def import_torch() -> float:
    """Seconds that `import torch` takes in a fresh process; the best of three."""
    code = "import time; t = time.perf_counter(); import torch; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    return min(float(subprocess.check_output(command, text=True)) for _ in range(3))


def circumstances() -> dict[str, Any]:
    """What a stored measurement says about itself: commit, versions, date, machine, its load."""
    import torch
    import transformers

    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "commit": commit or None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    # Virtual machines often hide the model's name; family and model still identify it.
    numbers = f"family {fields.get('cpu family')} model {fields.get('model')}"
    return f"{fields.get('model name', platform.processor())} ({numbers})"


def mid_size_checkpoint(folder: Path) -> None:
    """Write the benchmark's checkpoint: hidden 512, 8 layers in each tower, 576 + 64 tokens."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Reference

    torch.manual_seed(0)
    shared = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
    vision = CLIPVisionConfig(**shared, intermediate_size=2048, image_size=336, patch_size=14)
    text = LlamaConfig(
        **shared, intermediate_size=1408, num_key_value_heads=4, vocab_size=32000, rms_norm_eps=1e-5
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=31999)
    Reference._from_config(config).save_pretrained(folder)
    ids = torch.randint(3, 31000, (1, 640))
    ids[:, 8 : 8 + 576] = config.image_token_id
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 336, 336),
    }
    torch.save(inputs, folder / "inputs.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("runner", choices=RUNNERS)
    given = parser.parse_args()
    print(json.dumps(alone(given.package, given.checkpoint, given.runner)))


if __name__ == "__main__":
    main()
