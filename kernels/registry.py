"""Which kernels there are, and which of them serves an op on a target.

A kernel is a function or class of a family's files, copied into the packages that need it. Without
one, an op is emitted as
the torch expression that says what it means.
"""

from collections.abc import Iterator
from dataclasses import dataclass

TARGETS = ("cpu", "cuda:sm80", "cuda:sm90", "cuda:sm100")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation of an op.

    Attributes:
        name: of the function or class in the family's file.
        op: the op or module kind that it implements.
        family: folder under `kernels/`.
        backend: `onednn` or `triton`; also the stem of its file, but for CPU kernels, which stand
            in `cpu.py`.
        targets: where it runs.
        dtypes: what it computes in.
        about: why it is preferred, for `vlmspec explain`.
    """

    name: str
    op: str
    family: str
    backend: str
    targets: tuple[str, ...]
    dtypes: tuple[str, ...]
    about: str

    def refusal(self, target: str, dtype: str) -> str | None:
        """Why it does not serve a target and dtype; None if it does."""
        if target not in self.targets:
            return f"it is for {', '.join(self.targets)}, not for {target}"
        if dtype not in self.dtypes:
            return f"it computes in {', '.join(self.dtypes)}, not in {dtype}"
        return None


KERNELS = (
    Kernel(
        name="Linear",
        op="linear",
        family="linear",
        backend="onednn",
        targets=("cpu",),
        dtypes=("float32",),
        about="oneDNN's matrix product uses the full vector width of every CPU",
    ),
)


def candidates(op: str) -> Iterator[Kernel]:
    """Kernels of an op, the preferred one first."""
    return (kernel for kernel in KERNELS if kernel.op == op)


def choose(op: str, target: str, dtype: str) -> Kernel | None:
    """The kernel that serves an op; None where the torch expression does."""
    return next((k for k in candidates(op) if k.refusal(target, dtype) is None), None)
