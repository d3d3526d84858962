"""The CPU's own kernels for packed weights and attention: C++ in ops/cpu, for the best instructions this processor has. The rest is torch's."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid.errors import BadRequest
from pellucid.ops import attention
from pellucid.ops.fused import Fused
from pellucid.ops.interface import Pages, Weight
from pellucid.ops.panels import Panels, n_threads, native, why_not
from pellucid.weights.packed_rows import PackedRows


class Native(Fused):
    """Products with packed weights whose rows `prepare` has put in panels, activations rounded to whole numbers of 8 bits, 32 of a row at a time.

    A row's result does not depend, bitwise, on the rows beside it or on the number of threads.
    """

    name = "native"

    def __init__(self, variant: str | None = None) -> None:
        if native is None:
            raise BadRequest(f"ops='native' is not installed ({why_not}). Install a C++ compiler (Debian: apt-get install g++ python3-dev), "
                             f"then Pellucid again; in a checkout, make native", field="ops")
        there = native.variants()
        if variant is not None and variant not in there:
            raise BadRequest(f"variant={variant!r} does not run on this processor ({', '.join(there)})", field="variant")
        self.variant: str = variant or there[0]

    def describe(self) -> str:
        return f"attend, matmul of packed weights native ({self.variant}) · the rest {super().describe()}"

    def prepare(self, weight_FD: Weight) -> Weight:
        """The weight as `matmul` wants it: packed rows of a format that there are kernels for are put in panels, anything else is left as it is."""
        fits = type(weight_FD) is PackedRows and weight_FD.device.type == "cpu" and len(weight_FD.shape) == 2 and weight_FD.format in native.formats()
        return Panels.of(weight_FD) if fits and all(weight_FD.shape) else weight_FD

    def matmul(self, x_TD: Tensor, weight_FD: Weight, bias_F: Tensor | None = None) -> Tensor:
        exact = x_TD.dtype == torch.float64 or (torch.is_grad_enabled() and x_TD.requires_grad)
        if not isinstance(weight_FD, Panels) or exact:
            return super().matmul(x_TD, weight_FD, bias_F)
        (T, D), (F, columns) = x_TD.shape, weight_FD.shape
        if columns != D or (bias_F is not None and bias_F.shape != (F,)):
            raise ValueError(f"rows of {D} numbers times a matrix of {F} x {columns}, plus a bias of {None if bias_F is None else tuple(bias_F.shape)}")
        x, out_TF = x_TD.float().contiguous(), torch.empty(T, F)
        bias = None if bias_F is None else bias_F.float().contiguous()
        native.set_threads(n_threads())
        native.matmul(self.variant, weight_FD.format, weight_FD.bytes.data_ptr(), F, D, x.data_ptr(), T, 0 if bias is None else bias.data_ptr(),
                      out_TF.data_ptr())
        return out_TF.to(x_TD.dtype)

    def attend(self, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, **how: Any) -> Tensor:
        if not attention.fits(q_THC, k_SKC, v_SKC):
            return super().attend(q_THC, k_SKC, v_SKC, **how)
        return attention.attend(self.variant, q_THC, k_SKC, v_SKC, **how)

    def attend_pages(self, q_THC: Tensor, k_PNKC: Tensor, v_PNKC: Tensor, pages: Pages, **how: Any) -> Tensor:
        if not attention.fits(q_THC, k_PNKC, v_PNKC):
            return super().attend_pages(q_THC, k_PNKC, v_PNKC, pages, **how)
        return attention.attend_pages(self.variant, q_THC, k_PNKC, v_PNKC, pages, **how)

    def embed(self, weight_VD: Weight, tokens_T: Tensor) -> Tensor:
        if isinstance(weight_VD, Panels):
            return weight_VD.numbers(tokens_T).to(weight_VD.dtype)
        return super().embed(weight_VD, tokens_T)

    def unpack(self, weight_FD: Weight, dtype: torch.dtype) -> Tensor:
        return weight_FD.numbers(torch.arange(weight_FD.rows)).to(dtype) if isinstance(weight_FD, Panels) else super().unpack(weight_FD, dtype)
