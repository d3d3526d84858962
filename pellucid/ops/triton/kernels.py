"""Packed matrices times rows on a GPU: weights are read as they are packed, made codes in registers, and no unpacked one is ever stored.

Two kernels. `vector` multiplies one row: sums of products, several groups of columns at once. `tiles` multiplies more, group by group on the units for
matrix products. In both the columns may be shared out over several programs, whose sums are added up afterwards, always in the same order.

A group's sum is one of codes times activations, in float32; the scale multiplies that sum. No weight is rounded, to whatever dtype activations are in.
Not timed on a GPU yet: the sizes of tiles are guesses from the sizes of registers and caches.
"""
from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pellucid.ops.codebooks import IQ4
from pellucid.ops.triton.formats import FORMATS, SHIFTED, codes, scale, shift
from pellucid.weights.group_rows import GroupRows
from pellucid.weights.packed_rows import PackedRows

COLUMNS = 32  # of matrices in groups, multiplied at once
ROWS_1, COLUMNS_1 = 8, 512  # of a tile in `vector`: 4,096 numbers, 32 a thread of 4 warps
ROWS_T, COLUMNS_T = 64, 256  # of a tile in `tiles`, and the fewest columns that a program is given
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}  # said, because Triton 3.9 warns where it is not that its default will change
PROGRAMS = 4  # a multiprocessor, so that one waits for memory while another computes: fewer, and the columns are shared out
INTERPRETED = 8  # multiprocessors that Triton's interpreter, which has none, is taken for: enough for columns to be shared out


@triton.jit
def group_facts(w, scales, zeros, f, g, row_bytes, n_scales, BYTES: tl.constexpr, EACH: tl.constexpr, FORMAT: tl.constexpr, RUN: tl.constexpr,
                ZEROS: tl.constexpr):
    """Of group g of row f: where its block begins, its number in it, its scale, and the code that means zero."""
    at = w + f.to(tl.int64) * row_bytes + g // EACH * BYTES
    if FORMAT == "groups":
        place = f.to(tl.int64) * n_scales + g * 32 // RUN
        zero = tl.load(zeros + place).to(tl.float32) if ZEROS else 0.0
        return at, g % EACH, tl.load(scales + place).to(tl.float32), zero
    else:
        return at, g % EACH, scale(at, g % EACH, FORMAT), 0.0


@triton.jit
def numbers(at, book, g, c, zero, ZERO: tl.constexpr, inside, FORMAT: tl.constexpr, WIDTH: tl.constexpr, BOOK: tl.constexpr, SIGNED: tl.constexpr):
    """Codes, float32. inside: which columns there are, where the last group is cut short."""
    if FORMAT == "groups":
        b = tl.load(at + c * WIDTH // 8, mask=inside, other=0).to(tl.int32)
        code = b >> c * WIDTH % 8 & (1 << WIDTH) - 1
        if BOOK:
            return tl.load(book + code) - zero
        else:
            value = tl.where(code > 127, code - 256, code) if SIGNED else code
            return value.to(tl.float32) - ZERO - zero
    else:
        return codes(at, book, g, c, FORMAT).to(tl.float32)


@triton.jit
def vector(x, w, scales, zeros, book, out, D, F, row_bytes, n_scales, n_groups, n_here, SIZE: tl.constexpr, EACH: tl.constexpr, BYTES: tl.constexpr,
           FORMAT: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, RUN: tl.constexpr, BOOK: tl.constexpr, SIGNED: tl.constexpr,
           ZEROS: tl.constexpr, ZERO: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """out[s, f] = x . number[f] over n_here groups of columns; program (f tile, s)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    f = tl.minimum(rows, F - 1)[:, None]  # past the end the last row is read again, and not stored
    first = tl.program_id(1) * n_here
    last = tl.minimum(first + n_here, n_groups)
    c = tl.arange(0, SIZE)[None, None, :]
    sums = tl.zeros((ROWS, GROUPS), tl.float32)
    for start in range(first, last, GROUPS):
        group = start + tl.arange(0, GROUPS)[None, :]
        there = group < last
        at, g, scale_FG, zero = group_facts(w, scales, zeros, f, tl.minimum(group, last - 1), row_bytes, n_scales, BYTES, EACH, FORMAT, RUN, ZEROS)
        column = group[:, :, None] * SIZE + c
        inside = there[:, :, None] & (column < D)
        x_GC = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        zero = zero[:, :, None] if ZEROS else zero
        code_FGC = numbers(at[:, :, None], book, g[:, :, None], c, zero, ZERO, inside, FORMAT, WIDTH, BOOK, SIGNED)
        part = tl.sum(code_FGC * x_GC, 2) * scale_FG
        if SHIFT:
            part += tl.sum(x_GC, 2) * shift(at, g, FORMAT)
        sums += tl.where(there, part, 0.0)
    tl.store(out + tl.program_id(1).to(tl.int64) * F + rows, tl.sum(sums, 1), mask=rows < F)


@triton.jit
def tiles(x, w, scales, zeros, book, out, T, D, F, row_bytes, n_scales, n_groups, n_here, SIZE: tl.constexpr, EACH: tl.constexpr, BYTES: tl.constexpr,
          FORMAT: tl.constexpr, SHIFT: tl.constexpr, WIDTH: tl.constexpr, RUN: tl.constexpr, BOOK: tl.constexpr, SIGNED: tl.constexpr,
          ZEROS: tl.constexpr, ZERO: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr):
    """out[s, t, f] = x[t] . number[f] over n_here groups of columns; program (f tile, t tile, s). WIDE: multiplied as float32."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    f = tl.minimum(rows, F - 1)
    first = tl.program_id(2) * n_here
    c = tl.arange(0, SIZE)
    x_T = x + t.to(tl.int64)[:, None] * D
    sums = tl.zeros((TOKENS, ROWS), tl.float32)
    for group in range(first, tl.minimum(first + n_here, n_groups)):
        at, g, scale_F, zero = group_facts(w, scales, zeros, f, group, row_bytes, n_scales, BYTES, EACH, FORMAT, RUN, ZEROS)
        column = group * SIZE + c
        inside = column < D
        x_TC = tl.load(x_T + column[None, :], mask=(t < T)[:, None] & inside[None, :], other=0.0)
        zero = zero[None, :] if ZEROS else zero
        code_CF = numbers(at[None, :], book, g, c[:, None], zero, ZERO, inside[:, None], FORMAT, WIDTH, BOOK, SIGNED)
        if WIDE:  # three products of eleven bits each: float32 but for its last two
            sums += tl.dot(x_TC.to(tl.float32), code_CF, input_precision="tf32x3") * scale_F[None, :]
        else:
            sums += tl.dot(x_TC, code_CF.to(x_TC.dtype)) * scale_F[None, :]
        if SHIFT:
            sums += tl.sum(x_TC.to(tl.float32), 1)[:, None] * shift(at, g, FORMAT)[None, :]
    place = (tl.program_id(2).to(tl.int64) * T + t.to(tl.int64)[:, None]) * F + rows[None, :]
    tl.store(out + place, sums, mask=(t < T)[:, None] & (rows < F)[None, :])


def multiplies(weight: object) -> bool:
    """Whether there are kernels for this weight: a matrix whose groups of columns are cut into whole parts of one scale each."""
    if isinstance(weight, GroupRows):
        return bool(weight.shape[0]) and bool(weight.n_columns) and (weight.group % COLUMNS == 0 or weight.group >= weight.n_columns)
    return isinstance(weight, PackedRows) and weight.format in FORMATS and len(weight.shape) == 2 and all(weight.shape)


def product(x_TD: Tensor, weight_FD: PackedRows | GroupRows) -> Tensor:
    """x @ weight.T, (T, F) in float32. x: float32, float16 or bfloat16."""
    (T, D), F = x_TD.shape, weight_FD.shape[0]
    if weight_FD.shape[1] != D:
        raise ValueError(f"rows of {D} numbers times a matrix of {F} x {weight_FD.shape[1]}")
    if not T:
        return x_TD.new_zeros(0, F, dtype=torch.float32)
    tensors, sizes, how, size = _facts(weight_FD, D)
    x_TD, n_groups = x_TD.contiguous(), -(-D // size)
    # The interpreter multiplies the bits of bfloat16 as if they were whole numbers: https://github.com/triton-lang/triton/issues/11584
    wide = x_TD.dtype == torch.float32 or not _short(weight_FD) or (x_TD.is_cpu and x_TD.dtype == torch.bfloat16)
    if T == 1:
        grid, least = (-(-F // ROWS_1),), COLUMNS_1 // size
    else:
        tokens = 16 if T <= 16 else 32 if wide else 64  # the units that multiply matrices take no fewer than 16; registers, no more
        grid, least = (-(-F // ROWS_T), -(-T // tokens)), COLUMNS_T // size
    n_here = _share(n_groups, math.prod(grid), least, x_TD.device)
    n_parts = -(-n_groups // n_here)
    out_STF = torch.empty(n_parts, T, F, device=x_TD.device, dtype=torch.float32)
    if T == 1:
        vector[(*grid, n_parts)](x_TD, *tensors, out_STF, D, F, *sizes, n_groups, n_here, **how, ROWS=ROWS_1, GROUPS=COLUMNS_1 // size, **LAUNCH)
    else:
        tiles[(*grid, n_parts)](x_TD, *tensors, out_STF, T, D, F, *sizes, n_groups, n_here, **how, WIDE=wide, TOKENS=tokens, ROWS=ROWS_T, **LAUNCH)
    return out_STF[0] if n_parts == 1 else out_STF.sum(0)


def _facts(weight: PackedRows | GroupRows, D: int) -> tuple[tuple[Tensor, ...], tuple[int, int], dict[str, Any], int]:
    """What kernels are told of a weight: its tensors (bytes, scales, zeros, book), strides, constants, and columns of a group."""
    if isinstance(weight, GroupRows):
        bytes, zeros = weight.codes.contiguous(), weight.zeros
        book = weight.book if weight.book is not None else _float8(weight.byte, bytes.device)
        how = {"SIZE": COLUMNS, "EACH": 1, "BYTES": COLUMNS * weight.width // 8, "FORMAT": "groups", "SHIFT": False, "WIDTH": weight.width,
               "RUN": weight.group if weight.group < D else -(-D // COLUMNS) * COLUMNS, "BOOK": book is not None, "SIGNED": weight.byte == torch.int8,
               "ZEROS": isinstance(zeros, Tensor), "ZERO": 0 if isinstance(zeros, Tensor) else zeros}
        each = zeros.contiguous() if isinstance(zeros, Tensor) else bytes
        return (bytes, weight.scales.contiguous(), each, bytes if book is None else book), (bytes.shape[1], weight.scales.shape[1]), how, COLUMNS
    facts, bytes = FORMATS[weight.format], weight.bytes.contiguous()
    how = {"SIZE": facts.size, "EACH": facts.each, "BYTES": facts.n_bytes, "FORMAT": weight.format, "SHIFT": weight.format in SHIFTED, "WIDTH": 8, "RUN": D,
           "BOOK": False, "SIGNED": False, "ZEROS": False, "ZERO": 0}
    return (bytes, bytes, bytes, _uneven(bytes.device) if weight.format.startswith("IQ4") else bytes), (bytes.shape[1], 0), how, facts.size


@cache
def _uneven(device: torch.device) -> Tensor:
    """The values that four bits mean in IQ4_NL and IQ4_XS."""
    return torch.tensor(IQ4, dtype=torch.float32, device=device)


@cache
def _float8(byte: torch.dtype, device: torch.device) -> Tensor | None:
    """What each byte means, float32, where codes are floats of eight bits: a look into 1 KB, where older GPUs have no instruction."""
    if byte not in (torch.float8_e4m3fn, torch.float8_e5m2):
        return None
    return torch.arange(256, dtype=torch.uint8).view(byte).float().to(device)


def _short(weight: PackedRows | GroupRows) -> bool:
    """Whether float16 and bfloat16 hold every code."""
    return isinstance(weight, PackedRows) or weight.book is None


def _share(n_groups: int, n_tiles: int, least: int, device: torch.device) -> int:
    """How many groups of columns each program sums up: at least so many, and few enough that every multiprocessor has programs."""
    n = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else INTERPRETED
    parts = max(1, -(-PROGRAMS * n // n_tiles))
    return -(-max(least, -(-n_groups // parts)) // least) * least
