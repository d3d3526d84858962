"""Packed rows put in the order the CPU's kernels read them: panels of 16 rows. The same numbers; ops/cpu/packed.h draws the layout."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.ops import built
from pellucid.weights.packed_rows import PackedRows, PackedWeight

try:
    from pellucid.ops.cpu import _native  # type: ignore[attr-defined]
except ImportError as e:  # installed without a compiler
    native: Any = None
    why_not = str(e)
else:
    built.check(_native, Path(__file__).parent / "cpu")
    native, why_not = _native, ""


@dataclass(frozen=True, slots=True, eq=False)
class Panels(PackedWeight):
    """A matrix of a GGUF format, repacked: `bytes` is one piece of memory, uint8. Its rows are read as float32, not as a view."""

    bytes: Tensor
    format: str
    rows: int
    columns: int
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        assert self.bytes.is_contiguous()
        assert self.bytes.is_cpu
        assert self.bytes.nbytes == native.packed_bytes(self.format, self.rows, self.columns)

    @classmethod
    def of(cls, packed: PackedRows, take: Callable[[int], Tensor] | None = None) -> Panels:
        """The same matrix (F, D) in panels, in memory that `take` gives or in its own. That is about as much as the rows take, which can be let go."""
        rows, columns = packed.shape
        source = packed.bytes.contiguous()
        n_bytes = native.packed_bytes(packed.format, rows, columns)
        out = torch.empty(n_bytes, dtype=torch.uint8) if take is None else take(n_bytes)
        native.set_threads(n_threads())
        native.repack(packed.format, source.data_ptr(), rows, columns, out.data_ptr())
        return cls(out, packed.format, rows, columns, packed.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows, self.columns

    @property
    def device(self) -> torch.device:
        return self.bytes.device

    @property
    def nbytes(self) -> int:
        return self.bytes.nbytes

    def numbers(self, rows_N: Tensor) -> Tensor:
        """Some of the rows as float32, (N, columns): bit for bit what ops/unpack.py makes of the file's. Raises IndexError for a row there is not."""
        rows_N = rows_N.reshape(-1).to("cpu", torch.int64).contiguous()
        if rows_N.numel() and not 0 <= int(rows_N.min()) <= int(rows_N.max()) < self.rows:
            raise IndexError(f"rows {int(rows_N.min())} to {int(rows_N.max())} were asked for, of {self.rows}")
        out = torch.empty(rows_N.numel(), self.columns)
        native.set_threads(n_threads())
        native.unpack(self.format, self.bytes.data_ptr(), self.rows, self.columns, rows_N.data_ptr(), rows_N.numel(), out.data_ptr())
        return out

    def __getitem__(self, rows: slice | Tensor) -> PackedRows:  # type: ignore[override]
        """Some of the rows, as numbers."""
        numbers = self.numbers(torch.arange(self.rows)[rows] if isinstance(rows, slice) else rows)
        return PackedRows(numbers.view(torch.uint8), "F32", self.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> PackedWeight:  # type: ignore[override]
        return replace(self, dtype=dtype) if device.type == "cpu" else self[:].to(device, dtype)


def n_threads() -> int:
    """As many as torch works with, and no more than there are cores for."""
    return min(torch.get_num_threads(), native.usable_cores())
