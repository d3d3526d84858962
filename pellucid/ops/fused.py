"""torch's own fused kernels, where they compute the same thing as the reference."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.ops.interface import Pages, Weight
from pellucid.ops.reference import Reference, falling, visible
from pellucid.spec import Activation
from pellucid.weights.packed_rows import PackedWeight

BLOCK = 256  # queries: so many at a time where each head has a bias of its own, and the tensor of biases would outgrow the rest
FEW = 8  # up to a row for so many of a weight's columns, turning the result around costs less than it saves: docs/LOG.md
LARGE = 1 << 16  # numbers: above this, torch's rms_norm on a CPU (which makes a tensor for every step) is slower than working in place


class Fused(Reference):
    """The reference with scaled-dot-product attention and fused norms. What has no fused kernel is inherited."""

    name = "fused"

    def describe(self) -> str:
        return "fused: torch's attention and norms · the rest reference"

    def matmul(self, x_TD: Tensor, weight_FD: Weight, bias_F: Tensor | None = None) -> Tensor:
        if isinstance(weight_FD, PackedWeight):
            return super().matmul(x_TD, weight_FD, bias_F)
        T, D = x_TD.shape
        if not (0 < T <= max(1, D // FEW) and x_TD.is_cpu and x_TD.dtype == weight_FD.dtype == torch.bfloat16 and not torch.is_grad_enabled()):
            return super().matmul(x_TD, weight_FD, bias_F)
        # Few rows: a bfloat16 weight is read 1.2 to 1.6 times as fast as the first factor of a product as it is as the second. docs/LOG.md
        if T == 1:
            return (torch.mv(weight_FD, x_TD[0]) if bias_F is None else torch.addmv(bias_F, weight_FD, x_TD[0]))[None]
        out_FT = torch.mm(weight_FD, x_TD.T) if bias_F is None else torch.addmm(bias_F[:, None], weight_FD, x_TD.T)
        return out_FT.T.contiguous()

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

    def rotate(self, x_THC: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, pairing: Literal["half", "adjacent"]) -> Tensor:
        R = cos_TR.shape[-1]
        if pairing != "half" or x_THC.shape[-1] != R or torch.is_grad_enabled():
            return super().rotate(x_THC, cos_TR, sin_TR, pairing=pairing)
        x_THR = x_THC.float()
        turned_THR = x_THR.roll(R // 2, -1).mul_(sin_TR[:, None]).addcmul_(x_THR, cos_TR[:, None])  # 0.6 times the time of a tensor for each step
        return turned_THR.to(x_THC.dtype)

    def gated(self, gate_TF: Tensor, up_TF: Tensor, act: Activation, *, slope: float = 1.0, limit: float | None = None, up_offset: float = 0.0) -> Tensor:
        if act != "silu" or slope != 1.0 or limit is not None or up_offset or torch.is_grad_enabled():
            return super().gated(gate_TF, up_TF, act, slope=slope, limit=limit, up_offset=up_offset)
        return F.silu(gate_TF).mul_(up_TF)

    def attend(self, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, *, q_lengths: Sequence[int], k_lengths: Sequence[int],
               scale: float, window: int | None, softcap: float | None, chunk: int | None = None, sinks_H: Tensor | None = None,
               slopes_H: Tensor | None = None, causal: bool = True) -> Tensor:
        how: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap, "chunk": chunk, "sinks_H": sinks_H, "slopes_H": slopes_H}
        k_SKC, v_SKC = k_SKC.to(q_THC.dtype), v_SKC.to(q_THC.dtype)
        if softcap is not None or not causal:
            return super().attend(q_THC, k_SKC, v_SKC, q_lengths=q_lengths, k_lengths=k_lengths, **how, causal=causal)
        B, T, S = len(q_lengths), q_lengths[0], k_lengths[0]
        many = slopes_H is not None and T > BLOCK
        if any(t != T for t in q_lengths) or any(s != S for s in k_lengths) or (many and B > 1):
            # Ragged: row by row, so that a row's arithmetic does not depend on its neighbours' lengths.
            q, k, v = q_THC.split(list(q_lengths)), k_SKC.split(list(k_lengths)), v_SKC.split(list(k_lengths))
            return torch.cat([self.attend(q[b], k[b], v[b], q_lengths=[q_lengths[b]], k_lengths=[k_lengths[b]], **how) for b in range(B)])
        if many:
            seen = [S - T + min(start + BLOCK, T) for start in range(0, T, BLOCK)]  # keys up to the last query of each block
            return torch.cat([self.attend(q, k_SKC[:n], v_SKC[:n], q_lengths=[len(q)], k_lengths=[n], **how)
                              for q, n in zip(q_THC.split(BLOCK), seen, strict=True)])
        if slopes_H is not None and not q_THC.is_cpu and q_THC.dtype != torch.float32:
            # Off the CPU torch wants a bias in the queries' own dtype, and half precision is too coarse for one.
            return super().attend(q_THC, k_SKC, v_SKC, q_lengths=q_lengths, k_lengths=k_lengths, **how)
        q_BHTC, k_BKSC, v_BKSC = (x.unflatten(0, (B, -1)).transpose(1, 2) for x in (q_THC, k_SKC, v_SKC))
        narrow = min(x for x in (window, chunk, S) if x is not None) < S
        if T == 1 and narrow:
            first = max(0 if window is None else S - window, 0 if chunk is None else (S - 1) // chunk * chunk)
            k_BKSC, v_BKSC, narrow = k_BKSC[:, :, first:], v_BKSC[:, :, first:], False
        if T == 1 and sinks_H is not None and q_THC.is_cpu:
            # A sink would cost a copy of all keys and values: for one query the scores, written out, are a fifth of it in float32.
            k_SKC, v_SKC = (x.transpose(1, 2).flatten(0, 1) for x in (k_BKSC, v_BKSC))
            return super().attend(q_THC, k_SKC, v_SKC, q_lengths=q_lengths, k_lengths=[k_BKSC.shape[2]] * B, **how | {"window": None, "chunk": None})
        mask = visible(T, S, window, chunk, q_THC.device) if narrow or 1 < T < S or (T > 1 and (sinks_H is not None or slopes_H is not None)) else None
        if slopes_H is not None:
            bias_HTS = falling(slopes_H, T, k_BKSC.shape[2])
            mask = (bias_HTS if mask is None else bias_HTS.masked_fill_(~mask, -torch.inf))[None]  # without a row axis torch takes a slow path
        if sinks_H is not None:
            q_BHTC, k_BKSC, v_BKSC = with_sink(q_BHTC, k_BKSC, v_BKSC, sinks_H / scale)
            mask = None if mask is None else F.pad(mask, (1, 0), value=slopes_H is None)  # seen, or a bias of zero
        out_BHTC = scaled_dot_product(q_BHTC, k_BKSC, v_BKSC, mask, scale)[..., : v_SKC.shape[-1]]
        return out_BHTC.transpose(1, 2).flatten(0, 1)

    def attend_pages(self, q_THC: Tensor, k_PNKC: Tensor, v_PNKC: Tensor, pages: Pages, *, scale: float, window: int | None, softcap: float | None,
                     chunk: int | None = None, sinks_H: Tensor | None = None, slopes_H: Tensor | None = None, causal: bool = True) -> Tensor:
        assert causal, "rows whose tokens see what follows them are computed whole, without pages"
        how: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap, "chunk": chunk, "sinks_H": sinks_H, "slopes_H": slopes_H}
        single, rest = pages.by_queries
        if single is None or len(single.tables) == 1 or softcap is not None or (slopes_H is not None and not q_THC.is_cpu and q_THC.dtype != torch.float32):
            return super().attend_pages(q_THC, k_PNKC, v_PNKC, pages, **how)
        n, decoded_THC = len(single.tables), decode(q_THC[: len(single.tables)], k_PNKC, v_PNKC, single, scale, window, sinks_H, slopes_H)
        return decoded_THC if rest is None else torch.cat([decoded_THC, super().attend_pages(q_THC[n:], k_PNKC, v_PNKC, rest, **how)])


def decode(q_BHC: Tensor, k_PNKC: Tensor, v_PNKC: Tensor, pages: Pages, scale: float, window: int | None, sinks_H: Tensor | None,
           slopes_H: Tensor | None) -> Tensor:
    """One query a row: rows of similar length are padded to one length and computed together. A chunk's keys begin with the chunk."""
    out_BHC = q_BHC.new_empty(*q_BHC.shape[:2], v_PNKC.shape[-1])
    for row_B, pages_Bn, back_BS in pages.batches:
        seen_BS = (back_BS <= 0) if window is None else (back_BS <= 0) & (back_BS > -window)
        mask = seen_BS[:, None, None]
        if slopes_H is not None:
            mask = (slopes_H.float()[:, None, None] * back_BS[:, None, None]).masked_fill_(~mask, -torch.inf)
        q_BHTC = q_BHC[row_B][:, :, None]
        k_BKSC, v_BKSC = (pages.padded(x, pages_Bn, name).to(q_BHC.dtype).transpose(1, 2) for x, name in ((k_PNKC, "keys"), (v_PNKC, "values")))
        if sinks_H is not None:
            q_BHTC, k_BKSC, v_BKSC = with_sink(q_BHTC, k_BKSC, v_BKSC, sinks_H / scale)
            mask = F.pad(mask, (1, 0), value=slopes_H is None)
        out_BHC[row_B] = scaled_dot_product(q_BHTC, k_BKSC, v_BKSC, mask, scale)[:, :, 0, : v_PNKC.shape[-1]]
    return out_BHC


def scaled_dot_product(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """torch's kernel, causal where there is no mask. The one query of a decoding row becomes G queries of each of K heads, up to 5 times as fast."""
    (B, H, T, C), K = q_BHTC.shape, k_BKSC.shape[1]
    if mask is not None and mask.dtype != torch.bool and q_BHTC.dtype == torch.float64:
        mask = mask.double()  # float32 beside float64 is read as something else, without an error: torch 2.13.0, 40 queries
    if T > 1 or H == K:
        return F.scaled_dot_product_attention(q_BHTC, k_BKSC, v_BKSC, attn_mask=mask, scale=scale, enable_gqa=H != K, is_causal=mask is None and T > 1)
    if mask is not None and mask.shape[1] == H:
        mask = mask.reshape(mask.shape[0], K, H // K, -1)
    out_BKGC = F.scaled_dot_product_attention(q_BHTC.reshape(B, K, H // K, C), k_BKSC, v_BKSC, attn_mask=mask, scale=scale)
    return out_BKGC.reshape(B, H, 1, -1)


def with_sink(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, sinks_H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with one more key before the others, whose value is zero and whose product with head h's queries is sinks_H[h].

    It needs a channel of its own, and kernels want widths in eights: the other seven are zeros.
    """
    B, H, T, _ = q_BHTC.shape
    sink_BHT8 = F.pad(sinks_H.to(q_BHTC.dtype).view(1, H, 1, 1).expand(B, H, T, 1), (0, 7))
    k_BKSC, v_BKSC, C = F.pad(k_BKSC, (0, 8, 1, 0)), F.pad(v_BKSC, (0, 8, 1, 0)), q_BHTC.shape[-1]
    k_BKSC[:, :, 0, C] = 1
    return torch.cat([q_BHTC, sink_BHT8], -1), k_BKSC, v_BKSC


def rms_in_place(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm in float32 with one temporary; not for autograd, which would miss what was overwritten."""
    y = x.float() if x.dtype != torch.float32 else x.clone()
    size = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    y *= size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    if weight is not None:
        y *= weight
    return y.to(x.dtype)
