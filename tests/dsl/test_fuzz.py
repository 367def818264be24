"""Specs that nobody would write compile to harmless code, or are refused with a place.

`VLMSPEC_FUZZ=20000 pytest tests/dsl/test_fuzz.py` runs more examples than the default of 600.
"""

import ast
import os
import random
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmspec import api
from vlmspec.diagnostics.model import SpecError
from vlmspec.diagnostics.render import render
from vlmspec.dsl.loader import bundled_folder, bundled_specs

EXAMPLES = int(os.environ.get("VLMSPEC_FUZZ", "600"))
CHUNKS = 4

SAMPLE = Path(__file__).parents[1] / "diagnostics" / "specs"
SPEC = (Path(__file__).parent / "data" / "sample.yaml").read_text(encoding="utf-8")
PARTS = {name: (SAMPLE / "parts" / f"{name}.yaml").read_text() for name in ("tower", "reader")}

CANARY = "canary_7f3a"
HOSTILE = [
    "class",
    "None",
    "__class__",
    "__import__",
    "forward",
    "self",
    "Config",
    "training",
    "torch",
    "'",
    '"',
    '"""',
    "'''",
    "\\",
    '\\"""',
    f'""" + {CANARY}() + """',
    f"'; {CANARY}(); '",
    f'", {CANARY}(), "',
    f"\n{CANARY}()\n",
    f"\\n{CANARY}()",
    f"{{{CANARY}()}}",
    f"{{0.__class__.{CANARY}}}",
    "{i}",
    "{ours}.{theirs}",
    "%s%n",
    f"${{{CANARY}}}",
    f"$({CANARY})",
    f"# {CANARY}\r{CANARY}()",
    f"__import__('os').system('{CANARY}')",
    "\ufb01eld",
    "\uff41",
    "a\u202eb",
    "a\u200bb",
    "a\x00b",
    "\u2028",
    "../../etc/passwd",
    "/etc/passwd",
    "~",
    "C:\\x",
    "a" * 100_000,
    "9" * 400,
    "9" * 30,
    "-1",
    "1e999",
    "0x10",
    "9**9**9",
    "1 // 0",
    "hidden_size // (hidden_size - hidden_size)",
    "(" * 500,
    "a." * 300,
    "$act",
    "$$",
    "text.hidden_size",
    "tokens",
    "~",
    "[]",
    "{}",
    "[1, [2, [3]]]",
    "{config: a}",
    "{config: a, default: 3}",
    "{config: [a, b], map: {x: y}}",
    "true",
    "null",
    "1.5",
    "0",
    "-3",
    "1000000000000",
    "2147483648",
    "&a [*a]",
    "!!python/object/apply:os.system [id]",
    "| ",
    "a | b",
]


def outcome(folder: Path, spec: str = "sample.yaml", **options: Any) -> SpecError | None:
    """Check a spec; gives how it was refused, if it was."""
    try:
        api.check(folder / spec, **options)
    except SpecError as error:
        for diagnostic in error.diagnostics:
            labels = [diagnostic.primary, *diagnostic.secondary]
            for label in filter(None, labels):
                assert 0 <= label.span.start <= label.span.end <= len(label.span.source.text)
            assert diagnostic.message.isprintable() or diagnostic.message
            assert len(diagnostic.message) < 2000
        assert any(diagnostic.primary for diagnostic in error.diagnostics) or options
        text = render(error.diagnostics)
        assert text.startswith(("error[", "warning["))
        return error
    return None


def mutated(text: str, rng: random.Random) -> str:
    """The text with a few lines moved, or a few values replaced."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(8):
            case 0:
                del lines[at]
            case 1:
                lines.insert(other, lines[at])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = lines[at][2:] if rng.random() < 0.5 else f"  {lines[at]}"
            case 4:
                cut = rng.randrange(len(lines[at]) + 1)
                lines[at] = (
                    lines[at][:cut] + rng.choice("'\"{}[]:,#&*!|>-?@`\t \x07") + lines[at][cut:]
                )
            case _:
                lines[at] = _with_value(lines[at], rng)
        lines = lines or [""]
    return "\n".join(lines)


def _with_value(line: str, rng: random.Random) -> str:
    value = rng.choice(HOSTILE)
    if rng.random() < 0.4:
        value = yaml.safe_dump(value, width=10**9).split("\n...")[0].strip()
    words = [
        word for word in line.replace(",", " ").replace("}", " ").split() if word.strip("{[:-")
    ]
    if rng.random() < 0.7 and words:
        return line.replace(rng.choice(words).strip("{[]:"), value, 1)
    return line.partition(":")[0] + ": " + value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    (tmp_path / "sample.yaml").write_text(SPEC, encoding="utf-8")
    for name, text in PARTS.items():
        (tmp_path / "parts" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_mutations_are_refused_with_a_place_or_compile(folder: Path, chunk: int) -> None:
    shipped = bundled_folder()
    for number in range(EXAMPLES // CHUNKS):
        rng = random.Random(f"{chunk} {number}")
        names = ["sample.yaml", "parts/tower.yaml", "parts/reader.yaml"]
        texts = dict(zip(names, (SPEC, *PARTS.values()), strict=True))
        if rng.random() < 0.25:
            spec = rng.choice(sorted(shipped.glob("*.yaml")))
            texts = {"sample.yaml": spec.read_text(encoding="utf-8")}
            texts |= {
                f"parts/{path.name}": path.read_text(encoding="utf-8")
                for path in shipped.glob("parts/*.yaml")
                if path.stem in texts["sample.yaml"]
            }
        name = rng.choice(sorted(texts))
        for other, text in texts.items():
            (folder / other).write_text(text, encoding="utf-8")
        changed = mutated(texts[name], rng)
        (folder / name).write_bytes(changed.encode("utf-8", "surrogatepass"))
        try:
            if outcome(folder) is None and rng.random() < 0.3:
                assert_harmless(folder)
        except Exception as error:
            raise AssertionError(f"chunk {chunk}, example {number}, {name}:\n{changed}") from error


def assert_harmless(folder: Path, **options: Any) -> None:
    """Compile, and look at the emitted code: it parses, imports and calls nothing unexpected."""
    compiled = api.compile(folder / "sample.yaml", output=folder / "package", **options)
    for path in compiled.path.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", "")]
            assert CANARY not in names and "__import__" not in names
        assert set(imports(tree)) <= usual_imports(), path


@cache
def usual_imports() -> frozenset[str]:
    """What the packages of the shipped specs import."""
    found: set[str] = set()
    for spec in bundled_specs():
        with tempfile.TemporaryDirectory() as folder:
            compiled = api.compile(spec, output=Path(folder) / "package")
            for path in compiled.path.glob("*.py"):
                found |= set(imports(ast.parse(path.read_text(encoding="utf-8"))))
    return frozenset(found)


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{'.' * node.level}{node.module or ''}"


def positions(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a document has a text, keys included."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key, "key")
            yield from positions(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from positions(value, (*path, index))
    else:
        yield path


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    if path[1:] == ("key",) and isinstance(node, dict):
        return {value if key == path[0] else key: item for key, item in node.items()}
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = replaced(node[path[0]], path[1:], value)
    return copy


FILES = {"sample.yaml": SPEC} | {f"parts/{name}.yaml": text for name, text in PARTS.items()}
PLACES = [(name, path) for name, text in FILES.items() for path in positions(yaml.safe_load(text))]


@pytest.mark.parametrize("name", FILES)
def test_hostile_texts_reach_emitted_code_as_literals_only(folder: Path, name: str) -> None:
    places = [path for file, path in PLACES if file == name]
    texts = [text for text in HOSTILE if isinstance(text, str)]
    tried = EXAMPLES // 6
    rng = random.Random(name)
    for _ in range(tried):
        path, text = rng.choice(places), rng.choice(texts)
        data = replaced(yaml.safe_load(FILES[name]), path, text)
        dumped = yaml.dump(data, sort_keys=False, allow_unicode=True, width=10**9)
        (folder / name).write_text(dumped, encoding="utf-8")
        try:
            if outcome(folder) is None:
                assert_harmless(folder)
        except Exception as error:
            raise AssertionError(f"{text!r} at {path} of {name}") from error


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_requests_are_refused_or_harmless(folder: Path, text: str) -> None:
    for setting in (f"vision.num_heads={text}", f"vision.act={text}", f"{text}=3"):
        if outcome(folder, set=[setting]) is None:
            assert_harmless(folder, set=[setting])
    if outcome(folder, variant=text) is None:
        assert_harmless(folder, variant=text)


@pytest.mark.parametrize("name", ['a"""b.yaml', "a\\.yaml", "a'b.yaml", "a\nb.yaml", "a #{x}.yaml"])
def test_names_of_files_are_harmless(folder: Path, name: str) -> None:
    (folder / "sample.yaml").rename(folder / name)
    compiled = api.compile(folder / name, output=folder / "package")
    for path in compiled.path.glob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"))


STEPS = [
    "layer_norm",
    "layer_norm: 1e-6",
    "rms_norm",
    "act: gelu",
    "scale: 0.5",
    "linear: hidden_size",
    "linear: 32",
    "linear: {out: 2 * hidden_size, bias: false}",
    "mlp: {widths: [96, hidden_size]}",
    "glu: 64",
    "attention: {num_heads: num_heads}",
    "attention: {num_heads: 4, head_dim: 8}",
    "drop_tokens: 1",
    "prepend_token",
]


def random_body(rng: random.Random, depth: int = 0) -> list[str]:
    """Lines of a body of valid steps, most of which fit each other."""
    lines = []
    for number in range(rng.randint(1, 4)):
        kind = rng.random()
        name = f"s{depth}_{number}"
        if kind < 0.2 and depth < 3:
            lines += ["- residual:", *(f"    {line}" for line in random_body(rng, depth + 1))]
        elif kind < 0.35 and depth < 2:
            lines += [f"- layers: {rng.randint(1, 3)}", f"  name: {name}", f"  weights: {name}"]
            lines += ["  body:", *(f"    {line}" for line in random_body(rng, depth + 1))]
        else:
            step = rng.choice(STEPS)
            lines.append(f"- {step}" if ":" in step else f"- {step}:")
            lines.append(f"  name: {name}")
            if not step.startswith(("mlp", "act", "scale", "drop")):
                lines.append(f"  weights: {name}")
            elif step.startswith("mlp"):
                lines.append(f"  weights: [{name}.a, {name}.b]")
    return lines


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_bodies_compile_or_are_refused(folder: Path, chunk: int) -> None:
    head = (
        PARTS["tower"]
        .partition("body:\n")[0]
        .replace("image_size // patch_size) + 1", "image_size // patch_size)")
    )
    compiled = 0
    for number in range(EXAMPLES // CHUNKS // 4):
        rng = random.Random(f"body {chunk} {number}")
        body = ["- patch_embed: {width: hidden_size, patch_size: patch_size}", "  weights: patches"]
        body += random_body(rng)
        text = head + "body:\n" + "".join(f"  {line}\n" for line in body)
        (folder / "parts" / "tower.yaml").write_text(text, encoding="utf-8")
        spec = SPEC.replace("    take: {layer: -2, drop: cls}\n", "").replace(
            "  small: {vision: {num_layers: 3}}\n", "  small: {}\n"
        )
        (folder / "sample.yaml").write_text(spec, encoding="utf-8")
        try:
            if outcome(folder) is None:
                compiled += 1
                if compiled % 4 == 1:
                    assert_harmless(folder)
        except Exception as error:
            raise AssertionError(text) from error
    assert compiled, "no random body compiled"
