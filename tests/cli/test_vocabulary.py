import pytest

from vlmspec.cli import run


def test_ops_lists_and_describes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ops"]) == 0
    assert "attention" in capsys.readouterr().out
    assert run(["ops", "attention"]) == 0
    assert "num_kv_heads" in capsys.readouterr().out
    assert run(["ops", "atention"]) == 2
    assert "did you mean attention?" in capsys.readouterr().err
    assert run(["ops", "attention", "--markdown"]) == 2


def test_explain_all_prints_every_code(capsys: pytest.CaptureFixture[str]) -> None:
    from vlmspec.diagnostics.codes import CODES, codes_page

    assert run(["explain", "--all"]) == 0
    out = capsys.readouterr().out
    assert all(f"{code}: {CODES[code].title}\n" in out for code in CODES)
    assert run(["explain", "--all", "--markdown"]) == 0
    assert capsys.readouterr().out == codes_page()
    assert run(["explain"]) == 2
    assert run(["explain", "VS101", "--all"]) == 2
