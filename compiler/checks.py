"""What must hold of a whole program before it is compiled: sizes and names of its tensors."""

from collections.abc import Iterator
from dataclasses import dataclass

from vlmspec.compiler.emit.names import class_names, config_class
from vlmspec.compiler.ir.dim import Dim
from vlmspec.compiler.ir.graph import Module, Param, Program
from vlmspec.compiler.ops import OPS
from vlmspec.diagnostics.model import Diagnostics, Label, Span
from vlmspec.report.accounting import MAX_ELEMENTS, MAX_PARAMETERS, count, count_module, numel

# Names clash in one of the first layers or in none: kinds of layers repeat sooner than that.
_LAYERS_COMPARED = 64


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint that the program expects, and the parameter that it belongs to."""

    key: str
    shape: tuple[int, ...]
    path: str
    param: Param
    span: Span | None


def stored_tensors(program: Program, most_layers: int | None = None) -> Iterator[Stored]:
    """Every checkpoint tensor of a program, tied ones included, layer by layer.

    Args:
        program: before or after any pass.
        most_layers: how many layers of each stack are looked at; all if not given.
    """
    yield from _stored(program, program.entry, "", (), most_layers)


def stored_names(program: Program) -> list[str]:
    """How the names of tensors end that checkpoints may hold although the program computes them."""
    nodes = [node for graph in program.graphs.values() for node in graph.nodes]
    return list(dict.fromkeys(name for node in nodes for name in OPS[node.op].stored))


def _stored(
    program: Program, graph: str, path: str, indices: tuple[int, ...], most: int | None
) -> Iterator[Stored]:
    for module in program.graphs[graph].modules:
        name = f"{path}.{module.name}" if path else module.name
        for param in module.params:
            yield from _tensors_of(program, module, param, name, indices)
        if module.kind != "repeat":
            for child in module.graphs:
                yield from _stored(program, child, name, indices, most)
            continue
        total = module.attrs.count.value(program.sizes)
        for i in range(total if most is None else min(total, most)):
            child = module.graphs[kind_of_layer(module, i)]
            yield from _stored(program, child, f"{name}.{i}", (*indices, i), most)


def kind_of_layer(module: Module, index: int) -> int:
    """Which of a repeat's graphs a layer is."""
    for kind, places in enumerate(module.attrs.places, 1):
        if index in places:
            return kind
    return module.attrs.cycle[index % len(module.attrs.cycle)]


def _tensors_of(
    program: Program, module: Module, param: Param, name: str, indices: tuple[int, ...]
) -> Iterator[Stored]:
    shape = tuple(dim.value(program.sizes) for dim in param.shape)  # pyright: ignore[reportArgumentType]
    path = f"{name}.{param.name}" if param.name else name
    if param.permute:
        order = sorted(range(len(shape)), key=param.permute.__getitem__)
        shape = tuple(shape[i] for i in order)
    if param.stack is not None:
        piece = (shape[1] // len(param.keys), *shape[2:])
        for index in range(param.stack.value(program.sizes)):  # pyright: ignore[reportArgumentType]
            for key in param.keys:
                key = _indexed(key, indices).replace("*", str(index))
                yield Stored(key, piece, path, param, module.span)
        return
    for number, key in enumerate(param.keys):
        first = shape[:1]
        if param.sizes:
            first = (param.sizes[number].value(program.sizes),)  # pyright: ignore[reportArgumentType]
        yield Stored(_indexed(key, indices), (*first, *shape[1:]), path, param, module.span)


def _indexed(key: str, indices: tuple[int, ...]) -> str:
    for index in indices:
        key = key.replace("{i}", str(index), 1)
    return key


def check_program(program: Program, found: Diagnostics) -> None:
    """Refuse sizes that no machine holds, and tensors that share a name."""
    refused: set[Span | None] = set()
    for path, _, module in program.walk():
        for param in module.params:
            if module.span not in refused and _check_shape(program, path, module, param, found):
                refused.add(module.span)
    total = 0 if refused else count(program)
    if total > MAX_PARAMETERS:
        parts = [(count_module(program, m), m) for m in program.graphs[program.entry].modules]
        share, largest = max(parts, key=lambda part: part[0])
        message = f"the model would have {total:.3g} parameters"
        mend = f"at most 10**13 can be; {share:.3g} of them are in `{largest.name}`"
        found.error("VS312", message, largest.span, help=mend)
    elif not refused:
        check_keys(program, found)


def _check_shape(
    program: Program, path: str, module: Module, param: Param, found: Diagnostics
) -> bool:
    """Whether the shape of a tensor is refused."""
    shape = [dim.value(program.sizes) for dim in param.shape]  # pyright: ignore[reportArgumentType]
    name = f"{path}.{param.name}" if param.name else path
    sizes = _named_sizes(program, param.shape)
    if any(extent < 1 for extent in shape):
        message = f"the tensor `{name}` would have the shape {shape}"
        found.error("VS303", message, module.span, help=f"every extent must be at least 1{sizes}")
        return True
    elif numel(param, program.sizes) > MAX_ELEMENTS:
        message = f"the tensor `{name}` would have the shape {shape}"
        mend = f"at most 2**40 elements can be; a size is most likely mistyped{sizes}"
        found.error("VS311", message, module.span, help=mend)
        return True
    return False


def _named_sizes(program: Program, shape: tuple[Dim, ...]) -> str:
    names = sorted({name for dim in shape for name in dim.symbols()})
    return f": {', '.join(f'`{n}` is {program.sizes[n]}' for n in names)}" if names else ""


def check_keys(program: Program, found: Diagnostics) -> None:
    """Refuse two parameters that would be read from one tensor without being tied."""
    owners: dict[str, Stored] = {}
    for tensor in stored_tensors(program, _LAYERS_COMPARED):
        other = owners.setdefault(tensor.key, tensor)
        if other is tensor or tensor.param.tied or other.param.tied:
            continue
        message = f"`{other.path}` and `{tensor.path}` are both called `{tensor.key}`"
        labels = [Label(other.span, "the first")] if other.span else []
        if other.span == tensor.span:
            labels = []
        mend = "give one of them other `weights:`"
        label = "the second" if labels else ""
        found.error("VS416", message, tensor.span, label, mend, secondary=labels)
        return


def check_classes(
    program: Program, kinds: dict[str, str], spans: dict[str, Span], found: Diagnostics
) -> None:
    """Refuse names that would give two classes of the package one name."""
    owners = {config_class(name): name for name in kinds} | {"Config": "the sizes of the model"}
    for graph, name in class_names(program, kinds).items():
        owner = graph if graph != program.entry else program.name
        if name in owners:
            message = f"`{owner}` and `{owners[name]}` would both be the class `{name}`"
            found.error("VS106", message, spans.get(graph.split(".")[0]), help="rename one of them")
        owners[name] = owner


__all__ = ["Stored", "check_classes", "check_program", "stored_names", "stored_tensors"]
