"""Products with packed weights in torch: rows are unpacked as they are multiplied, a few at a time, and forgotten."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid.ops.unpack import unpack
from pellucid.weights.packed_rows import PackedWeight

BLOCK = 1 << 20  # numbers unpacked at once: 4 MB of float32


def matmul_packed(x_TD: Tensor, weight_FD: PackedWeight, bias_F: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, computed in float32 (float64 for such x) and rounded once to x's dtype. Gradients flow to x and the bias."""
    out_TF: Tensor = _Product.apply(x_TD, weight_FD)
    return (out_TF if bias_F is None else out_TF + bias_F.to(out_TF.dtype)).to(x_TD.dtype)


class _Product(torch.autograd.Function):
    """Keeps the packed weight for the backward pass, where the product of torch would keep it unpacked."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_FD: PackedWeight) -> Tensor:
        ctx.weight, ctx.dtype = weight_FD, x_TD.dtype
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        x_TD = x_TD.to(wide)
        return torch.cat([x_TD @ unpack(part).to(wide).T for part in weight_FD.parts(BLOCK)], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        [grad_TF] = grads
        grad_TD, start = grad_TF.new_zeros(grad_TF.shape[0], ctx.weight.shape[1]), 0
        for part in ctx.weight.parts(BLOCK):
            grad_TD += grad_TF[:, start : start + part.shape[0]] @ unpack(part).to(grad_TF.dtype)
            start += part.shape[0]
        return grad_TD.to(ctx.dtype), None
