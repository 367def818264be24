"""Matrix products on a CPU. Legend: T tokens, D input width, F output width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """A linear layer that runs on oneDNN when it infers in float32 on a CPU.

    `F.linear` takes the BLAS that torch was built with, which uses half of the vector width on
    CPUs of other makers. Training, tracing and other dtypes and devices take `F.linear`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map vectors [..., D] to [..., F]."""
        if (
            ONEDNN
            and x.dtype == torch.float32
            and x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        ):
            rows = x.numel() // self.in_features
            # A call costs 30 microseconds, which a small product does not win back.
            if rows * self.weight.numel() >= (2**18 if rows == 1 else 2**21):
                return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)
