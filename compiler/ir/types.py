"""Types of the values that flow through a graph."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vlmspec.compiler.ir.dim import Dim

DTYPES = ("float", "int", "bool")


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor: symbolic shape, kind of number, and the model inputs without which it does not
    exist.

    `float` stands for the dtype that the model runs in; `optional` names model inputs that may be
    absent. A `nullable`
    value may be None, and those that read it know.
    """

    shape: tuple[Dim, ...]
    dtype: str = "float"
    optional: frozenset[str] = frozenset()
    nullable: bool = False

    def __str__(self) -> str:
        text = f"{self.dtype}[{', '.join(map(str, self.shape))}]"
        text += "".join(f"?{name}" for name in sorted(self.optional))
        return text + ("|none" if self.nullable else "")

    @property
    def width(self) -> Dim:
        return self.shape[-1]

    def with_shape(self, *shape: Dim) -> "TensorType":
        return replace(self, shape=tuple(shape))

    def with_width(self, width: Dim) -> "TensorType":
        return replace(self, shape=(*self.shape[:-1], width))


@dataclass(frozen=True, slots=True)
class StateType:
    """Something that is not a tensor: a decoding `cache`, one layer's `kv` state, a host-side
    `int`, or `runs` of
    equal segments in a packed sequence."""

    kind: str

    def __str__(self) -> str:
        return self.kind

    @property
    def optional(self) -> frozenset[str]:
        return frozenset()


STATE_KINDS = ("cache", "kv", "host_int", "runs")
Type = TensorType | StateType


@dataclass(frozen=True, slots=True)
class Scalar:
    """A real number: a named size of the program (`vision.eps`) or a literal."""

    value: float
    name: str | None = None

    def __str__(self) -> str:
        return self.name or repr(self.value)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of whole numbers: a named setting of the program (`pinpoints`) or a literal."""

    value: tuple[tuple[int, ...], ...]
    name: str | None = None


def same_dim(a: Dim, b: Dim, sizes: Mapping[str, int | float]) -> bool:
    """Whether two dimensions are equal, as expressions or by the values of the program's sizes."""
    return a == b or resolve(a, sizes) == resolve(b, sizes)


def resolve(dim: Dim, sizes: Mapping[str, int | float]) -> Dim:
    """Replace every symbol that has a value; those of the input (batch, tokens, …) stay."""
    known = {name: sizes[name] for name in dim.symbols() if isinstance(sizes.get(name), int)}
    return dim.subs(known) if known else dim
