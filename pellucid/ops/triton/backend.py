"""The GPU's own kernels for packed weights, in Triton. Attention, norms and products with dense weights are torch's."""
from __future__ import annotations

import torch
from torch import Tensor

from pellucid.errors import BadRequest
from pellucid.ops.fused import Fused
from pellucid.ops.interface import Activations, Weight
from pellucid.ops.packed import is_rounded, rounded
from pellucid.weights.packed_rows import PackedWeight

why_not = ""
try:
    import triton

    from pellucid.ops.triton import kernels
except ImportError as error:  # torch's own builds for CUDA bring it, on Linux
    triton, why_not = None, str(error)


def interpreted() -> bool:
    """Whether kernels run on the CPU, one program after another, as TRITON_INTERPRET=1 had it when they were imported."""
    return triton is not None and not isinstance(kernels.vector, triton.JITFunction)


class Triton(Fused):
    """Products of packed weights that stay packed, on a CUDA device: what the reference computes but for the order of sums.

    Formats without a kernel (the grids of IQ1 to IQ3, TQ1_0), gradients and float64 go the reference's way. A row's result may depend, by rounding, on how
    many rows are beside it. Under TRITON_INTERPRET=1 the kernels run on the CPU, many thousand times slower: for tests.
    Raises BadRequest where Triton is not installed.
    """

    name = "triton"

    def __init__(self, activations: Activations = "exact") -> None:
        super().__init__(activations)
        if triton is None:
            raise BadRequest(f"ops='triton' is not installed ({why_not}). On Linux: pip install triton", field="ops")

    def describe(self) -> str:
        return "matmul_packed triton · the rest fused, reference"

    def matmul(self, x_TD: Tensor, weight_FD: Weight, bias_F: Tensor | None = None) -> Tensor:
        if not isinstance(weight_FD, PackedWeight) or not self._multiplies(x_TD, weight_FD):
            return super().matmul(x_TD, weight_FD, bias_F)
        taken_TD = rounded(x_TD) if self.activations == "int8" and is_rounded(x_TD, weight_FD) else x_TD
        out_TF = kernels.product(taken_TD, weight_FD)
        return (out_TF if bias_F is None else out_TF + bias_F.float()).to(x_TD.dtype)

    def _multiplies(self, x_TD: Tensor, weight_FD: PackedWeight) -> bool:
        plain = x_TD.dtype in (torch.float32, torch.float16, torch.bfloat16) and not (torch.is_grad_enabled() and x_TD.requires_grad)
        return plain and (x_TD.device.type == "cuda" or interpreted()) and kernels.multiplies(weight_FD)
