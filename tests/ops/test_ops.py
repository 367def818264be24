"""Every op: the code that it emits gives what its shape rule says, and bad operands are refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from emitting import describe
from op_samples import EXTENTS, FAULTS, SAMPLES, Fault, Sample

from vlmspec.compiler.emit.package import emit_package
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import ConfigKey, Graph, Module, Node, Param, Program, Value
from vlmspec.compiler.ir.text import parse_graphs
from vlmspec.compiler.ir.text_cursor import Cursor
from vlmspec.compiler.ir.text_parser import read_type
from vlmspec.compiler.ir.text_values import read_fields
from vlmspec.compiler.ir.types import StateType, TensorType, Type
from vlmspec.compiler.ir.verify import verify
from vlmspec.compiler.ops import MODULE_KINDS, OPS
from vlmspec.compiler.ops.registry import Operands, ShapeError
from vlmspec.compiler.ops.structure import GraphAttrs
from vlmspec.runtime import import_package

# The graph of a sample's node; the emitter gives a graph inside a component no table of shapes.
NAME = "op.node"


def names(items: list[Any]) -> list[str]:
    """Ids of parametrized tests."""
    return [f"{index}-{item.op}" for index, item in enumerate(items)]


# ------------------------------------------------------------------------------ what samples say


def operand_types(sample: Sample | Fault) -> dict[str, Type]:
    return {r: read_type(Cursor(t.removeprefix("-"), 1)) for r, t in sample.operands.items()}


def attributes(sample: Sample | Fault) -> Any:
    return read_fields(Cursor(sample.attrs, 1), OPS[sample.op].attrs, sample.sizes)


def module_of(sample: Sample | Fault) -> Module | None:
    """The module `m`, with parameters as its kind has them."""
    if not sample.module:
        return None
    text = f"graph @g {{\n  module m: {sample.module}\n  return\n}}\n"
    module = parse_graphs(text, sample.sizes)["g"].modules[0]
    if module.kind not in MODULE_KINDS:
        return module
    shapes = MODULE_KINDS[module.kind].shapes(module.attrs)
    params = tuple(Param(n, tuple(s), (f"m.{n}",)) for n, s in shapes.items())
    return replace(module, params=params)


def program_of(sample: Sample) -> Program:
    """A model that has a graph with the sample's node alone."""
    graphs = parse_graphs(sample.graphs, sample.sizes)
    module, attrs = module_of(sample), attributes(sample)
    types = operand_types(sample)
    inputs = {role: Value(role, kind) for role, kind in types.items()}
    if sample.op == "call":
        assert module is not None
        results = tuple(v.type for v in graphs[module.graphs[0]].outputs)
    else:
        results = OPS[sample.op].infer(Operands(types, attrs, module, sample.sizes))
    outputs = tuple(Value(f"r{i}", kind) for i, kind in enumerate(results))
    node = Node(sample.op, tuple(inputs.items()), outputs, attrs, module and module.name)
    values = tuple(inputs.values())
    modules = (module,) if module else ()
    graph = Graph(NAME, values, modules, (node,), outputs or values[:1], "The op")
    through = Value("x", TensorType((Dim.sym("batch"),)))
    owner = Module("op", "graph", GraphAttrs((NAME,)))
    entry = Graph("model", (through,), (owner,), (), (through,))
    keys = tuple(ConfigKey(name, (name,), v, v) for name, v in sample.sizes.items())
    return Program("sample", {"model": entry, NAME: graph, **graphs}, dict(sample.sizes), keys=keys)


def tensor(sample: Sample, role: str, kind: TensorType) -> torch.Tensor:
    """A random operand, or the one that the sample makes."""
    env = EXTENTS | dict(sample.sizes)
    shape = tuple(dim.value(env) for dim in kind.shape)
    if role in sample.values:
        return sample.values[role](torch, shape)
    if kind.dtype == "float":
        return torch.randn(shape)
    return torch.ones(shape, dtype={"int": torch.int64, "bool": torch.bool}[kind.dtype])


def operand(sample: Sample, role: str, kind: Type, package: Any) -> Any:
    """What is given for an operand when the code runs."""
    if sample.operands[role].startswith("-"):
        return None
    if isinstance(kind, TensorType):
        return tensor(sample, role, kind)
    layer = package.generation.KVCache(2, 2, 8, 6)
    return {"cache": package.generation.Cache([layer]), "kv": layer, "host_int": 0}[kind.kind]


def emitted(program: Program, folder: Path) -> Any:
    """The imported package of a program."""
    for name, text in emit_package(program, describe(program, {})).items():
        (folder / name).write_text(text, encoding="utf-8")
    return import_package(folder)


# Exercised by the models of tests/parity alone so far.
# An op leaves this list with its first sample.
BY_PARITY = {
    "attention_pool",
    "axis_positions",
    "cell_middles",
    "concat",
    "concat_channels",
    "flatten",
    "fold_tokens",
    "gate",
    "given",
    "grid_positions",
    "image_grid",
    "join_frames",
    "keep_tokens",
    "kept_index",
    "learned_tokens",
    "logit_bias",
    "logit_scale",
    "mask_rows",
    "memory_attention",
    "memory_mask",
    "multimodal_positions",
    "normalize",
    "pack",
    "pack_frames",
    "pack_index",
    "pack_tiles",
    "pack_weights",
    "packed_attention",
    "packed_patch_embed",
    "pad_tokens",
    "padding_mask",
    "parameter",
    "patch_index",
    "pool",
    "pool_cells",
    "position_table",
    "prepend_queries",
    "relative_bias",
    "reorder",
    "resize_tokens",
    "seeing_rows",
    "segments",
    "select_tokens",
    "shift",
    "similarity",
    "sincos_grid",
    "sinusoid_positions",
    "skip_without",
    "take_tiles",
    "tile_embedding",
    "tile_index",
    "tile_padding_mask",
    "tile_position_embedding",
    "transpose",
    "unflatten",
    "window_order",
}
# The same of module kinds.
MODULES_BY_PARITY = {
    "multihead_attention",
    "number",
    "packed_patch_embed",
}


# -------------------------------------------------------------------------------------------- tests


def test_every_op_has_a_sample():
    assert {s.op for s in SAMPLES} | BY_PARITY == set(OPS)
    assert {f.op for f in FAULTS} <= set(OPS)


def test_every_module_kind_is_sampled():
    kinds = {s.module.split()[0] for s in SAMPLES if s.module}
    assert kinds | MODULES_BY_PARITY == {*MODULE_KINDS, "graph", "repeat"}


@pytest.mark.parametrize("sample", SAMPLES, ids=names(SAMPLES))
def test_emitted_code_gives_the_shapes_of_the_rule(sample: Sample, tmp_path: Path):
    program = program_of(sample)
    verify(program)
    package = emitted(program, tmp_path)
    torch.manual_seed(0)
    module = package.modeling.OpNode(package.Config())
    graph = program.graphs[NAME]
    given = [operand(sample, v.name, v.type, package) for v in graph.inputs]
    found = module(*given)
    results = found if isinstance(found, tuple) else (found,)
    assert len(results) == len(graph.outputs)
    for value, result in zip(graph.outputs, results, strict=True):
        check_result(sample, value.type, result)


def check_result(sample: Sample, kind: Type, result: Any) -> None:
    """Compare a result with its type."""
    if isinstance(kind, StateType):
        assert kind.kind == "host_int" and isinstance(result, int)
        return
    if result is None:
        assert kind.nullable
        return
    env = EXTENTS | dict(sample.sizes)
    wanted = tuple(dim.value(env) for dim in kind.shape)
    if sample.loose:
        assert torch.broadcast_shapes(wanted, result.shape) == wanted
    else:
        assert tuple(result.shape) == wanted
    dtypes = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
    assert result.dtype == dtypes[kind.dtype]
    assert kind.dtype != "float" or bool(result.isfinite().all())


@pytest.mark.parametrize("sample", SAMPLES, ids=names(SAMPLES))
def test_parameters_of_the_emitted_module_are_those_of_its_kind(sample: Sample, tmp_path: Path):
    program = program_of(sample)
    module = program.graphs[NAME].modules
    if not module or module[0].kind not in MODULE_KINDS:
        return
    package = emitted(program, tmp_path)
    found = dict(package.modeling.OpNode(package.Config()).named_parameters())
    wanted = {
        f"m.{p.name}".rstrip("."): tuple(d.value(EXTENTS | dict(sample.sizes)) for d in p.shape)
        for p in module[0].params
    }
    assert {name: tuple(p.shape) for name, p in found.items()} == wanted


@pytest.mark.parametrize("fault", FAULTS, ids=names(FAULTS))
def test_operands_that_do_not_fit_are_refused(fault: Fault):
    operands = Operands(operand_types(fault), attributes(fault), module_of(fault), fault.sizes)
    with pytest.raises(ShapeError, match=re.escape(fault.message)) as caught:
        OPS[fault.op].infer(operands)
    assert caught.value.code == fault.code


@pytest.mark.parametrize("sample", [s for s in SAMPLES if OPS[s.op].flops], ids=lambda s: s.op)
def test_flops_are_positive(sample: Sample):
    flops = OPS[sample.op].flops
    assert flops is not None
    types, attrs, module = operand_types(sample), attributes(sample), module_of(sample)
    found = flops(Operands(types, attrs, module, sample.sizes))
    assert found.value(EXTENTS | dict(sample.sizes)) > 0


def test_flops_of_a_linear_layer_are_two_for_each_multiplication():
    sample = next(s for s in SAMPLES if s.op == "linear")
    flops = OPS["linear"].flops
    assert flops is not None
    types, attrs, module = operand_types(sample), attributes(sample), module_of(sample)
    found = flops(Operands(types, attrs, module, sample.sizes))
    assert found.value(EXTENTS | dict(sample.sizes)) == 2 * 2 * 5 * 8 * 3
