"""Files whose numbers are read where they lie, when they are used."""
from __future__ import annotations

import math
import mmap
from pathlib import Path

import torch
from torch import Tensor


class MappedFile:
    """One file, mapped privately and copy-on-write: writing to a tensor changes memory and never the file.

    The map lives as long as a tensor that views it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def view(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The numbers that start at this byte; a copy where they are not on a whole multiple of their size, as kernels expect them to be."""
        n = math.prod(shape)
        if not n:
            return torch.empty(shape, dtype=dtype)
        if start % dtype.itemsize:  # files by other writers may start anywhere
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=n * dtype.itemsize, offset=start)
            return raw.clone().view(dtype).view(shape)
        return torch.frombuffer(self._map, dtype=dtype, count=n, offset=start).view(shape)

    def release_bytes(self, start: int = 0, stop: int | None = None) -> None:
        """Lets the system take back the memory of the pages between; the next access reads them again.

        What was written to those pages in the meantime is lost: call it only for tensors that nobody changes in place.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: the edges belong to neighbors too
        stop = len(self._map) if stop is None else stop
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)
