"""Compare an emitted module with the public reference implementation, stage by stage."""

import contextlib
import copy
import inspect
import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmspec.diagnostics.model import Diagnostics, SpecError, suggest
from vlmspec.publish import read_manifest

TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModel")

# Logits of forbidden tokens are the dtype's minimum; beside them every other error is nothing.
_FORBIDDEN = 1e30


def verify(
    compiled: Any,
    checkpoint: str | Path,
    *,
    dtype: str = "float64",
    tolerance: float | None = None,
    seed: int = 0,
    images: int = 2,
    text_tokens: int = 24,
) -> dict[str, Any]:
    """Run the emitted module and its public reference on the same inputs and compare every stage.

    Args:
        compiled: what `vlmspec.compile` returned.
        checkpoint: a directory with `config.json` and safetensors in the public layout.
        dtype: `float64`, which finds a wrong epsilon, or `float32`, which costs half the memory.
        tolerance: largest relative L2 error of a stage; the default goes with the dtype.
        seed: of the random images and token ids.
        images: how many images the prompt holds, where the model takes images.
        text_tokens: how many ordinary tokens the prompt holds.

    Returns:
        `stages` (name, error, tolerance and ok of each, in the order of the spec), `ok`,
        `first_divergence` (a name or None), `dtype` and `versions`.

    Raises:
        SpecError: if transformers is missing or does not know the checkpoint.
        ValueError: if the dtype is neither of the two.
    """
    if dtype not in TOLERANCES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(TOLERANCES)}")
    actual, expected, mask = _run_both(compiled, checkpoint, dtype, seed, images, text_tokens)
    rows = compare(actual, expected, tolerance or TOLERANCES[dtype], mask)
    return {
        "stages": rows,
        "ok": all(row["ok"] for row in rows),
        "first_divergence": next((row["name"] for row in rows if not row["ok"]), None),
        "dtype": dtype,
        "versions": _versions(),
    }


def _run_both(
    compiled: Any, checkpoint: str | Path, dtype: str, seed: int, images: int, text_tokens: int
) -> tuple[dict, dict, Any]:
    """Return the stages of the emitted module, those of the reference, and the padding mask."""
    import torch

    wanted = getattr(torch, dtype)
    manifest = read_manifest(Path(compiled.path))
    stages = dict(manifest.get("reference", {}))
    reference = load_reference(checkpoint)
    _check_stages(reference, stages)
    ours = compiled.load().Model.from_pretrained(checkpoint, dtype=wanted).eval()
    padded = "attention_mask" in inspect.signature(ours.forward).parameters
    inputs = sample_inputs(manifest, ours.config, reference, seed, images, text_tokens, padded)
    expected = run_reference(reference, stages, inputs, wanted)
    del reference  # a large model and its double need not share the memory with ours
    actual = run_emitted(ours, stages, inputs, wanted)
    return actual, expected, inputs.get("attention_mask")


def _check_stages(reference: Any, stages: Mapping[str, str]) -> None:
    modules = dict(reference.named_modules())
    problems = Diagnostics()
    for name, path in stages.items():
        if path not in modules:
            where = f"`{path}`, which stands for the stage `{name}`"
            near = suggest(path, modules)
            mend = f"did you mean `{near}`?" if near else "correct `reference:` in the spec"
            problems.error("VS672", f"the reference has no module {where}", help=mend)
    problems.raise_if_errors()


def load_reference(checkpoint: str | Path, **options: Any) -> Any:
    """Load the transformers model that a checkpoint's own config.json names, in float32.

    Args:
        checkpoint: the directory.
        options: passed on to `from_pretrained`; attention is `eager` unless they say otherwise.

    Raises:
        SpecError: if transformers is not installed or does not know the model type.
    """
    try:
        import transformers
    except ImportError:
        raise _problem(
            "VS670",
            "the reference implementation is not installed: no module named `transformers`",
            "install the version that the spec was checked with: pip install transformers==5.23.0",
        ) from None
    import torch

    local = {"trust_remote_code": False, "local_files_only": True}
    options = {"dtype": torch.float32, "attn_implementation": "eager", **local, **options}
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint, **local)
    except (OSError, ValueError, KeyError) as error:
        raise _unknown(checkpoint, transformers.__version__) from error
    # Several classes may be of one model type; the checkpoint says which of them it is for.
    for name in config.architectures or ():
        cls: Any = getattr(transformers, name, None)
        if _is_model_of(cls, config):
            return _with_plain_experts(cls.from_pretrained(checkpoint, **options).eval())
    for name in AUTO_CLASSES:
        auto = getattr(transformers, name, None)
        if auto is not None and type(config) in auto._model_mapping:
            return _with_plain_experts(auto.from_pretrained(checkpoint, **options).eval())
    raise _unknown(checkpoint, transformers.__version__)


def _is_model_of(cls: Any, config: Any) -> bool:
    """Whether a name in a checkpoint led to a model class that is for its own kind of config."""
    from transformers import PreTrainedModel

    is_model = isinstance(cls, type) and issubclass(cls, PreTrainedModel)
    return is_model and cls.config_class is type(config)


def _with_plain_experts(model: Any) -> Any:
    """The model with experts that take float64, if it has any."""
    if hasattr(model, "set_experts_implementation"):
        with contextlib.suppress(ValueError):  # the model has no experts
            model.set_experts_implementation("eager")
    return model


def _unknown(checkpoint: str | Path, version: str) -> SpecError:
    try:
        config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return _problem(
            "VS671",
            f"`{checkpoint}` has no config.json that names a model type",
            "give a directory in the public layout: config.json beside the safetensors",
        )
    return _problem(
        "VS671",
        f"transformers {version} has no model for the type `{kind}` of `{checkpoint}`",
        "verify with a version of transformers that knows it, or against another implementation",
    )


def _problem(code: str, message: str, mend: str) -> SpecError:
    problems = Diagnostics()
    problems.error(code, message, help=mend)
    return SpecError(problems)


def sample_inputs(
    manifest: Mapping[str, Any],
    config: Any,
    reference: Any,
    seed: int,
    images: int,
    text_tokens: int,
    padded: bool = True,
) -> dict[str, Any]:
    """Make random inputs: two rows of text, the shorter one padded on the left, around images.

    Args:
        manifest: the emitted package's; it declares the inputs and their shapes.
        config: of the emitted model; its sizes give the shapes their values.
        reference: the public model; it says how many tokens an image becomes.
        seed: of every draw.
        images: how many images, of which the second row has the last; 0 for a prompt of text.
        text_tokens: how many tokens of text the first row holds.
        padded: whether the second row is shorter, and a mask says so.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    declared: Mapping[str, Any] = manifest["inputs"]
    pixels = {
        name: _image(image_shape(entry["shape"], config, images), generator)
        for name, entry in declared.items()
        if entry["kind"] == "image" and images
    }
    blocks: list[list[int]] = []
    if not any(entry["kind"] == "text" for entry in declared.values()):
        return pixels
    placeholder = getattr(reference.config, "image_token_id", None)
    if pixels and placeholder is not None:
        with torch.no_grad():
            features = reference.get_image_features(**pixels).pooler_output
        blocks = [[placeholder] * len(feature) for feature in features]
    prompts = _prompts(reference, blocks, text_tokens, generator, padded)
    return {**prompts, **pixels}


def image_shape(shape: Iterable[Any], config: Any, images: int) -> list[int]:
    """Give a declared shape its values: names are sizes of the config, other names count images.

    A height and a width of any size are a few patches.
    """
    patch = next((part.patch_size for part in vars(config).values() if _has_patches(part)), 16)
    free = {"height": 4 * patch, "width": 3 * patch}
    values = []
    for size in shape:
        found: Any = config
        for part in str(size).split("."):
            found = getattr(found, part, None)
        other = free.get(str(size), images)
        values.append(size if isinstance(size, int) else other if found is None else int(found))
    return values


def _has_patches(part: Any) -> bool:
    return isinstance(getattr(part, "patch_size", None), int)


def _image(shape: list[int], generator: Any) -> Any:
    """Draw images with large forms and fine grain, normalised as processors do."""
    import torch
    from torch.nn.functional import interpolate

    forms = torch.randn(math.prod(shape[:-3]), shape[-3], 4, 4, generator=generator)
    forms = interpolate(forms, size=shape[-2:], mode="bicubic", align_corners=False)
    return (forms + 0.3 * torch.randn(forms.shape, generator=generator)).reshape(shape)


def _prompts(
    reference: Any, blocks: list[list[int]], count: int, generator: Any, padded: bool
) -> dict[str, Any]:
    """Two rows of text around blocks of placeholders, and the mask of the padding.

    Text of its own ends with the end token, which encoders look for.
    """
    import torch

    settings = reference.config.get_text_config()
    special = {value for key, value in vars(reference.config).items() if key.endswith("_token_id")}
    special |= {settings.eos_token_id} if isinstance(settings.eos_token_id, int) else set()
    special |= {token for block in blocks for token in block}
    words = torch.tensor([i for i in range(settings.vocab_size) if i not in special])

    def text(length: int) -> list[int]:
        return words[torch.randint(len(words), (length,), generator=generator)].tolist()

    rows = [text(2), text(2)]
    for index, block in enumerate(blocks):
        rows[len(blocks) > 1 and index == len(blocks) - 1] += block + text(2)
    room = getattr(settings, "max_position_embeddings", None) or count
    count = min(count, max(room - max(map(len, rows)), 0)) if not blocks else count
    lengths = (count, count // 2 if padded else count)
    rows = [row + text(length) for row, length in zip(rows, lengths, strict=True)]
    if not blocks and isinstance(settings.eos_token_id, int):
        rows = [[*row[:-1], settings.eos_token_id] for row in rows]
    width = max(map(len, rows))
    ids = [[int(words[0])] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    masks = {"attention_mask": torch.tensor(mask)} if padded else {}
    return {"input_ids": torch.tensor(ids), **masks}


@contextlib.contextmanager
def float64_math() -> Iterator[None]:
    """Let code that upcasts "to float32" upcast to float64, so that a double model stays double.

    The reference implementations compute norms, softmax and positions in float32 whatever the
    model's dtype is. Not for loading a checkpoint: files of float32 would be read as float64.
    """
    import torch

    module: Any = torch
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    module.float32 = module.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        module.float32, module.float, torch.Tensor.float = saved[:3]
        torch.set_default_dtype(saved[3])


def widen(model: Any) -> Any:
    """Copy a reference model to float64; run the copy under `float64_math`.

    Rotary frequencies keep the values that were computed in float32 at construction: these are
    what the published checkpoints were trained and are run with.
    """
    double = copy.deepcopy(model).double()
    for module in double.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.double())
    return double


def cast(inputs: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Cast the floating-point tensors among the inputs."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


def run_reference(model: Any, stages: Mapping[str, str], inputs: dict, dtype: Any) -> dict:
    """Run the reference; give each stage's first tensor, under the spec's name, and `logits`."""
    import torch

    double = dtype == torch.float64
    with float64_math() if double else contextlib.nullcontext(), torch.no_grad():
        model = widen(model) if double else model
        with capture(model, stages) as seen:
            output = model(**cast(inputs, dtype))
    return {**seen, **_final(output)}


def run_emitted(model: Any, stages: Iterable[str], inputs: dict, dtype: Any) -> dict:
    """Run the emitted module; give each stage's first tensor and `logits`."""
    import torch

    with torch.no_grad(), capture(model, {name: name for name in stages}) as seen:
        output = model(**cast(inputs, dtype))
    return {**seen, **_final(output)}


def _final(output: Any) -> dict[str, Any]:
    logits = getattr(output, "logits", None)
    tensor = first_tensor(output) if logits is None else logits
    return {} if tensor is None else {"logits": tensor}


@contextlib.contextmanager
def capture(model: Any, stages: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Record the first floating-point tensor that each named submodule returns.

    Args:
        model: the module to watch.
        stages: stage name to module path; a path that ends at a list stands for its members.

    Yields:
        Stage name to tensor, in the order of `stages`; None where the stage did not run.
    """
    seen: dict[str, Any] = {}
    hooks = []

    def watch(name: str, module: Any) -> None:
        def hook(_module: Any, _arguments: Any, output: Any) -> None:
            if seen[name] is None:
                tensor = first_tensor(output)
                seen[name] = None if tensor is None else tensor.detach()

        seen[name] = None
        hooks.append(module.register_forward_hook(hook))

    for name, module in expanded(model, stages).items():
        watch(name, module)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def expanded(model: Any, stages: Mapping[str, str]) -> dict[str, Any]:
    """Resolve stages to submodules; lists become one stage for each member."""
    import torch

    found: dict[str, Any] = {}
    for name, path in stages.items():
        module = model.get_submodule(path)
        if isinstance(module, torch.nn.ModuleList):
            found |= {f"{name}.{index}": member for index, member in enumerate(module)}
        else:
            found[name] = module
    return found


def first_tensor(value: Any) -> Any:
    """Find the first floating-point tensor in a nested output; None where there is none."""
    import torch

    if torch.is_tensor(value):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        members: Iterable[Any] = value.values()
    elif isinstance(value, list | tuple):
        members = value
    elif hasattr(value, "__dict__"):
        members = vars(value).values()
    else:
        return None
    return next((t for t in map(first_tensor, members) if t is not None), None)


def compare(
    actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float, mask: Any = None
) -> list[dict[str, Any]]:
    """Compare two runs stage by stage.

    A stage that the emitted module leaves out, because nothing reads its result, has no error;
    one whose size differs has an infinite one.

    Args:
        actual: stage name to tensor of the emitted module.
        expected: the same of the reference.
        tolerance: largest relative L2 error.
        mask: 1 at the tokens that count [B, T]; None if all do.

    Returns:
        One row for each stage: name, error, tolerance, ok.
    """
    rows = []
    for name, want in expected.items():
        got = actual.get(name)
        error = None if got is None or want is None else relative_error(got, want, mask)
        good = error <= tolerance if error is not None else name != "logits"
        rows.append({"name": name, "error": error, "tolerance": tolerance, "ok": good})
    return rows


def relative_error(actual: Any, expected: Any, mask: Any = None) -> float:
    """Relative L2 distance, without forbidden logits and without what stands under padding."""
    if actual.numel() != expected.numel():
        return math.inf
    a, b = actual.reshape(expected.shape).double(), expected.double()
    if mask is not None and b.shape[: mask.ndim] == mask.shape:
        a, b = a[mask.bool()], b[mask.bool()]
    keep = ~((a.abs() > _FORBIDDEN) & (b.abs() > _FORBIDDEN))
    difference, scale = (a - b)[keep].norm(), b[keep].norm()
    error = float(difference / scale) if scale else float(difference)
    return error if math.isfinite(error) else math.inf


def _versions() -> dict[str, str]:
    import torch
    import transformers

    from vlmspec import __version__

    return {
        "vlmspec": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def render_verification(result: Mapping[str, Any]) -> str:
    """Draw the result of `verify` as a table for terminals."""
    rows = result["stages"]
    width = max([len("stage"), *(len(row["name"]) for row in rows)])
    lines = [f"{'stage':{width}}  {'error':>9}  {'at most':>9}"]
    for row in rows:
        error = "not run" if row["error"] is None else f"{row['error']:.1e}"
        verdict = "" if row["ok"] else "  DIFFERS"
        lines.append(f"{row['name']:{width}}  {error:>9}  {row['tolerance']:>9.0e}{verdict}")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"{result['dtype']}, relative L2 error; {versions}"]
    if result["ok"]:
        lines.append("Every stage agrees with the reference.")
    else:
        lines.append(f"The first stage that differs is `{result['first_divergence']}`.")
    return "\n".join(lines)
