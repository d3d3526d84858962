"""Matrices in which runs of columns share a scale: what GPTQ, AWQ, compressed-tensors, FP8 and bitsandbytes store, in one layout.

    number[r, c] = (code[r, c] - zero[r, g]) * scale[r, g]       g = c // group
    number[r, c] = book[code[r, c]] * scale[r, g]                where codes point to values that are not evenly spaced

Each number is a float32 product, rounded once. What blocks of GGUF can hold, bit for bit, becomes such blocks, for which there are kernels.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pellucid.errors import MisshapenTensor, UnsupportedModel
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
        return replace(self, codes=some(self.codes, rows), scales=some(self.scales, rows),
                       zeros=some(self.zeros, rows) if isinstance(self.zeros, Tensor) else self.zeros)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        return replace(self, codes=self.codes.to(device), scales=self.scales.to(device), dtype=dtype,
                       zeros=self.zeros.to(device) if isinstance(self.zeros, Tensor) else self.zeros, book=None if self.book is None else self.book.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Reordered(PackedWeight):
    """A matrix whose columns are stored in another order, as GPTQ's by activation: column j of `rows` is column order[j], (columns,) int64."""

    rows: PackedWeight
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


@dataclass(frozen=True, slots=True, eq=False)
class Affine(PackedWeight):
    """number[r, c] = gain[r] * rows[r, c] + shift[r, g], g = c // group: what GGUF's blocks hold but for a zero elsewhere, or a scale that is no float16.

    gain: float32 (rows,). shift: float32 (rows, groups); of every number the sum is exact. A product is that of the blocks, which have kernels, and a small one
    of the shifts with the sums of the inputs of each group.
    """

    rows: PackedWeight
    group: int
    gain: Tensor | None = None
    shift: Tensor | None = None
    dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + sum(part.nbytes for part in (self.gain, self.shift) if part is not None)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return replace(self, rows=self.rows[rows], gain=None if self.gain is None else some(self.gain, rows),
                       shift=None if self.shift is None else some(self.shift, rows))

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        return replace(self, rows=self.rows.to(device, dtype), gain=None if self.gain is None else self.gain.to(device),
                       shift=None if self.shift is None else self.shift.to(device), dtype=dtype)


def some(part: Tensor, rows: slice | Tensor) -> Tensor:
    """Some of the rows of one part of a matrix."""
    return part[rows] if isinstance(rows, slice) else part.index_select(0, rows)


def inner(weight: PackedWeight) -> PackedWeight:
    """The rows that are multiplied with, without what is done to columns before and to sums after it."""
    while isinstance(weight, Reordered | Affine):
        weight = weight.rows
    return weight


def pack(codes: Tensor, width: int) -> Tensor:
    """Codes of 2, 4 or 8 bits, (rows, columns) uint8, several a byte and the first one lowest: (rows, bytes of a row)."""
    each = 8 // width
    if ragged := -codes.shape[1] % each:
        codes = torch.nn.functional.pad(codes, (0, ragged))
    return functools.reduce(torch.bitwise_or, (codes[:, i::each] << width * i for i in range(each)))


def spread(packed: Tensor, width: int) -> Tensor:
    """The codes of 2, 3, 4 or 8 bits in (rows, bytes or words of a row), the lowest first, those of three bits across bytes: (rows, columns) uint8."""
    b = packed.view(torch.uint8)
    if width == 8:
        return b
    if width == 3:  # eight of them in three bytes
        first, second, third = b.view(b.shape[0], -1, 3).int().unbind(-1)
        return ((first | second << 8 | third << 16)[..., None] >> torch.arange(0, 24, 3, dtype=torch.int32) & 7).to(torch.uint8).flatten(1)
    return (b[..., None] >> torch.arange(0, 8, width, dtype=torch.uint8) & (1 << width) - 1).flatten(1)


def constant(zeros: Tensor) -> Tensor | int:
    """The one number that they all are, or the numbers."""
    return int(zeros[0, 0]) if zeros.numel() and bool((zeros == zeros[0, 0]).all()) else zeros


def by_blocks(numbers: Tensor, n_rows: int, block: int) -> Tensor:
    """Of a number for `block` rows each, or one for all, a number for every row: (rows, groups)."""
    return numbers.reshape(-1, numbers.shape[-1] if numbers.ndim == 2 else 1).repeat_interleave(min(block, n_rows), 0)[:n_rows]


def arranged(rows: GroupRows, index: Tensor | None, *, ordered: bool, name: str) -> PackedWeight:
    """Rows whose columns belong to the groups `index` says, (columns,), each group's put side by side; as GGUF's blocks where those are exact.

    ordered: whether the settings say that columns may stand in any order. Raises MisshapenTensor or UnsupportedModel for an index that makes no groups.
    """
    if index is None:
        return as_blocks(rows)
    n_groups, in_order = rows.scales.shape[1], torch.arange(rows.n_columns) // rows.group
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < n_groups:
        raise MisshapenTensor(f"{name} names groups {int(index.min())} to {int(index.max())}, and there are scales of {n_groups}. Is the file whole?")
    index = index.long()
    if torch.equal(index, in_order):
        return as_blocks(rows)
    if not ordered:
        raise MisshapenTensor(f"{name} puts columns in another order, and the settings say that they stand in their own. Do the two belong together?")
    order = index.argsort(stable=True)
    if not torch.equal(index[order], in_order):
        raise UnsupportedModel(f"{name} makes groups of {index.bincount(minlength=n_groups).tolist()[:8]} columns, and {rows.group} each were expected")
    codes = pack(spread(rows.codes, rows.width)[:, : rows.n_columns].index_select(1, order), rows.width)
    return Reordered(as_blocks(replace(rows, codes=codes)), order, rows.dtype)


def as_blocks(rows: GroupRows) -> PackedRows | Affine | GroupRows:
    """The same numbers to the last bit in blocks of GGUF, of whole numbers in Q4_0, Q4_1 or Q8_0, with what has no place there beside them."""
    whole = rows.width == 4 or (rows.width == 8 and rows.byte in (torch.uint8, torch.int8))
    if not whole or rows.book is not None or rows.n_columns % BLOCK or (rows.group % BLOCK and rows.group < rows.n_columns):
        return rows
    middle = 8 if rows.width == 4 else 128 if rows.byte == torch.uint8 else 0  # what a block takes for zero
    scales, symmetric, gain = rows.scales.half(), isinstance(rows.zeros, int) and rows.zeros == middle, None
    if not torch.equal(scales.float(), rows.scales.float()):
        if not symmetric or scales.shape[1] != 1:
            return rows
        scales, gain = torch.ones_like(scales), rows.scales.float()[:, 0].contiguous()
    codes = rows.codes ^ 128 if middle == 128 else rows.codes
    codes = halves(codes) if rows.width == 4 else codes.reshape(rows.shape[0], -1, BLOCK)
    if rows.width == 4 and not symmetric and torch.equal((least := scales.float() * rows.zeros * -1).half().float(), least):
        return _blocks("Q4_1", rows, [scales, least.half()], codes)
    blocks = _blocks("Q4_0" if rows.width == 4 else "Q8_0", rows, [scales], codes)
    if symmetric and gain is None:
        return blocks
    # A float16 times a whole number of nine bits, and the sum of two such products of one scale, are exact in float32.
    return Affine(blocks, rows.group, gain, None if symmetric else (scales.float() * (middle - _wide(rows.zeros))).contiguous(), rows.dtype)


def _wide(zeros: Tensor | int) -> Tensor | int:
    return zeros.int() if isinstance(zeros, Tensor) else zeros


def _blocks(format: str, rows: GroupRows, halves: list[Tensor], codes: Tensor) -> PackedRows:
    """Blocks of a row: of each its scale, and its minimum where there is one, then its codes (rows, blocks, bytes)."""
    n = codes.shape[1]
    each = [half.repeat_interleave(-(-rows.group // BLOCK), 1)[:, :n].contiguous().view(torch.uint8).view(-1, n, 2) for half in halves]
    return PackedRows(torch.cat([*each, codes], -1).flatten(1), format, rows.dtype)


def halves(codes: Tensor) -> Tensor:
    """Two neighbors a byte -> a number and the one 16 further, as ggml's blocks of four bits have them: (rows, blocks, 16)."""
    first, last = codes.reshape(codes.shape[0], -1, 2, BLOCK // 4).unbind(2)
    return torch.stack([first & 15 | last << 4, first >> 4 | last & 240], -1).flatten(2)
