"""The text form of programs: `print_program` writes it, `parse_program` reads it back.

    program example
    size vision.hidden_size = 1024
    key vision.hidden_size {paths=["vision_config.hidden_size"], value=1024, default=768}

    graph @vision.block {
      input x: float[images, vision.num_positions, vision.hidden_size]
      module norm1: layer_norm {width=vision.hidden_size, eps=vision.eps}
        param weight: [vision.hidden_size] {keys=["encoder.layers.{i}.layer_norm1.weight"]}
        param bias: [vision.hidden_size] {keys=["encoder.layers.{i}.layer_norm1.bias"]}
      module attention: graph @vision.attention
      h: float[images, vision.num_positions, vision.hidden_size] = layer_norm(x=x) @norm1
      h_1: float[images, vision.num_positions, vision.hidden_size] = call(x=h) @attention
      x_1: float[images, vision.num_positions, vision.hidden_size] = add(x=x, y=h_1)
      return x_1
    }

One line for each size, input, module, parameter and node; attributes that have their default
values are left out. Everything but spans and docs survives the round trip. `#` starts a comment.
"""

from collections.abc import Iterator

from vlmspec.compiler.ir.graph import Graph, Module, Node, Param, Program, Value
from vlmspec.compiler.ir.text_cursor import ParseError
from vlmspec.compiler.ir.text_parser import parse_graph, parse_graphs, parse_program
from vlmspec.compiler.ir.text_values import Sizes, write, write_fields, write_name, write_number
from vlmspec.compiler.ir.types import StateType, Type


def print_program(program: Program) -> str:
    """Write a program as text, the same for equal programs whose tables are in the same order."""
    head = "\n".join(_header(program))
    graphs = [print_graph(graph, program.sizes) for graph in program.graphs.values()]
    return "\n\n".join([head, *(g.rstrip("\n") for g in graphs)]) + "\n"


def print_graph(graph: Graph, sizes: Sizes | None = None) -> str:
    """Write one graph as text.

    Args:
        sizes: values of named numbers; those that it does not have are written beside the names.
    """
    return "\n".join(_graph(graph, sizes or {})) + "\n"


def _header(program: Program) -> Iterator[str]:
    yield f"program {write_name(program.name)}"
    yield f"entry @{write_name(program.entry)}"
    for names in program.alternates:
        yield f"alternate {write(names, tuple[str, ...], {})}"
    for name, value in program.sizes.items():
        yield f"size {write_name(name)} = {write_number(value)}"
    for name, dim in program.derived.items():
        yield f"derived {write_name(name)} = {dim}"
    for word, keys in (("key", program.keys), ("option", program.options)):
        for key in keys:
            fields = write_fields(key, program.sizes, skip=("name",))
            yield f"{word} {write_name(key.name)}{fields}"


def _graph(graph: Graph, sizes: Sizes) -> Iterator[str]:
    yield f"graph @{write_name(graph.name)} {{"
    for value in graph.inputs:
        yield f"  input {_value(value)}"
    for module in graph.modules:
        yield f"  {_module(module, sizes)}"
        for param in module.params:
            yield f"    {_param(param, sizes)}"
    for node in graph.nodes:
        yield f"  {_node(node, sizes)}"
    yield f"  return {', '.join(write_name(v.name) for v in graph.outputs)}".rstrip()
    yield "}"


def _value(value: Value) -> str:
    return f"{write_name(value.name)}: {_type(value.type)}"


def _type(type: Type) -> str:
    if isinstance(type, StateType):
        return type.kind
    text = f"{type.dtype}[{', '.join(map(str, type.shape))}]"
    text += "".join(f"?{write_name(name)}" for name in sorted(type.optional))
    return text + ("|none" if type.nullable else "")


def _module(module: Module, sizes: Sizes) -> str:
    graphs = "".join(f" @{write_name(name)}" for name in module.graphs)
    skip = ("graphs",) if hasattr(module.attrs, "graphs") else ()
    attrs = write_fields(module.attrs, sizes, skip)
    return f"module {write_name(module.name)}: {write_name(module.kind)}{graphs}{attrs}"


def _param(param: Param, sizes: Sizes) -> str:
    shape = ", ".join(map(str, param.shape))
    fields = write_fields(param, sizes, skip=("name", "shape"))
    return f"param {write_name(param.name)}: [{shape}]{fields}"


def _node(node: Node, sizes: Sizes) -> str:
    results = ", ".join(map(_value, node.outputs))
    operands = ", ".join(f"{write_name(r)}={write_name(v.name)}" for r, v in node.inputs)
    text = f"{write_name(node.op)}({operands})"
    if node.module is not None:
        text += f" @{write_name(node.module)}"
    return (f"{results} = " if results else "") + text + write_fields(node.attrs, sizes)


__all__ = [
    "ParseError",
    "parse_graph",
    "parse_graphs",
    "parse_program",
    "print_graph",
    "print_program",
]
