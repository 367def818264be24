import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import vlmspec
from vlmspec.cli import COMMANDS, cli, run
from vlmspec.diagnostics.model import Diagnostics, Source, SpecError
from vlmspec.publish import NotOurs

SHOWN = {
    "name": "pair",
    "title": "An encoder and a decoder",
    "total_parameters": 7_063_427_072,
    "components": [
        {
            "name": "vision",
            "kind": "encoder",
            "op": "vit",
            "parameters": 303_507_456,
            "input": "images, 3, 336, 336",
            "output": "images, 576, 1024",
            "spec": "pair.yaml:4",
            "children": [
                {"name": "embed", "op": "patch_embed", "parameters": 602_112, "children": []},
                {"name": "layers", "op": "24 x block", "parameters": 302_309_376, "children": []},
            ],
        },
        {"name": "text", "kind": "decoder", "op": "llama", "parameters": 6_738_415_616},
    ],
    "visual_tokens": {"pixel_values": 576},
    "sizes": {"vision.hidden_size": 1024, "vision.num_layers": 24, "text.hidden_size": 4096},
}


def fault(severity: str = "error") -> Diagnostics:
    found = Diagnostics()
    source = Source("my.yaml", "name: x\nhiden: 4\n")
    report = found.error if severity == "error" else found.warning
    report("VS101", "unknown key `hiden`", source.span(8, 13), help="write `hidden`")
    return found


class FakeApi(types.ModuleType):
    """Stands for `vlmspec.api`: keeps the calls, returns or raises what a test sets."""

    def __init__(self) -> None:
        super().__init__("vlmspec.api")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.outcome: Any = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            if isinstance(self.outcome, BaseException):
                raise self.outcome
            return self.outcome

        return call


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setitem(sys.modules, "vlmspec.api", fake)
    monkeypatch.setattr(vlmspec, "api", fake, raising=False)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "VLMSPEC_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    return fake


def compiled(**facts: Any) -> types.SimpleNamespace:
    files = {"modeling.py": 512, "manifest.json": 40}
    standard = {"name": "pair", "path": Path.cwd() / "pair", "files": files, "changed": True}
    return types.SimpleNamespace(**{**standard, "program": None, "warnings": (), **facts})


@pytest.mark.parametrize("name", COMMANDS)
def test_help_starts_with_the_summary_and_ends_with_two_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "-h"]) == 0
    text = capsys.readouterr().out
    assert text.split("\n\n")[1].strip() == COMMANDS[name][1]
    examples = text[text.index("Examples:\n") :].splitlines()[1:]
    assert len(examples) == 2
    assert all(line.strip().startswith(f"vlmspec {name}") for line in examples)
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.name == name


def test_compile_passes_all_options(api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    api.outcome = compiled()
    arguments = ["--config", str(tmp_path / "config.json"), "--checkpoint", str(tmp_path)]
    arguments += ["--variant", "7b", "--set", "a.b=1", "--set", "c.d.e=x=y", "--dump-ir", "-"]
    arguments += ["--target", "cuda:sm90", "--dtype", "bfloat16", "-o", "out", "--force"]
    assert run(["compile", "pair", *arguments]) == 0
    expected = {
        "checkpoint": tmp_path,
        "config": tmp_path / "config.json",
        "variant": "7b",
        "set": ("a.b=1", "c.d.e=x=y"),
        "target": "cuda:sm90",
        "dtype": "bfloat16",
        "output": Path("out"),
        "dump_ir": "-",
        "force": True,
    }
    assert api.calls == [("compile", ("pair",), expected)]


def test_compile_prints_what_it_wrote(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.outcome = compiled()
    assert run(["compile", "pair"]) == 0
    expected = "wrote pair/: 2 files, 552 lines\n  modeling.py       512\n  manifest.json      40\n"
    assert capsys.readouterr() == (expected, "")
    api.outcome = compiled(changed=False, warnings=tuple(fault("warning")))
    assert run(["compile", "pair"]) == 0
    out, err = capsys.readouterr()
    assert out == "pair/ is up to date\n"
    assert "warning[VS101]" in err
    assert run(["compile", "pair", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_compile_json_is_one_document(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.outcome = compiled(warnings=tuple(fault("warning")))
    assert run(["compile", "pair", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document["schema_version"] == 1
    assert document["files"] == {"modeling.py": 512, "manifest.json": 40}
    assert [warning["code"] for warning in document["warnings"]] == ["VS101"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotOurs(17, "not written by vlmspec", "work"), "VS501"), (OSError(28, "full", "x"), "VS502")],
)
def test_compile_reports_a_failure_to_write(
    api: FakeApi, capsys: pytest.CaptureFixture[str], error: OSError, code: str
) -> None:
    api.outcome = error
    assert run(["compile", "pair"]) == 1
    assert f"error[{code}]: {error.filename}: {error.strerror}" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["full", "concise"])
def test_faults_are_written_to_stderr(
    api: FakeApi, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    api.outcome = SpecError(fault())
    assert run(["check", "my.yaml", "--format", format]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "my.yaml:2:1" in err and "error[VS101]" in err


def test_faults_are_json_on_stdout(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.outcome = SpecError(fault())
    assert run(["show", "my.yaml", "--json"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    (entry,) = json.loads(out)["errors"]
    assert (entry["code"], entry["file"], entry["line"], entry["column"]) == (
        "VS101",
        "my.yaml",
        2,
        1,
    )


@pytest.mark.parametrize("format", ["json", "sarif"])
def test_check_without_faults_is_a_document(
    api: FakeApi, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    api.outcome = ()
    assert run(["check", "my.yaml", "--format", format]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_check_without_faults_says_so(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.outcome = ()
    assert run(["check", "my.yaml"]) == 0
    assert capsys.readouterr().out == "my.yaml: no faults\n"


def test_show_fits_80_columns(
    api: FakeApi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.outcome = SHOWN
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["show", "pair"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for words in ("7.06B", "vision", "embed", "302M", "images, 576, 1024", "hidden_size 4096"):
        assert words in out


def test_show_cuts_nothing_in_a_pipe(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.outcome = {"name": "x", "components": [{"name": "a" * 90, "op": "b" * 90}]}
    assert run(["show", "pair"]) == 0
    assert "a" * 90 + "  " + "b" * 90 in capsys.readouterr().out


def test_show_json_is_the_data(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.outcome = SHOWN
    assert run(["show", "pair", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, **SHOWN}


def test_list_is_a_table(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "pair", "title": "A", "paper": None, "variants": ["s", "m"], "lines": 31}
    api.outcome = [row]
    assert run(["list"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["NAME", "TITLE", "VARIANTS", "LINES"],
        ["pair", "A", "s,", "m", "31"],
    ]


def test_list_of_parts_is_a_table(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.outcome = [{"name": "eye", "kind": "encoder", "title": "An eye", "source": "x.Eye"}]
    assert run(["list", "--parts"]) == 0
    assert api.calls == [("list_parts", (), {})]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["NAME", "KIND", "TITLE", "SOURCE"],
        ["eye", "encoder", "An", "eye", "x.Eye"],
    ]
    assert run(["list", "--parts", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"] == api.outcome


@pytest.mark.parametrize(
    ("arguments", "format"),
    [
        ([], "svg"),
        (["--format", "dot"], "dot"),
        (["-o", "x.mmd"], "mermaid"),
        (["-o", "x.mmd", "--format", "json"], "json"),
    ],
)
def test_graph_format_is_given_or_follows_the_file(
    api: FakeApi,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    format: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    api.outcome = "picture\n"
    assert run(["graph", "pair", *arguments]) == 0
    name, given, _ = api.calls[0]
    assert (name, given) == ("draw", ("pair", format))
    if "-o" in arguments:
        assert [path.name for path in tmp_path.iterdir()] == ["x.mmd"]
        assert (tmp_path / "x.mmd").read_text() == "picture\n"
        assert capsys.readouterr().out == ""
    else:
        assert capsys.readouterr().out == "picture\n"


def test_graph_that_cannot_be_written_is_a_fault(
    api: FakeApi, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    api.outcome = "picture"
    assert run(["graph", "pair", "-o", str(tmp_path / "none" / "x.svg")]) == 1
    assert "error[VS502]" in capsys.readouterr().err


def test_verify_fails_where_a_stage_differs(
    api: FakeApi, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stage = {"name": "vision", "error": 3e-12, "tolerance": 1e-10, "ok": True}
    api.outcome = {"stages": [stage], "ok": True}
    assert run(["verify", "pair", str(tmp_path)]) == 0
    options = {"dtype": "float64", "tolerance": None, "seed": 0, "images": 2}
    assert api.calls == [("verify", ("pair", tmp_path), options)]
    assert "3.0e-12" in capsys.readouterr().out
    api.outcome = {"stages": [{**stage, "ok": False}], "ok": False}
    assert run(["verify", "pair", str(tmp_path)]) == 1
    assert "differ" in capsys.readouterr().out


def test_explain_takes_a_code_or_a_spec(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "vs101"]) == 0
    assert "VS101: unknown key" in capsys.readouterr().out
    assert run(["explain", "VS1011"]) == 2
    assert "did you mean VS1" in capsys.readouterr().err
    api.outcome = [{"op": "vision.layers", "kernel": "attention", "refused": ["a", "b"]}]
    assert run(["explain", "pair", "--target", "cuda:sm90"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines][-3:] == ["vision.layers  attention", "- a", "- b"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cmpile", "x"], "Did you mean 'compile'?"),
        (["compile"], "Missing argument 'SPEC'"),
        (["compile", "x", "--set", "a=1"], "node.attribute=value"),
        (["compile", "x", "--target", "tpu"], "'tpu' is not one of"),
        (["check", "x", "--config", "none.json"], "does not exist"),
        (["check", "x", "--nope"], "No such option"),
    ],
)
def test_wrong_usage_exits_with_2(
    api: FakeApi, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert api.calls == []


def test_interruption_exits_with_130(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.outcome = KeyboardInterrupt()
    assert run(["check", "pair"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_bug_is_reported_without_a_traceback(
    api: FakeApi,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    api.outcome = ZeroDivisionError("secret detail\nsecond line")
    assert run(["check", "pair", "--json"]) == 70
    out, err = capsys.readouterr()
    assert "Traceback" not in err and "please report" in err
    (entry,) = json.loads(out)["errors"]
    (trace,) = tmp_path.iterdir()
    assert entry["trace"] == str(trace)
    assert "Traceback" in trace.read_text()
    monkeypatch.setenv("VLMSPEC_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run(["check", "pair"])


def test_missing_torch_is_named(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.outcome = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert run(["check", "pair"]) == 1
    assert "pip install torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "arguments", "colored"),
    [
        ({}, [], False),
        ({"FORCE_COLOR": "1"}, [], True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, [], False),
        ({"NO_COLOR": "1"}, ["--color", "always"], True),
        ({"FORCE_COLOR": "1"}, ["--color", "never"], False),
    ],
)
def test_colours_follow_terminal_environment_and_option(
    api: FakeApi,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    arguments: list[str],
    colored: bool,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    api.outcome = SHOWN
    assert run(["show", "pair", *arguments]) == 0
    assert ("\x1b[" in capsys.readouterr().out) is colored
