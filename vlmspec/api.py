"""What the command line and Python share: check, compile, show, explain, verify."""

import hashlib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlmspec import __version__
from vlmspec.diagnostics.model import Diagnostic, Diagnostics, SpecError

if TYPE_CHECKING:
    from vlmspec.compiler.ir.graph import Program
    from vlmspec.dsl.loader import Loaded
    from vlmspec.dsl.schema import Architecture

SpecLike = str | Path


@dataclass(frozen=True, slots=True)
class Compiled:
    """An emitted package and what it was made from."""

    path: Path
    name: str
    spec: "Architecture"
    program: "Program"
    files: dict[str, int]
    changed: bool
    warnings: tuple[Diagnostic, ...] = field(default=())

    def load(self) -> ModuleType:
        """Import the package from where it lies.

        Returns:
            The package; `load().Model` is the architecture's class.
        """
        from vlmspec.runtime import import_package

        return import_package(self.path)


def load_spec(spec: SpecLike) -> "Architecture":
    """Read and validate a spec, by bundled name or path.

    Raises:
        SpecError: with every fault of the document.
    """
    from vlmspec.dsl.loader import load_architecture

    return load_architecture(spec).document


def check(spec: SpecLike, **options: Any) -> tuple[Diagnostic, ...]:
    """Check a spec: its documents, references, sizes and shapes.

    Returns:
        Warnings.

    Raises:
        SpecError: with every fault.
    """
    return build(spec, **options).warnings


@dataclass(frozen=True, slots=True)
class Built:
    """A spec lowered to a program, before any pass."""

    loaded: "Loaded[Architecture]"
    program: "Program"
    warnings: tuple[Diagnostic, ...]


def build(
    spec: SpecLike,
    *,
    checkpoint: SpecLike | None = None,
    config: SpecLike | None = None,
    variant: str | None = None,
    set: Iterable[str] | Mapping[str, Any] = (),
    target: str = "cpu",
    dtype: str = "float32",
) -> Built:
    """Load a spec and lower it.

    Args:
        spec: name of a bundled spec, or a path.
        checkpoint: folder whose config.json gives the sizes.
        config: a config.json that gives the sizes.
        variant: a variant of the spec; its first one where no config is given.
        set: `component.name=value` entries, or a mapping; they win over everything else.
        target: what the kernels are for.
        dtype: what the kernels are for.

    Raises:
        SpecError: with every fault.
    """
    from vlmspec.compiler.checks import check_program
    from vlmspec.compiler.lower import lower
    from vlmspec.dsl.loader import load_architecture
    from vlmspec.overrides import make_overrides
    from vlmspec.weights_check import check_weights, has_weights

    found = Diagnostics()
    loaded = load_architecture(spec)
    overrides = make_overrides(loaded, checkpoint or config, variant, set, found)
    program = lower(loaded, overrides, found)
    found.raise_if_errors()
    loaded = _with_chosen_parts(loaded, program)
    check_program(program, found)
    _check_classes(loaded, program, found)
    found.raise_if_errors()
    if checkpoint is not None and has_weights(Path(checkpoint)):
        check_weights(program, Path(checkpoint), found)
        found.raise_if_errors()
    return Built(loaded, program, tuple(found))


def _with_chosen_parts(
    loaded: "Loaded[Architecture]", program: "Program"
) -> "Loaded[Architecture]":
    """The spec with the parts that its config.json, or its variant, has chosen."""
    chosen = {option.name: option.value for option in program.options}
    graph = {
        name: component.model_copy(
            update={k: chosen.get(f"{name}.{k}", op) for k, op in component.kinds}
        )
        for name, component in loaded.document.graph.items()
    }
    return replace(loaded, document=loaded.document.model_copy(update={"graph": graph}))


def _check_classes(loaded, program: "Program", found: Diagnostics) -> None:
    from vlmspec.compiler.checks import check_classes

    kinds = {name: component.kinds[0][0] for name, component in loaded.document.graph.items()}
    spans = {name: loaded.span("graph", name, key=True) for name in kinds}
    check_classes(program, kinds, spans | {program.entry: loaded.span("name")}, found)


def compile(
    spec: SpecLike,
    *,
    checkpoint: SpecLike | None = None,
    config: SpecLike | None = None,
    variant: str | None = None,
    set: Iterable[str] | Mapping[str, Any] = (),
    target: str = "cpu",
    dtype: str = "float32",
    output: SpecLike | None = None,
    dump_ir: str | None = None,
    force: bool = False,
) -> Compiled:
    """Compile a spec to a torch package.

    Args:
        output: folder of the package; `build/<name>` if not given.
        dump_ir: folder for the program's text after every pass; `-` prints it.
        force: replace a folder that vlmspec did not write.

    The other arguments are those of `build`.

    Raises:
        SpecError: with every fault of the spec or the config.
        NotOurs: when the folder is not an emitted package.
    """
    from vlmspec.compiler.emit.package import emit_package, identifier
    from vlmspec.compiler.pipeline import Context, run_passes
    from vlmspec.publish import publish_folder

    built = build(
        spec,
        checkpoint=checkpoint,
        config=config,
        variant=variant,
        set=set,
        target=target,
        dtype=dtype,
    )
    context = Context(target, dtype)
    with _dumping(dump_ir) as dump:
        program = run_passes(built.program, context, dump)
    name = identifier(built.loaded.document.name)
    path = Path(output) if output is not None else Path("build") / name
    options = {"target": target, "dtype": dtype}
    given = dict(set) if isinstance(set, Mapping) else dict(s.partition("=")[::2] for s in set)
    request = {"variant": variant, "set": given}
    files = emit_package(program, _describe(built, options, request))
    changed = publish_folder(path, files, force=force)
    lines = {n: text.count("\n") for n, text in files.items()}
    return Compiled(
        path.resolve(), name, built.loaded.document, program, lines, changed, built.warnings
    )


@contextmanager
def _dumping(target: str | None) -> Iterator[Any]:
    """Give a function that writes a program's text, or None."""
    if target is None:
        yield None
        return
    from vlmspec.compiler.ir.text import print_program

    def dump(index: int, name: str, program: "Program") -> None:
        text = print_program(program)
        if target == "-":
            print(f"# {index:02d} {name}\n{text}")
            return
        folder = Path(target)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:02d}-{name}.vir").write_text(text, encoding="utf-8")

    yield dump


def _describe(built: Built, options: Mapping[str, Any], request: Mapping[str, Any]):
    from vlmspec.compiler.emit.package import Description
    from vlmspec.dsl.loader import load_part

    loaded = built.loaded
    architecture = loaded.document
    kinds, titles, parts = {}, {}, {}
    model_types = {"model_type": name for name in architecture.model_types[:1]}  # noqa: B035
    for name, component in architecture.graph.items():
        ((kind, op),) = component.kinds
        kinds[name] = kind
        part = load_part(op, loaded.folder)
        if part is not None:
            parts[name] = part
            titles[name] = part.document.title
            if part.document.model_type and component.config:
                prefix = component.config.partition("|")[0].strip()
                model_types[f"{prefix}.model_type"] = part.document.model_type
    digest = hashlib.sha256(loaded.source.text.encode())
    for name in sorted(parts):
        digest.update(parts[name].source.text.encode())
    command = ["vlmspec", "compile", architecture.name]
    if loaded.source.name != f"specs/{architecture.name}.yaml":
        command[-1] = Path(loaded.source.name).name
    if request["variant"]:
        command += ["--variant", request["variant"]]
    for name, value in request["set"].items():
        command += ["--set", f"{name}={value}"]
    if options["target"] != "cpu":
        command += ["--target", options["target"]]
    return Description(
        version=__version__,
        spec_name=f"specs/{Path(loaded.source.name).name}"
        if loaded.source.name.startswith("specs/")
        else Path(loaded.source.name).name,
        spec_hash=digest.hexdigest(),
        command=shlex.join(command),
        title=architecture.title,
        paper=architecture.paper,
        kinds=kinds,
        titles=titles,
        inputs=architecture.input_kinds,
        outputs=architecture.outputs,
        reference=architecture.reference,
        model_types=model_types,
        options=options,
        kernels=_kernels(options["target"], options["dtype"]),
    )


def _kernels(target: str, dtype: str) -> dict[str, str]:
    """The kernel that serves each op that has one."""
    from vlmspec.kernels.registry import KERNELS, choose

    chosen = {kernel.op: choose(kernel.op, target, dtype) for kernel in KERNELS}
    return {op: kernel.name for op, kernel in chosen.items() if kernel is not None}


def list_parts() -> list[dict[str, Any]]:
    """The bundled parts: name, kind, title, public implementation and length."""
    from vlmspec.dsl.loader import bundled_folder, load_part, part_names

    folder = bundled_folder()
    found = []
    for name in part_names(folder):
        loaded = load_part(name, folder)
        assert loaded is not None
        document = loaded.document
        found.append(
            {
                "name": document.part,
                "kind": document.kind,
                "title": document.title,
                "source": document.source,
                "lines": loaded.source.text.count("\n"),
            }
        )
    return found


def list_specs() -> list[dict[str, Any]]:
    """The bundled specs: name, title, paper, variants and length."""
    from vlmspec.dsl.loader import bundled_specs, load_architecture

    found = []
    for name in bundled_specs():
        loaded = load_architecture(name)
        document = loaded.document
        found.append(
            {
                "name": document.name,
                "title": document.title,
                "paper": document.paper,
                "variants": list(document.variants),
                "lines": loaded.source.text.count("\n"),
            }
        )
    return found


def show(spec: SpecLike, **options: Any) -> dict[str, Any]:
    """Describe an architecture: components, shapes, parameters, visual tokens, costs, sizes."""
    from vlmspec.report.tree import describe

    built = build(spec, **options)
    spans = {
        name: built.loaded.span("graph", name, key=True) for name in built.loaded.document.graph
    }
    places = {name: f"{span.source.name}:{span.line}" for name, span in spans.items()}
    return describe(built.loaded.document, built.program, places)


def draw(spec: SpecLike, format: str = "svg", **options: Any) -> str:
    """Draw the components of an architecture and what flows between them.

    Args:
        format: `svg`, `mermaid`, `dot` or `json`.
    """
    from vlmspec.report.picture import draw as write

    return write(show(spec, **options), format)


def explain(spec: SpecLike, **options: Any) -> list[dict[str, Any]]:
    """Say for every op which kernel was chosen, and what was fused into it or not, and why."""
    from vlmspec.compiler.pipeline import Context, run_passes
    from vlmspec.report.fusion import explain_program

    target, dtype = options.get("target", "cpu"), options.get("dtype", "float32")
    built = build(spec, **options)
    context = Context(target, dtype)
    program = run_passes(built.program, context)
    return explain_program(program, context)


def verify(spec: SpecLike, checkpoint: SpecLike, **options: Any) -> dict[str, Any]:
    """Compare the emitted module with the installed public reference, stage by stage."""
    import tempfile

    from vlmspec.verification import verify as compare

    with tempfile.TemporaryDirectory() as folder:
        compiled = compile(spec, checkpoint=checkpoint, output=Path(folder) / "package")
        return compare(compiled, checkpoint, **options)


def schema() -> dict[str, Any]:
    """The JSON schema of an architecture document, for editors."""
    from vlmspec.dsl.schema import Architecture

    return Architecture.model_json_schema(by_alias=True)


__all__ = [
    "Compiled",
    "SpecError",
    "build",
    "check",
    "compile",
    "draw",
    "explain",
    "list_parts",
    "list_specs",
    "load_spec",
    "schema",
    "show",
    "verify",
]
