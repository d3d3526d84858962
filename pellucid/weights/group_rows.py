"""Matrices in which runs of columns share a scale: what GPTQ, AWQ, compressed-tensors, FP8 and bitsandbytes store, in one layout.

    number[r, c] = (code[r, c] - zero[r, g]) * scale[r, g]       g = c // group
    number[r, c] = book[code[r, c]] * scale[r, g]                where codes point to values that are not evenly spaced

Each number is a float32 product, rounded once. What GGUF has the very same numbers for becomes its blocks, which more kernels take.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pellucid.weights.packed_rows import PackedRows, PackedWeight

BLOCK = 32  # numbers in a block of Q4_0, Q4_1 and Q8_0
BYTES = (torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)  # what a code of eight bits may be


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GroupRows(PackedWeight):
    """A matrix (rows, n_columns) whose columns come in groups; the last one may be shorter.

    codes: uint8 (rows, bytes of a row), `width` bits each, of a byte the lowest first. byte: what a code of eight bits is.
    scales: (rows, groups), any float. zeros: the code that means zero, one number for all or (rows, groups). book: float32, of as many values as codes.
    """

    codes: Tensor
    scales: Tensor
    group: int
    n_columns: int
    width: int = 8
    byte: torch.dtype = torch.uint8
    zeros: Tensor | int = 0
    book: Tensor | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        assert self.codes.dtype == torch.uint8
        assert self.width in (2, 4, 8)
        assert self.byte in BYTES
        assert self.codes.shape == (self.scales.shape[0], -(-self.n_columns * self.width // 8))
        assert self.scales.shape[1] == -(-self.n_columns // self.group)
        assert not isinstance(self.zeros, Tensor) or self.zeros.shape == self.scales.shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape[0], self.n_columns

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.codes, self.scales, self.zeros, self.book) if isinstance(part, Tensor))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        def some(part: Tensor) -> Tensor:
            return part[rows] if isinstance(rows, slice) else part.index_select(0, rows)

        return replace(self, codes=some(self.codes), scales=some(self.scales), zeros=some(self.zeros) if isinstance(self.zeros, Tensor) else self.zeros)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device), dtype=dtype,
                       zeros=self.zeros.to(device) if isinstance(self.zeros, Tensor) else self.zeros, book=None if self.book is None else self.book.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Reordered(PackedWeight):
    """A matrix whose columns are stored in another order, as GPTQ's by activation: column j of `rows` is column order[j], (columns,) int64."""

    rows: PackedRows | GroupRows
    order: Tensor
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.order.nbytes

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return replace(self, rows=self.rows[rows])

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        return replace(self, rows=self.rows.to(device, dtype), order=self.order.to(device), dtype=dtype)


def nibbles(codes: Tensor) -> Tensor:
    """Codes below 16, (rows, columns) uint8, two a byte and the first one low: (rows, bytes of a row)."""
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, ::2] | codes[:, 1::2] << 4


def as_blocks(rows: GroupRows) -> PackedRows | GroupRows:
    """The same numbers to the last bit in blocks of GGUF, where Q4_0, Q4_1 or Q8_0 has them; else the rows as they are."""
    if rows.n_columns % BLOCK or (rows.group % BLOCK and rows.group < rows.n_columns) or rows.book is not None:
        return rows
    scales = rows.scales.half()
    if not torch.equal(scales.float(), rows.scales.float()):
        return rows
    if rows.width == 4 and isinstance(rows.zeros, int) and rows.zeros == 8:
        return _blocks("Q4_0", rows, [scales], _halves(rows.codes))
    if rows.width == 4:
        least = scales.float() * rows.zeros * -1
        return _blocks("Q4_1", rows, [scales, least.half()], _halves(rows.codes)) if torch.equal(least.half().float(), least) else rows
    if rows.byte == torch.int8 and isinstance(rows.zeros, int) and rows.zeros == 0:
        return _blocks("Q8_0", rows, [scales], rows.codes.reshape(rows.shape[0], -1, BLOCK))
    if rows.byte == torch.uint8 and rows.width == 8 and isinstance(rows.zeros, int) and rows.zeros == 128:
        return _blocks("Q8_0", rows, [scales], (rows.codes ^ 128).view(rows.shape[0], -1, BLOCK))
    return rows


def _blocks(format: str, rows: GroupRows, halves: list[Tensor], codes: Tensor) -> PackedRows:
    """Blocks of a row: of each its scale, and its minimum where there is one, then its codes (rows, blocks, bytes)."""
    n = codes.shape[1]
    each = [half.repeat_interleave(-(-rows.group // BLOCK), 1)[:, :n].contiguous().view(torch.uint8).view(-1, n, 2) for half in halves]
    return PackedRows(torch.cat([*each, codes], -1).flatten(1), format, rows.dtype)


def _halves(codes: Tensor) -> Tensor:
    """Two neighbors a byte -> a number and the one 16 further, as ggml's blocks of four bits have them: (rows, blocks, 16)."""
    first, last = codes.reshape(codes.shape[0], -1, 2, BLOCK // 4).unbind(2)
    return torch.stack([first & 15 | last << 4, first >> 4 | last & 240], -1).flatten(2)
