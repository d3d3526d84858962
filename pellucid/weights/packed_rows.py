"""Matrices that stay packed: no part of Pellucid expands one as a whole. ops/unpack.py says what the bytes mean.

PackedRows are GGUF's: each row a whole number of blocks. What other formats store is in group_rows.py.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pellucid.weights.gguf import BY_NAME, Format


class PackedWeight(ABC):
    """Rows of numbers, packed. Cut and put in order by whole rows only."""

    __slots__ = ()

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the model runs in, and so what a row becomes that is looked up."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of what the rows mean."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that are held."""

    @abstractmethod
    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the rows; a slice is a view, an index a copy of those rows' bytes."""

    def parts(self, n_numbers: int) -> Iterator[Self]:
        """The rows of a matrix in their order, so many at once that they mean at most n_numbers, or one."""
        n = max(1, n_numbers // self.shape[-1])
        return (self[start : start + n] for start in range(0, self.shape[0], n))

    @abstractmethod
    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same numbers, for a model that runs there in that dtype."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows(PackedWeight):
    """Rows of numbers in blocks of `format`: `bytes` is uint8, (..., rows, bytes of one row)."""

    bytes: Tensor
    format: str
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        assert self.bytes.dtype == torch.uint8
        assert self.bytes.shape[-1] % self._facts.n_bytes == 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.bytes.shape[:-1], self.bytes.shape[-1] // self._facts.n_bytes * self._facts.n_numbers)

    @property
    def device(self) -> torch.device:
        return self.bytes.device

    @property
    def nbytes(self) -> int:
        return self.bytes.nbytes

    def __getitem__(self, rows: int | slice | Tensor) -> Self:
        """Of several matrices one is taken by its number, a view."""
        return replace(self, bytes=self.bytes.index_select(0, rows) if isinstance(rows, Tensor) else self.bytes[rows])

    def flat(self) -> Self:
        """The rows of several matrices as those of one, a view."""
        return replace(self, bytes=self.bytes.flatten(0, -2))

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        return replace(self, bytes=self.bytes.to(device), dtype=dtype)

    @property
    def _facts(self) -> Format:
        return BY_NAME[self.format]
