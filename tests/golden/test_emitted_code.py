"""Properties of emitted packages: clean, reproducible, free of vlmspec, made without torch."""

import ast
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vlmspec import api
from vlmspec.compiler.pipeline import Context, run_passes
from vlmspec.dsl.loader import bundled_specs

# Compilations whose code differs.
WAYS: dict[str, dict[str, Any]] = {
    **{spec: {"spec": spec} for spec in bundled_specs()},
    "llava-tiny": {"spec": "llava", "variant": "tiny"},
    "llava-tied": {"spec": "llava", "set": {"text.tie_embeddings": True}},
    "llava-biased": {"spec": "llava", "set": {"text.attention_bias": True, "text.mlp_bias": True}},
    "llava-llama3": {"spec": "llava", "set": {"text.rope_type": "llama3"}},
    "llava-relu": {"spec": "llava", "set": {"text.act": "relu2", "vision.act": "gelu_new"}},
}
RULES = ["check", "--isolated", "--select", "E,F,I,B,UP", "--line-length", "100", "--no-cache"]
RUFF = Path(sysconfig.get_path("scripts")) / "ruff"
ALLOWED = frozenset(sys.stdlib_module_names) | {"torch"}
# Read and written by name where a checkpoint is; a model runs without it.
LAZY = frozenset({"safetensors", "huggingface_hub"})


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory):
    """Compile in one of the `WAYS`, once."""
    root = tmp_path_factory.mktemp("packages")

    @cache
    def compiled(way: str) -> Path:
        return api.compile(**WAYS[way], output=root / way.replace("-", "_").replace(".", "_")).path

    return compiled


def python(code: str, *arguments: str, **environment: str) -> str:
    """Run code in a fresh interpreter; give what it prints."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONHASHSEED", "PYTHONPATH")}
    cwd = environment.pop("cwd", None)
    command = [sys.executable, "-P", "-W", "error::SyntaxWarning", "-c", code, *arguments]
    done = subprocess.run(
        command, env=env | environment, cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_emitted_code_is_formatted_and_clean(way: str, package):
    folder = package(way)
    settings = ["--isolated", "--line-length", "100", "--no-cache"]
    found = subprocess.run(
        [RUFF, "format", "--diff", *settings, str(folder)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
    found = subprocess.run([RUFF, *RULES, str(folder)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("way", WAYS)
def test_emitted_code_imports_torch_and_the_standard_library_alone(way: str, package):
    for path in sorted(package(way).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            for name in imported(node):
                allowed = ALLOWED if id(node) in top else ALLOWED | LAZY
                assert name in allowed, f"{path.name}:{node.lineno} imports {name}"


def imported(node: ast.AST) -> list[str]:
    """The packages that a statement imports; its own siblings are none."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [] if node.level == 1 else [(node.module or "..").split(".")[0]]
    return []


@pytest.mark.parametrize("way", WAYS)
def test_emitted_code_is_plain(way: str, package):
    for path in sorted(package(way).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert text.endswith("\n") and not text.endswith("\n\n")
        assert "\t" not in text and "\r" not in text
        for number, line in enumerate(text.split("\n"), 1):
            assert line == line.rstrip(), f"{path.name}:{number} ends with blanks"


def test_emitted_code_runs_where_vlmspec_cannot_be_imported(package):
    code = """
import importlib, sys
from pathlib import Path

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vlmspec", "transformers", "safetensors", "numpy.testing"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Block())
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder.parent))
import torch
package = importlib.import_module(folder.name)
model = package.Model()
config = model.config
tokens = (config.vision.image_size // config.vision.patch_size) ** 2
ids = torch.tensor([[1, *[config.image_token_id] * tokens, 2, 3]])
size = config.vision.image_size
pixels = torch.randn(1, config.vision.num_channels, size, size)
output = model(ids, pixel_values=pixels)
assert output.logits.shape == (1, tokens + 3, config.text.vocab_size)
assert output.logits.isfinite().all()
assert model.generate(ids, pixel_values=pixels, max_new_tokens=2).shape[1] <= tokens + 5
assert not [name for name in sys.modules if name.split(".")[0] == "vlmspec"]
print("ran")
"""
    assert python(code, str(package("llava-tiny"))).strip() == "ran"


COMPILE = """
import hashlib, sys
from pathlib import Path
from vlmspec import api
path = api.compile("llava", output=sys.argv[1]).path
for file in sorted(path.iterdir()):
    print(file.name, hashlib.sha256(file.read_bytes()).hexdigest())
"""


def test_compilation_is_reproducible(package, tmp_path: Path):
    wanted = [
        f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in sorted(package("llava").iterdir())
        if file.is_file()
    ]
    surroundings = [
        {"PYTHONHASHSEED": "0"},
        {"PYTHONHASHSEED": "4242", "cwd": "/"},
        {"PYTHONHASHSEED": "random", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "40", "TZ": "Asia/Tokyo"},
        {"PYTHONOPTIMIZE": "2"},
    ]
    for index, environment in enumerate(surroundings):
        found = python(COMPILE, str(tmp_path / f"llava{index}"), **environment)
        assert found.splitlines() == wanted, environment


def test_compiling_does_not_import_torch(tmp_path: Path):
    code = """
import sys
from vlmspec import api
api.compile("llava", output=sys.argv[1], dump_ir=sys.argv[2])
heavy = ("torch", "numpy", "transformers", "safetensors", "triton", "networkx", "sympy")
print([name for name in heavy if name in sys.modules])
"""
    found = python(code, str(tmp_path / "llava"), str(tmp_path / "ir"))
    assert found.strip() == "[]"


def test_depth_costs_nothing(tmp_path: Path):
    """Layers are never unrolled: neither the program nor the code grows with them."""
    texts, counts, times = [], [], []
    for layers in (2, 2000):
        sizes = {"text.num_layers": layers, "vision.num_layers": layers}
        start = time.perf_counter()
        program = run_passes(api.build("llava", set=sizes).program, Context())
        compiled = api.compile("llava", set=sizes, output=tmp_path / str(layers))
        times.append(time.perf_counter() - start)
        counts.append(sum(len(g.nodes) + len(g.modules) for g in program.graphs.values()))
        text = (compiled.path / "modeling.py").read_text(encoding="utf-8")
        texts.append(re.sub(r"\b(2|2000)\b|sha256 \w+|^To write .*$", "_", text, flags=re.M))
    assert counts[0] == counts[1] < 200
    assert texts[0] == texts[1]
    assert times[1] < 4 * times[0] + 1


@pytest.mark.parametrize("way", WAYS)
def test_no_place_of_this_machine_stands_in_a_package(way: str, package):
    folder = package(way)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert str(folder) not in text and str(Path.home()) + "/" not in text
            assert str(Path(__file__).parents[2]) not in text
