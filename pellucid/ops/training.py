"""What training computes besides products, forward and back in one pass over memory each: the CPU's own kernels (C++ in ops/cpu, learn.h) under autograd.

They run on the threads that torch has: work of a second pool, between two of torch's products, would wait for a core (docs/LOG.md).
"""
from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pellucid.ops.fused import Fused
from pellucid.ops.interface import Activations, Weight
from pellucid.ops.panels import n_threads, native
from pellucid.ops.stored import PLAIN, addresses, described, formats
from pellucid.spec import Activation
from pellucid.weights.group_rows import GroupRows
from pellucid.weights.packed_rows import PackedRows, PackedWeight

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
PARTS = 32  # of a norm's rows: each sums the gradient of the weight for itself, so that it is the same on any number of threads
BLOCK = 12 << 20  # numbers unpacked at once: 24 MB of bfloat16, which glibc takes from its heap and not from the system (model/memory.py)
WIDEST = 256  # channels of a head for which attention's blocks fit a core's caches


class Training(Fused):
    """The fused backend with kernels for what products leave over: rms norms, rotation, gates, attention and the loss. What does not fit is inherited.

    variant: a set of instructions, where it is not to be the best one here.
    """

    name = "training"

    def __init__(self, activations: Activations = "exact", variant: str | None = None) -> None:
        super().__init__(activations)
        self.variant: str = "" if native is None else variant or native.variants()[0]
        self.tiles = native is not None and variant in (None, "avx512-amx") and native.learn.attends()

    def describe(self) -> str:
        if native is None:
            return "training: torch's, as no kernels are installed"
        return f"training: {'attend, ' * self.tiles}normalize, rotate, gated, surprise, unpack native ({self.variant}) · the rest fused, reference"

    def matmul(self, x_TD: Tensor, weight_FD: Weight, bias_F: Tensor | None = None) -> Tensor:
        if not (x_TD.dtype in KINDS and isinstance(weight_FD, PackedWeight) and has_kernel(weight_FD) and x_TD.is_cpu and self.activations == "exact"):
            return super().matmul(x_TD, weight_FD, bias_F)
        out_TF: Tensor = _Unpacked.apply(x_TD, weight_FD, bias_F, self.variant)
        return out_TF

    def low_rank(self, y_TF: Tensor, x_TD: Tensor, a_rD: Tensor, b_Fr: Tensor, scale: float) -> Tensor:
        """In the dtype of x and y, whatever a and b are kept in; their gradients are added up in float32 and rounded once to it."""
        if y_TF.dtype != x_TD.dtype:
            return super().low_rank(y_TF, x_TD, a_rD, b_Fr, scale)
        out_TF: Tensor = _LowRank.apply(y_TF, x_TD, a_rD, b_Fr, scale)
        return out_TF

    def normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *,
                  kind: Literal["rms", "layer"], eps: float, offset: float) -> Tensor:
        if kind != "rms" or bias is not None or not fits(x, weight) or (weight is not None and weight.shape != x.shape[-1:]):
            return super().normalize(x, weight, bias, kind=kind, eps=eps, offset=offset)
        out: Tensor = _Normalize.apply(x, weight, eps, offset, self.variant)
        return out

    def rotate(self, x_THC: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, pairing: Literal["half", "adjacent"]) -> Tensor:
        if not fits(x_THC) or cos_TR.dtype != torch.float32 or not cos_TR.is_cpu:
            return super().rotate(x_THC, cos_TR, sin_TR, pairing=pairing)
        out_THC: Tensor = _Rotate.apply(x_THC, cos_TR.contiguous(), sin_TR.contiguous(), pairing == "adjacent", self.variant)
        return out_THC

    def gated(self, gate_TF: Tensor, up_TF: Tensor, act: Activation, *, slope: float = 1.0, limit: float | None = None, up_offset: float = 0.0) -> Tensor:
        if act != "silu" or slope != 1.0 or limit is not None or up_offset or not fits(gate_TF, up_TF) or gate_TF.shape != up_TF.shape:
            return super().gated(gate_TF, up_TF, act, slope=slope, limit=limit, up_offset=up_offset)
        out_TF: Tensor = _Gate.apply(gate_TF, up_TF, self.variant)
        return out_TF

    def attend(self, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, *, q_lengths: Sequence[int], k_lengths: Sequence[int],
               scale: float, window: int | None, softcap: float | None, chunk: int | None = None, sinks_H: Tensor | None = None,
               slopes_H: Tensor | None = None, causal: bool = True) -> Tensor:
        plain = causal and softcap is None and chunk is None and sinks_H is None and slopes_H is None and scale > 0
        whole = tuple(q_lengths) == tuple(k_lengths) and sum(q_lengths) == len(q_THC) == len(k_SKC) == len(v_SKC)
        bf16 = q_THC.dtype == k_SKC.dtype == v_SKC.dtype == torch.bfloat16 and q_THC.is_cpu
        narrow = q_THC.shape[-1] == k_SKC.shape[-1] <= WIDEST and v_SKC.shape[-1] <= WIDEST and len(q_THC) > 0
        if not (self.tiles and plain and whole and bf16 and narrow):
            return super().attend(q_THC, k_SKC, v_SKC, q_lengths=q_lengths, k_lengths=k_lengths, scale=scale, window=window, softcap=softcap, chunk=chunk,
                                  sinks_H=sinks_H, slopes_H=slopes_H, causal=causal)
        out_THC: Tensor = _Attend.apply(q_THC, k_SKC, v_SKC, list(q_lengths), scale, window or 0)
        return out_THC

    def surprise(self, logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        if not fits(logits_NV) or not logits_NV.is_contiguous():
            return super().surprise(logits_NV, target_N)
        (N, V), out_N = logits_NV.shape, logits_NV.new_empty(len(logits_NV), dtype=torch.float32)
        target_N = target_N.contiguous()
        if target_N.shape != (N,) or target_N.dtype != torch.int64 or not 0 <= int(target_N.min()) <= int(target_N.max()) < V:
            raise ValueError(f"targets are {N} whole numbers below {V}, got {tuple(target_N.shape)} of {target_N.dtype}")
        native.learn.surprise(self.variant, KINDS[logits_NV.dtype], logits_NV.data_ptr(), target_N.data_ptr(), N, V, out_N.data_ptr(), *threads())
        return out_N, logits_NV


class _Unpacked(torch.autograd.Function):
    """A product with a packed weight, unpacked block by block for torch's own products and forgotten: their tiles are worth more than the memory."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_FD: PackedWeight, bias_F: Tensor | None, variant: str) -> Tensor:
        ctx.weight, ctx.variant = weight_FD, variant
        parts = [x_TD @ unpacked(part, x_TD.dtype, variant).T for part in weight_FD.parts(BLOCK)]
        out_TF = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return out_TF if bias_F is None else out_TF.add_(bias_F)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        [by_TF], by_TD, start = grads, None, 0
        for part in ctx.weight.parts(BLOCK) if ctx.needs_input_grad[0] else ():
            by_Tn, numbers_nD = by_TF[:, start : start + part.shape[0]], unpacked(part, by_TF.dtype, ctx.variant)
            by_TD = by_Tn @ numbers_nD if by_TD is None else by_TD.addmm_(by_Tn, numbers_nD)
            start += part.shape[0]
        return by_TD, None, by_TF.sum(0) if ctx.needs_input_grad[2] else None, None


class _LowRank(torch.autograd.Function):
    """y + scale * (x A') B', in y's place: no other tensor of y's size is made."""

    @staticmethod
    def forward(ctx: Any, y_TF: Tensor, x_TD: Tensor, a_rD: Tensor, b_Fr: Tensor, scale: float) -> Tensor:
        a_rD, b_Fr = a_rD.to(x_TD.dtype), b_Fr.to(x_TD.dtype)
        u_Tr = (x_TD @ a_rD.T).mul_(scale)
        ctx.mark_dirty(y_TF)
        ctx.save_for_backward(x_TD, a_rD, b_Fr, u_Tr)
        ctx.scale = scale
        return y_TF.addmm_(u_Tr, b_Fr.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_TD, a_rD, b_Fr, u_Tr), by_TF = ctx.saved_tensors, grads[0]
        by_u_Tr, asked = (by_TF @ b_Fr).mul_(ctx.scale), ctx.needs_input_grad
        return (by_TF, by_u_Tr @ a_rD if asked[1] else None, by_u_Tr.T @ x_TD if asked[2] else None, by_TF.T @ u_Tr if asked[3] else None, None)


class _Normalize(torch.autograd.Function):
    """An rms norm. One number a row is kept beside what came in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float, offset: float, variant: str) -> Tensor:
        x, weight = x.contiguous(), None if weight is None else weight.contiguous()
        D = x.shape[-1]
        y, inverse = torch.empty_like(x), x.new_empty(x.numel() // D, dtype=torch.float32)
        native.learn.normalize(variant, KINDS[x.dtype], x.data_ptr(), pointer(weight), len(inverse), D, eps, offset, y.data_ptr(), inverse.data_ptr(),
                               *threads())
        ctx.save_for_backward(x, weight, inverse)
        ctx.how = eps, offset, variant
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight, inverse), (eps, offset, variant) = ctx.saved_tensors, ctx.how
        by_y, by_x, D = grads[0].contiguous(), torch.empty_like(x), x.shape[-1]
        parts = torch.zeros(PARTS, D) if ctx.needs_input_grad[1] else None
        native.learn.normalize_back(variant, KINDS[x.dtype], x.data_ptr(), pointer(weight), len(inverse), D, eps, offset, by_y.data_ptr(), inverse.data_ptr(),
                                    by_x.data_ptr(), pointer(parts), PARTS, *threads())
        return by_x, None if parts is None else parts.sum(0).to(weight.dtype), None, None, None


class _Rotate(torch.autograd.Function):
    """Queries or keys turned; their gradients turn back."""

    @staticmethod
    def forward(ctx: Any, x_THC: Tensor, cos_TR: Tensor, sin_TR: Tensor, adjacent: bool, variant: str) -> Tensor:
        ctx.save_for_backward(cos_TR, sin_TR)
        ctx.how = adjacent, variant
        return _turned(x_THC, cos_TR, sin_TR, adjacent, False, variant)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        adjacent, variant = ctx.how
        return _turned(grads[0], *ctx.saved_tensors, adjacent, True, variant), None, None, None, None


def _turned(x_THC: Tensor, cos_TR: Tensor, sin_TR: Tensor, adjacent: bool, back: bool, variant: str) -> Tensor:
    x_THC = x_THC.contiguous()
    (T, H, C), R = x_THC.shape, cos_TR.shape[-1]
    if cos_TR.shape != (T, R) or sin_TR.shape != (T, R) or R > C or R % 2:
        raise ValueError(f"{tuple(x_THC.shape)} does not turn by cosines {tuple(cos_TR.shape)} and sines {tuple(sin_TR.shape)}")
    out_THC = torch.empty_like(x_THC)
    native.learn.rotate(variant, KINDS[x_THC.dtype], x_THC.data_ptr(), cos_TR.data_ptr(), sin_TR.data_ptr(), T, H, C, R, adjacent, back, out_THC.data_ptr(),
                        *threads())
    return out_THC


class _Gate(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, variant: str) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        ctx.variant, out = variant, torch.empty_like(gate)
        native.learn.gate(variant, KINDS[gate.dtype], gate.data_ptr(), up.data_ptr(), gate.numel(), out.data_ptr(), 0, 0, 0, *threads())
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        by_out, by_gate, by_up = grads[0].contiguous(), torch.empty_like(gate), torch.empty_like(up)
        native.learn.gate(ctx.variant, KINDS[gate.dtype], gate.data_ptr(), up.data_ptr(), gate.numel(), 0, by_out.data_ptr(), by_gate.data_ptr(),
                          by_up.data_ptr(), *threads())
        return by_gate, by_up, None


class _Attend(torch.autograd.Function):
    """Causal attention inside each row. One number a query and head is kept beside what came in and goes out; scores are made again."""

    @staticmethod
    def forward(ctx: Any, q_THC: Tensor, k_TKC: Tensor, v_TKV: Tensor, lengths: list[int], scale: float, window: int) -> Tensor:
        q_THC, k_TKC, v_TKV = q_THC.contiguous(), k_TKC.contiguous(), v_TKV.contiguous()
        (T, H, C), (_, K, V) = q_THC.shape, v_TKV.shape
        out_THV, sums_TH = q_THC.new_empty(T, H, V), q_THC.new_empty(T, H, dtype=torch.float32)
        if k_TKC.shape != (T, K, C) or v_TKV.shape[0] != T or H % K:
            raise ValueError(f"queries {tuple(q_THC.shape)} do not go with keys {tuple(k_TKC.shape)} and values {tuple(v_TKV.shape)}")
        ctx.how = lengths, H, K, C, V, scale, window
        native.learn.attend(*(x.data_ptr() for x in (q_THC, k_TKC, v_TKV, out_THV, sums_TH)), *ctx.how, 0, 0, 0, 0, *threads())
        ctx.save_for_backward(q_THC, k_TKC, v_TKV, out_THV, sums_TH)
        return out_THV

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_out, kept = grads[0].contiguous(), ctx.saved_tensors
        found = [torch.empty_like(x) for x in kept[:3]]
        native.learn.attend(*(x.data_ptr() for x in kept), *ctx.how, by_out.data_ptr(), *(x.data_ptr() for x in found), *threads())
        return *found, None, None, None


def fits(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take these: installed, on the CPU, numbers of one kind that they know, and some of them."""
    return native is not None and x.is_cpu and x.dtype in KINDS and x.numel() > 0 and all(o is None or (o.is_cpu and o.dtype == x.dtype) for o in others)


def has_kernel(weight_FD: PackedWeight) -> bool:
    """Whether there is a kernel that unpacks this weight, as it is stored on this CPU."""
    there = isinstance(weight_FD, GroupRows) or (isinstance(weight_FD, PackedRows) and weight_FD.format in formats() - {*PLAIN})
    return native is not None and there and len(weight_FD.shape) == 2 and all(weight_FD.shape) and weight_FD.device.type == "cpu"


def unpacked(weight_FD: PackedWeight, dtype: torch.dtype, variant: str) -> Tensor:
    """All its numbers, (F, D), rounded once."""
    facts, out_FD = described(weight_FD), torch.empty(weight_FD.shape, dtype=dtype)
    native.learn.unpack(variant, KINDS[dtype], *addresses(facts), out_FD.data_ptr(), *threads())
    return out_FD


def pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def threads() -> tuple[int, int]:
    """Whose threads the kernels run on, and how many."""
    if not (parallel := torch_parallel()):
        native.set_threads(n_threads())
    return parallel, n_threads()


@cache
def torch_parallel() -> int:
    """The address of GOMP_parallel in the libgomp that torch works with, which lies beside it; 0 where it works with another library."""
    maps, own = Path("/proc/self/maps"), str(Path(torch.__file__).parent)
    found = sorted(set(re.findall(r"/\S*/libgomp[\w.-]*", maps.read_text())), key=lambda path: not path.startswith(own)) if maps.exists() else []
    if not found or not (found[0].startswith(own) or len(found) == 1):
        return 0
    library = ctypes.CDLL(found[0], mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
