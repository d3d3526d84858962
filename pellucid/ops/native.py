"""The CPU's own kernels for packed weights and attention: C++ in ops/cpu, for the best instructions this processor has. The rest is torch's."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import BadRequest
from pellucid.ops import attention
from pellucid.ops.fused import Fused
from pellucid.ops.interface import Activations, Pages, Weight
from pellucid.ops.packed import is_rounded, matmul_packed, rounded
from pellucid.ops.panels import Panels, n_threads, native, why_not
from pellucid.ops.stored import has_product, multiply
from pellucid.weights.group_rows import Reordered
from pellucid.weights.packed_rows import PackedRows, PackedWeight


class Native(Fused):
    """Products of rounded activations (`ops.packed.rounded`) with packed weights that `prepare` has put in panels, and of exact ones with any as stored.

    A row's result does not depend, bitwise, on the rows beside it or on the number of threads, but for long passes that torch is faster at
    (`ops.stored`). variant: a set of instructions, where it is not to be the best one here. Raises BadRequest for one that this processor lacks, or
    where the kernels are not installed.
    """

    name = "native"
    beside_torch = False  # whether products are torch's, as those with dense weights are: set at load

    def __init__(self, activations: Activations = "int8", variant: str | None = None) -> None:
        super().__init__(activations)
        if native is None:
            raise BadRequest(f"ops='native' is not installed ({why_not}). Install a C++ compiler (Debian: apt-get install g++ python3-dev), "
                             f"then Pellucid again; in a checkout, make native", field="ops")
        there = native.variants()
        if variant is not None and variant not in there:
            raise BadRequest(f"variant={variant!r} does not run on this processor ({', '.join(there)})", field="variant")
        self.variant: str = variant or there[0]

    def describe(self) -> str:
        own = [*(() if self._torch_attends() else ("attend",)), "matmul_packed"]
        how = ", int8 activations" if self.activations == "int8" else ""
        return f"{', '.join(own)} native ({self.variant}{how}) · the rest fused, reference"

    def prepared_bytes(self, weight_FD: Weight) -> int:
        if isinstance(weight_FD, Reordered):
            return self.prepared_bytes(weight_FD.rows)
        if self.activations == "exact" or not isinstance(weight_FD, PackedRows) or weight_FD.format not in native.formats():
            return 0
        whole = len(weight_FD.shape) == 2 and all(weight_FD.shape) and weight_FD.device.type == "cpu"
        return int(native.packed_bytes(weight_FD.format, *weight_FD.shape)) if whole else 0

    def prepare(self, weight_FD: Weight, take: Callable[[int], Tensor] | None = None) -> Weight:
        """Packed rows of a format that there are kernels for, in panels; anything else as it is, and everything where activations are exact."""
        if not self.prepared_bytes(weight_FD):
            return weight_FD
        if isinstance(weight_FD, Reordered):
            rows = self.prepare(weight_FD.rows, take)
            assert isinstance(rows, Panels)
            return replace(weight_FD, rows=rows)
        assert isinstance(weight_FD, PackedRows)
        return Panels.of(weight_FD, take)

    def matmul(self, x_TD: Tensor, weight_FD: Weight, bias_F: Tensor | None = None) -> Tensor:
        if has_product(weight_FD, len(x_TD)) and x_TD.dtype != torch.float64:
            assert isinstance(weight_FD, PackedWeight)
            wide_TD = rounded(x_TD) if self.activations == "int8" and is_rounded(x_TD, weight_FD) else x_TD
            return matmul_packed(wide_TD, weight_FD, bias_F, partial(multiply, self.variant)).to(x_TD.dtype)
        if not isinstance(weight_FD, Panels) or not is_rounded(x_TD, weight_FD):
            return super().matmul(x_TD, weight_FD, bias_F)
        (T, D), (F, columns) = x_TD.shape, weight_FD.shape
        if columns != D or (bias_F is not None and bias_F.shape != (F,)):
            raise ValueError(f"rows of {D} numbers times a matrix of {F} x {columns}, plus a bias of {None if bias_F is None else tuple(bias_F.shape)}")
        x_TD, out_TF, dtype = x_TD.float().contiguous(), torch.empty(T, F), x_TD.dtype
        bias = None if bias_F is None else bias_F.float().contiguous()
        native.set_threads(n_threads())
        native.matmul(self.variant, weight_FD.format, weight_FD.bytes.data_ptr(), F, D, x_TD.data_ptr(), T, 0 if bias is None else bias.data_ptr(),
                      out_TF.data_ptr())
        return out_TF.to(dtype)

    def attend(self, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, **how: Any) -> Tensor:
        if self._torch_attends() or not attention.fits(q_THC, k_SKC, v_SKC):
            return super().attend(q_THC, k_SKC, v_SKC, **how)
        return attention.attend(self.variant, q_THC, k_SKC, v_SKC, **how)

    def attend_pages(self, q_THC: Tensor, k_PNKC: Tensor, v_PNKC: Tensor, pages: Pages, **how: Any) -> Tensor:
        if self._torch_attends() or not attention.fits(q_THC, k_PNKC, v_PNKC):
            return super().attend_pages(q_THC, k_PNKC, v_PNKC, pages, **how)
        return attention.attend_pages(self.variant, q_THC, k_PNKC, v_PNKC, pages, **how)

    def _torch_attends(self) -> bool:
        """Whether attention is left to torch, whose threads spin for a while after every product: two pools then want the same cores (docs/LOG.md)."""
        return self.beside_torch and n_threads() > 1
