from pathlib import Path

import pytest

from vlmspec import api
from vlmspec.compiler.passes.base import Context
from vlmspec.compiler.pipeline import run_passes
from vlmspec.report.fusion import NO_KERNEL, families

PAIR = Path(__file__).parent / "data" / "pair.yaml"


def rows(graph: str, **options) -> list[dict]:
    return [row for row in api.explain(PAIR, **options) if row["graph"] == graph]


def test_every_node_has_a_row() -> None:
    context = Context()
    program = run_passes(api.build(PAIR).program, context)
    found = api.explain(PAIR)
    for name, graph in program.graphs.items():
        ops = [row["op"] for row in found if row["graph"] == name and row["kernel"] != "none"]
        assert ops == [node.op for node in graph.nodes]
    dropped = [row for row in found if row["kernel"] == "none"]
    assert [row["op"] for row in dropped] == ["layer_norm", "repeat"]


def test_every_finding_is_told_once() -> None:
    context = Context()
    run_passes(api.build(PAIR).program, context)
    found = api.explain(PAIR)
    told = sum(len(row["fused"]) for row in found)
    told += sum(row["kernel"] == "none" for row in found)
    assert told == sum(not finding.refused for finding in context.findings)
    refused = [text for row in found for text in row["refused"] if "onednn" not in text]
    assert len(refused) == sum(finding.refused for finding in context.findings)


def test_findings_stand_at_the_node_that_they_made() -> None:
    by_op = {row["op"]: row for row in rows("text.attention")}
    assert by_op["attention"]["kernel"] == "attention.rope_causal_attention"
    assert [note.partition(":")[0] for note in by_op["attention"]["fused"]] == [
        "fuse-rope-attention"
    ]
    assert by_op["linear"]["fused"] == []
    (first, *_) = [row for row in rows("text.attention") if row["module"] == "qkv"]
    assert first["fused"] == ["fuse-sibling-linears: with k, v"]
    norms = {row["module"]: row for row in rows("text.block") if row["module"]}
    assert norms["norm2"]["op"] == "add_rms_norm" and norms["norm2"]["fused"]
    assert norms["norm1"]["refused"] and not norms["norm1"]["fused"]


def test_kernels_are_named_by_where_they_come_from() -> None:
    kernels = {row["op"]: row["kernel"] for row in api.explain(PAIR, dtype="float64")}
    assert kernels["linear"] == "nn.Linear"
    assert kernels["splice"] == "splice.splice"
    assert kernels["patch_embed"] == "nn.Conv2d"
    assert kernels["split_heads"] == "Tensor.unflatten"
    assert families()["rope_causal_attention"] == "attention"


def test_a_target_without_kernels_says_so() -> None:
    reasons = {row["op"]: row["reason"] for row in api.explain(PAIR, target="cuda:sm90")}
    assert reasons["splice"] == NO_KERNEL
    assert reasons["call"] is None and reasons["split_heads"] is None
    assert {row["reason"] for row in api.explain(PAIR) if row["op"] == "splice"} == {None}


@pytest.mark.parametrize(("graph", "times"), [("vision.block", 3), ("text.mlp", 2), ("bridge", 1)])
def test_repeated_layers_are_told_once_with_how_often_they_run(graph: str, times: int) -> None:
    assert {row["times"] for row in rows(graph)} == {times}
