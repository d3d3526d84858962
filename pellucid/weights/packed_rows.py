"""A matrix as GGUF packs it: each row a whole number of blocks, which no part of Pellucid expands as a whole. ops/unpack.py says what the bytes mean."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pellucid.weights.gguf import BY_NAME, Format


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """Rows of numbers in blocks of `format`: `bytes` is uint8, (..., rows, bytes of one row). Cut and put in order by whole rows only.

    dtype: what the model runs in, and so what a row becomes that is looked up.
    """

    bytes: Tensor
    format: str
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        assert self.bytes.dtype == torch.uint8
        assert self.bytes.shape[-1] % self._facts.n_bytes == 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the rows mean."""
        return (*self.bytes.shape[:-1], self.bytes.shape[-1] // self._facts.n_bytes * self._facts.n_numbers)

    @property
    def device(self) -> torch.device:
        return self.bytes.device

    @property
    def nbytes(self) -> int:
        return self.bytes.nbytes

    def __getitem__(self, rows: slice | Tensor) -> PackedRows:
        """Some of the rows; a slice is a view, an index a copy of those rows' bytes."""
        return replace(self, bytes=self.bytes[rows] if isinstance(rows, slice) else self.bytes.index_select(0, rows))

    def parts(self, n_numbers: int) -> Iterator[PackedRows]:
        """The rows of a matrix in their order, so many at once that they mean at most n_numbers, or one."""
        n = max(1, n_numbers // self.shape[-1])
        return (self[start : start + n] for start in range(0, self.shape[0], n))

    def to(self, device: torch.device, dtype: torch.dtype) -> PackedRows:
        """The same numbers, for a model that runs there in that dtype."""
        return PackedRows(self.bytes.to(device), self.format, dtype)

    @property
    def _facts(self) -> Format:
        return BY_NAME[self.format]
