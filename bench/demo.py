"""Compile the LLaVA spec and run it beside transformers on a photograph.

    make demo            (or: python bench/demo.py)

The demonstration compiles specs/llava.yaml, shows the architecture, writes a small checkpoint in
the public layout (random, seeded weights), prepares a photograph and a question with the public
processor, and gives both models the same tensors. It prints the largest difference at the vision
encoder, the connector, every decoder layer and the logits, in float32 and in float64, the tokens
that both generate, and the time that both take. Nothing is downloaded.
"""

import math
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `python -P`, which leaves it out

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
CHECKPOINT = BUILD / "llava-small"
QUESTION = "USER: <image>\nWhat is shown in this picture? ASSISTANT:"
NEW_TOKENS = 24
ROUNDS = 5
SENTENCES = """
USER: What is shown in this picture? ASSISTANT: A woman in an orange suit smiles at the camera.
Behind her stand a flag and a model of a rocket, and soft light comes from the left.
An astronaut was asked to sit still for a moment, long before the flight began.
The white helmet on her arm is heavy; its collar has red and blue rings around the neck.
Dark curtains hang over one corner, while stars and stripes fill the other side of the frame.
Nobody knows how many people have seen it since, yet every visitor looks twice.
"""

console = Console(highlight=False)


@contextmanager
def step(title: str):
    """Show what is being done, and how long it took."""
    started = time.perf_counter()
    with console.status(f"{title} ..."):
        yield
    console.print(f"[green]done[/] {title} [dim]{time.perf_counter() - started:.1f} s[/]")


def compile_spec() -> Any:
    """Compile specs/llava.yaml to build/llava."""
    import vlmspec

    return vlmspec.compile("llava", output=BUILD / "llava", dtype="float32")


def show_architecture() -> None:
    """Print what `vlmspec show llava` prints."""
    command = [sys.executable, "-P", "-m", "vlmspec", "show", "llava"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    console.print()
    console.print(shown.stdout or shown.stderr, markup=False, soft_wrap=True)


def make_processor() -> Any:
    """Build the public processor; its tokenizer learns the words of SENTENCES."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    words.train_from_iterator(SENTENCES.splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    # The PIL variant: the other one needs torchvision.
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def make_checkpoint(processor: Any) -> None:
    """Write a small checkpoint in the public layout; every weight is random and matters."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Reference

    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=112,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=len(processor.tokenizer),
        rms_norm_eps=1e-5,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    placeholder = processor.tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=placeholder)
    model = Reference._from_config(config)
    generator = torch.Generator().manual_seed(2304_08485)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "embed_tokens" in name:
                parameter.copy_(noise)
            elif parameter.ndim > 1:  # above the usual scale, so that what was said before matters
                parameter.copy_(2 * noise / math.sqrt(math.prod(parameter.shape[1:])))
            else:  # norms near one and biases near zero, but neither exactly
                parameter.copy_(parameter.flatten()[0] + 0.1 * noise)
    model.save_pretrained(CHECKPOINT)
    processor.save_pretrained(CHECKPOINT)


def read_photograph(processor: Any) -> dict[str, Any]:
    """Prepare a photograph and the question with the public processor."""
    import skimage.data
    from PIL import Image

    photograph = Image.fromarray(skimage.data.astronaut())
    return dict(processor(images=[photograph], text=QUESTION, return_tensors="pt"))


def compare_stages(emitted: dict, reference: Any, stages: dict[str, str], inputs: dict) -> Table:
    """Tabulate the largest absolute and the relative L2 difference at every stage.

    Args:
        emitted: the emitted model in each dtype.
        reference: the model of transformers, in float32.
        stages: stage name to module path in the reference.
        inputs: what the processor gave.
    """
    from vlmspec import verification

    caption = "not run: the checkpoint holds the layer, and nothing reads its result"
    table = Table(title="Emitted module against transformers", title_justify="left")
    table.caption, table.caption_justify = caption, "left"
    table.add_column("stage")
    columns = {}
    for dtype, model in emitted.items():
        name = str(dtype).removeprefix("torch.")
        table.add_column(f"{name}\nlargest", justify="right")
        table.add_column(f"{name}\nrelative", justify="right")
        theirs = verification.run_reference(reference, stages, inputs, dtype)
        ours = verification.run_emitted(model, stages, inputs, dtype)
        for stage, want in theirs.items():
            cells = columns.setdefault(stage, [])
            if ours.get(stage) is None:
                cells += ["not run", "-"]  # nothing reads the result of this layer
                continue
            got = ours[stage].reshape(want.shape)
            cells.append(f"{float((got - want).abs().max()):.1e}")
            cells.append(f"{verification.relative_error(got, want):.1e}")
    for stage, cells in columns.items():
        table.add_row(stage, *cells)
    return table


def compare_answers(emitted: Any, reference: Any, processor: Any, inputs: dict) -> Table:
    """Tabulate the tokens that both generate greedily."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    start = inputs["input_ids"].shape[1]
    reference.generation_config.eos_token_id = None
    answers = {
        "emitted": emitted.generate(**inputs, eos_token_id=[], **options)[0, start:],
        "transformers": reference.generate(**inputs, **options)[0, start:],
    }
    equal = answers["emitted"].tolist() == answers["transformers"].tolist()
    title = f"{NEW_TOKENS} greedy tokens: {'the same' if equal else '[red]DIFFERENT[/]'}"
    table = Table("", "ids, and the words that they stand for", title=title, title_justify="left")
    for name, ids in answers.items():
        table.add_row(name, " ".join(map(str, ids.tolist())))
        table.add_row("", processor.tokenizer.decode(ids), end_section=True)
    return table


def compare_times(emitted: Any, checkpoint: Path, inputs: dict) -> Table:
    """Tabulate median times; the rounds of all are interleaved, on one thread."""
    import racing
    import torch

    torch.set_num_threads(1)
    runners = [racing.Runner("emitted", emitted, emitted.new_cache, "cache")]
    runners += [racing.reference_runner(checkpoint, kind) for kind in ("eager", "sdpa")]
    times = list(racing.rounds(runners, inputs, NEW_TOKENS, ROUNDS))
    title = f"Time in ms, median of {ROUNDS} interleaved rounds, one thread"
    table = Table("", "prefill", "ratio", "per token", "ratio", title=title, title_justify="left")
    for runner in runners:
        cells = []
        for phase in ("prefill", "decode"):
            mine = racing.middle(times, runner.name, phase)
            cells.append(f"{1e3 * mine:.1f}")
            cells.append(f"{mine / racing.middle(times, 'emitted', phase):.2f}")
        name = runner.name if runner.name == "emitted" else f"transformers, {runner.name}"
        table.add_row(name, *cells)
    return table


def main() -> None:
    """Run the demonstration."""
    with step("compile specs/llava.yaml"):
        compiled = compile_spec()
    show_architecture()
    with step("import torch and transformers"):
        import torch

        from vlmspec import verification

    with step("write a small checkpoint in the public layout"):
        processor = make_processor()
        make_checkpoint(processor)
    with step("read a photograph with the public processor"):
        inputs = read_photograph(processor)
    with step("load the checkpoint into both models"):
        package = compiled.load()
        dtypes = (torch.float32, torch.float64)
        emitted = {d: package.Model.from_pretrained(CHECKPOINT, dtype=d).eval() for d in dtypes}
        reference = verification.load_reference(CHECKPOINT)
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
    console.print(f"\nBoth models read the same tensors: {shapes}\n")
    ours, stages = emitted[torch.float32], dict(compiled.spec.reference)
    console.print(compare_stages(emitted, reference, stages, inputs), "")
    console.print(compare_answers(ours, reference, processor, inputs), "")
    with step("time both"):
        table = compare_times(ours, CHECKPOINT, inputs)
    console.print(table, "")
    print_farewell(Path(compiled.path))


def print_farewell(package: Path) -> None:
    """Say where the emitted package lies and how to use it without vlmspec."""
    folder = package.relative_to(ROOT)
    console.print(f"The emitted package lies in [bold]{folder}[/] and needs torch alone:\n")
    console.print(
        f'    cd {folder.parent} && python -c "import {package.name}; '
        f"print({package.name}.Model.from_pretrained('{CHECKPOINT.name}').num_parameters())\"",
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
