"""Numbers of a few bits out of bytes, and into them. In shapes N counts blocks, M the bytes of a part of one."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cut(b: Tensor, *lengths: int) -> Sequence[Tensor]:
    """The parts of each block, (N, length) each, in memory of their own: a part of a single block is contiguous where it lies, and may begin at any byte."""
    return [part.clone(memory_format=torch.contiguous_format) for part in b.split(lengths, -1)]


def half(b: Tensor) -> Tensor:
    """float16 numbers, two bytes each, as float32: (N, M/2)."""
    return b.contiguous().view(torch.float16).float()


def word(b: Tensor, n_bytes: int) -> Tensor:
    """Little-endian whole numbers of 2 or 4 bytes, without a sign: (N, M/n_bytes), int64."""
    wide = b.contiguous().view({2: torch.int16, 4: torch.int32}[n_bytes]).long()
    return wide & (1 << 8 * n_bytes) - 1


def planes(b: Tensor, width: int) -> Tensor:
    """(..., M) -> (..., 8/width, M): the lowest `width` bits of every byte, then the next ones of every byte."""
    return b[..., None, :] >> _shifts(width, b.device)[:, None] & (1 << width) - 1


def bits(b: Tensor, width: int) -> Tensor:
    """(..., M) -> (..., M, 8/width): the parts of the first byte, the lowest first, then those of the second."""
    return b[..., None] >> _shifts(width, b.device) & (1 << width) - 1


def as_half(d: Tensor) -> Tensor:
    """The inverse of `half`."""
    return d.half().contiguous().view(torch.uint8)


def as_planes(q: Tensor, width: int) -> Tensor:
    """The inverse of `planes`: (..., 8/width, M) numbers of `width` bits, uint8, -> (..., M)."""
    return (q << _shifts(width, q.device)[:, None]).sum(-2, dtype=torch.uint8)


def as_bits(q: Tensor, width: int) -> Tensor:
    """The inverse of `bits`: (..., M, 8/width) -> (..., M)."""
    return (q << _shifts(width, q.device)).sum(-1, dtype=torch.uint8)


def _shifts(width: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, width, dtype=torch.uint8, device=device)
