"""torch's own fused kernels, where they compute the same thing as the reference."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.ops.reference import Reference, visible

LARGE = 1 << 16  # numbers: above this, torch's rms_norm on a CPU (which makes a tensor for every step) is slower than working in place


class Fused(Reference):
    """The reference with scaled-dot-product attention and fused norms. What has no fused kernel is inherited."""

    name = "fused"

    def describe(self) -> str:
        return "fused: torch's attention and norms · the rest reference"

    def normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *,
                  kind: Literal["rms", "layer"], eps: float, offset: float) -> Tensor:
        if offset or (kind == "rms" and bias is not None):
            return super().normalize(x, weight, bias, kind=kind, eps=eps, offset=offset)
        if weight is not None and weight.ndim > 1:  # one gain a head
            return super().normalize(x, weight, bias, kind=kind, eps=eps, offset=offset)
        if kind == "layer":
            return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        if x.is_cpu and x.numel() >= LARGE and not torch.is_grad_enabled():
            return rms_in_place(x, weight, eps)
        return F.rms_norm(x, x.shape[-1:], weight, eps)

    def attend(self, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, *, q_lengths: Sequence[int], k_lengths: Sequence[int],
               scale: float, window: int | None, softcap: float | None) -> Tensor:
        if softcap is not None:
            return super().attend(q_THC, k_SKC, v_SKC, q_lengths=q_lengths, k_lengths=k_lengths,
                                  scale=scale, window=window, softcap=softcap)
        B, T, S = len(q_lengths), q_lengths[0], k_lengths[0]
        if any(t != T for t in q_lengths) or any(s != S for s in k_lengths):
            # Ragged: row by row, so that a row's arithmetic does not depend on its neighbours' lengths.
            q, k, v = q_THC.split(list(q_lengths)), k_SKC.split(list(k_lengths)), v_SKC.split(list(k_lengths))
            return torch.cat([self.attend(q[b], k[b], v[b], q_lengths=[q_lengths[b]], k_lengths=[k_lengths[b]], scale=scale,
                                          window=window, softcap=None) for b in range(B)])
        q_BHTC, k_BKSC, v_BKSC = (x.unflatten(0, (B, -1)).transpose(1, 2) for x in (q_THC, k_SKC, v_SKC))
        grouped = q_BHTC.shape[1] != k_BKSC.shape[1]
        windowed = window is not None and window < S
        if T == 1 and windowed:
            k_BKSC, v_BKSC, windowed = k_BKSC[:, :, -window:], v_BKSC[:, :, -window:], False  # type: ignore[operator]
        mask_TS = visible(T, S, window, q_THC.device) if windowed or 1 < T < S else None
        out_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask=mask_TS, scale=scale, enable_gqa=grouped,
                                                  is_causal=mask_TS is None and T > 1)
        return out_BHTC.transpose(1, 2).flatten(0, 1)


def rms_in_place(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm in float32 with one temporary; not for autograd, which would miss what was overwritten."""
    y = x.float() if x.dtype != torch.float32 else x.clone()
    size = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    y *= size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    if weight is not None:
        y *= weight
    return y.to(x.dtype)
