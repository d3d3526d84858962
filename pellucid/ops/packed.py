"""Products with packed weights in torch: rows are unpacked as they are multiplied, a few at a time, and forgotten.

What they are multiplied by is the activations, or, under activations="int8", what `rounded` makes of them: then products are sums of whole numbers,
which processors add up many times faster (ops/cpu). The weights mean the same numbers in both.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.ops.panels import Panels
from pellucid.ops.unpack import unpack
from pellucid.weights.group_rows import inner
from pellucid.weights.packed_rows import PackedRows, PackedWeight

if TYPE_CHECKING:
    from pellucid.ops.interface import Activations

Product = Callable[[Tensor, PackedWeight], Tensor]  # x (T, D) of float32 or float64, weight (F, D) -> (T, F)
BLOCK = 1 << 20  # numbers unpacked at once: 4 MB of float32
GROUP = 32  # activations that share a scale
# The formats that are small whole numbers times a scale, for which there are kernels: the others' products would be no faster for rounding.
WHOLE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
LEAST = 2.0**-100  # a group of smaller numbers counts as zeros: an inverse might not be finite


def is_whole(weight_FD: Tensor | PackedWeight) -> bool:
    """Whether int8 activations apply to products with this weight."""
    rows = inner(weight_FD) if isinstance(weight_FD, PackedWeight) else weight_FD
    return isinstance(rows, PackedRows | Panels) and rows.format in WHOLE


def is_rounded(x_TD: Tensor, weight_FD: PackedWeight) -> bool:
    """Whether these activations are rounded for this weight, under int8: never where a gradient is wanted or float64 is computed with."""
    exact = x_TD.dtype == torch.float64 or (torch.is_grad_enabled() and x_TD.requires_grad)
    return not exact and is_whole(weight_FD)


def rounded(x_TD: Tensor) -> Tensor:
    """Each group of 32 numbers of a row as whole numbers between -127 and 127, ties to even, times their largest size / 127: float32, (T, D).

    A group that is not finite becomes NaN, so that what it touches is one too.
    """
    x = x_TD.float().unflatten(-1, (-1, GROUP))
    most = x.abs().amax(-1, keepdim=True)
    factor = most.new_tensor(127).div(most)  # 127 / most is 127 times an inverse in torch, rounded twice
    whole = (x * factor).round().where(most >= LEAST, 0)
    return (whole * (most / 127)).where(most.isfinite(), torch.nan).flatten(-2)


def left_over(x_TD: Tensor, weight_FD: Tensor | PackedWeight, activations: Activations) -> Tensor | None:
    """What `rounded` takes from these activations; None where it takes nothing, or is not asked. Multiplied as well, it makes 8 bits 15."""
    if activations == "exact" or not isinstance(weight_FD, PackedWeight) or not is_rounded(x_TD, weight_FD):
        return None
    return x_TD.float() - rounded(x_TD)


def in_parts(x_TD: Tensor, weight_FD: PackedWeight) -> Tensor:
    """x @ weight.T in x's dtype, a few of the weight's rows at a time."""
    return torch.cat([x_TD @ unpack(part).to(x_TD.dtype).T for part in weight_FD.parts(BLOCK)], -1)


def matmul_packed(x_TD: Tensor, weight_FD: PackedWeight, bias_F: Tensor | None = None, product: Product = in_parts) -> Tensor:
    """x @ weight.T + bias, computed in float32 (float64 for such x) and rounded once to x's dtype. Gradients flow to x and the bias."""
    out_TF: Tensor = _Product.apply(x_TD, weight_FD, product)
    return (out_TF if bias_F is None else out_TF + bias_F.to(out_TF.dtype)).to(x_TD.dtype)


class _Product(torch.autograd.Function):
    """Keeps the packed weight for the backward pass, where the product of torch would keep it unpacked."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_FD: PackedWeight, product: Product) -> Tensor:
        ctx.weight, ctx.dtype = weight_FD, x_TD.dtype
        return product(x_TD.to(torch.promote_types(x_TD.dtype, torch.float32)), weight_FD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        [grad_TF] = grads
        grad_TD, start = grad_TF.new_zeros(grad_TF.shape[0], ctx.weight.shape[1]), 0
        for part in ctx.weight.parts(BLOCK):
            grad_TD += grad_TF[:, start : start + part.shape[0]] @ unpack(part).to(grad_TF.dtype)
            start += part.shape[0]
        return grad_TD.to(ctx.dtype), None, None
