"""Memory for weights that are copied."""
from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes, a cache line: matrices that begin elsewhere take a third longer in prompts (docs/LOG.md), and safetensors aligns to 8
_HUGE = 2 << 20  # bytes of a large page of x86 and most others; where they are of another size nothing but speed is lost


class Room:
    """One region that tensors are copied to, one after another, in large pages where the system has them.

    Weights are read through once a pass, and with pages of 4 KB finding them takes a tenth of a prompt (docs/LOG.md). Memory is taken as it is
    written to, and given back when the last tensor is gone.
    """

    def __init__(self, n_bytes: int) -> None:
        self._size = n_bytes
        # Private: Python's own choice is memory shared with forked processes, for which large pages are usually off. Used from the first one's beginning.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
        self._map = mmap.mmap(-1, n_bytes + _HUGE, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel built without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._at = -torch.frombuffer(self._map, dtype=torch.uint8).data_ptr() % _HUGE
        self._end = self._at + n_bytes

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor's numbers in this dtype and in the order they lie in, as `clone` has it. Raises ValueError past the end."""
        strides = torch.empty_like(tensor, device="meta").stride()
        return self.take(tensor.numel() * dtype.itemsize).view(dtype).as_strided(tensor.shape, strides).copy_(tensor)

    def take(self, n_bytes: int) -> Tensor:
        """So many bytes, uint8, nothing written to them yet. Raises ValueError past the end."""
        start = self._at
        if start + n_bytes > self._end:
            raise ValueError(f"{n_bytes} bytes do not fit the {self._end - start} that are left of {self._size}")
        self._at = start + aligned(n_bytes)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=n_bytes, offset=start)


def taken(tensor: Tensor, dtype: torch.dtype) -> int:
    """Bytes of a room that a copy of the tensor takes, up to where the next one begins."""
    return aligned(tensor.numel() * dtype.itemsize)


def aligned(n_bytes: int) -> int:
    """As many bytes, up to where something may begin."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
