"""Attention by the CPU's own kernels, where there are any: C++ in ops/cpu/attend.h, over keys and values wherever they lie."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from pellucid.ops.interface import Pages
from pellucid.ops.panels import n_threads, native

KINDS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def fits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels take these: on the CPU, queries of a kind that they know, keys and values of one, and none wants a gradient."""
    asked = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return not asked and q.dtype in KINDS and k.dtype in KINDS and k.dtype == v.dtype and q.is_cpu and k.is_cpu and v.is_cpu


def attend(variant: str, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, *, q_lengths: Sequence[int], k_lengths: Sequence[int], **how: object) -> Tensor:
    """See `Ops.attend`: keys and values that lie one after another are one page, in which every row begins somewhere."""
    fewer = any(t > n for t, n in zip(q_lengths, k_lengths, strict=True))
    if fewer or sum(q_lengths) != len(q_THC) or not len(k_SKC) == len(v_SKC) == sum(k_lengths):
        raise ValueError(f"rows of {sum(q_lengths)} queries and {sum(k_lengths)} keys, and {len(q_THC)} and {len(k_SKC)} are there ({len(v_SKC)} values)")
    starts, queries = (list(accumulate(lengths, initial=0)) for lengths in (k_lengths, q_lengths))
    rows = [(0, -start, 0, n, t, first) for start, n, t, first in zip(starts, k_lengths, q_lengths, queries, strict=False)]
    return _run(variant, q_THC, k_SKC[None], v_SKC[None], torch.tensor(rows).view(-1, 6), torch.zeros(1, dtype=torch.int32), **how)


def attend_pages(variant: str, q_THC: Tensor, k_PNKC: Tensor, v_PNKC: Tensor, pages: Pages, **how: object) -> Tensor:
    """See `Ops.attend_pages`."""
    rows_B6, tables = pages.flat
    if sum(pages.q_lengths) != len(q_THC) or pages.size != k_PNKC.shape[1] or (len(tables) and not 0 <= pages.last < len(k_PNKC)):
        raise ValueError(f"{sum(pages.q_lengths)} queries, pages of {pages.size} up to number {pages.last}, and there are {len(q_THC)} and "
                         f"{len(k_PNKC)} of {k_PNKC.shape[1]}")
    return _run(variant, q_THC, k_PNKC, v_PNKC, rows_B6, tables, **how)


def _run(variant: str, q_THC: Tensor, k_PNKC: Tensor, v_PNKC: Tensor, rows_B6: Tensor, tables: Tensor, *, scale: float, window: int | None,
         softcap: float | None, chunk: int | None = None, sinks_H: Tensor | None = None, slopes_H: Tensor | None = None, causal: bool = True) -> Tensor:
    (T, H, C), (P, N, K, _), V = q_THC.shape, k_PNKC.shape, v_PNKC.shape[-1]
    if k_PNKC.shape != (P, N, K, C) or v_PNKC.shape != (P, N, K, V) or not K or H % K:
        raise ValueError(f"queries {tuple(q_THC.shape)} do not go with keys {tuple(k_PNKC.shape)} and values {tuple(v_PNKC.shape)}")
    if any(x is not None and x.shape != (H,) for x in (sinks_H, slopes_H)):
        raise ValueError(f"sinks and slopes are one number for each of {H} heads")
    sinks_H, slopes_H = (None if x is None else x.float().contiguous() for x in (sinks_H, slopes_H))
    q_THC, k_PNKC, v_PNKC = q_THC.contiguous(), k_PNKC.contiguous(), v_PNKC.contiguous()
    out_THV = q_THC.new_empty(T, H, V)
    native.set_threads(n_threads())
    native.attend(variant, q_THC.data_ptr(), k_PNKC.data_ptr(), v_PNKC.data_ptr(), out_THV.data_ptr(), KINDS[q_THC.dtype], KINDS[k_PNKC.dtype],
                  rows_B6.data_ptr(), len(rows_B6), tables.data_ptr(), N, H, K, C, V, scale, softcap or 0.0, window or 0, chunk or 0,
                  0 if sinks_H is None else sinks_H.data_ptr(), 0 if slopes_H is None else slopes_H.data_ptr(), causal)
    return out_THV
