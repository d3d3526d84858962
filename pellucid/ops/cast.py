"""Weights in one format -> another, a few rows at a time, and what became of their numbers on the way."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from pellucid.errors import BadRequest
from pellucid.ops.quantize.rows import quantize_rows
from pellucid.ops.unpack import unpack
from pellucid.weights.packed_rows import PackedRows, PackedWeight

BLOCK = 1 << 22  # numbers at once: 16 MB of float32
PLAIN: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPELLED = {dtype: name for name, dtype in PLAIN.items()}

Kept = Literal["copied", "exact", "rounded"]  # the same bits; other bits that mean the same numbers; other numbers


class Cast:
    """Puts weights into formats. `kept` says of each by its name how well."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.pairs: Counter[tuple[str, str]] = Counter()  # (format before, after) of what was rounded

    def pieces(self, name: str, weight: Tensor | PackedWeight, format: str, importance: Tensor | None = None, *,
               first: int = 0, stored: str | None = None) -> Iterator[Tensor]:
        """The bytes of the weight in this format of GGUF, row after row, those of all experts after one another.

        importance, first: see `quantize_rows`. stored: what the files hold it in, where that was unpacked before. Raises what `quantize_rows` does, and
        BadRequest for a number that F16 has no room for.
        """
        if (stored := stored or format_of(weight)) == format:
            self.kept[name] = "copied"
            yield weight.bytes if isinstance(weight, PackedRows) else weight
        elif len(weight.shape) > 2:
            for i in range(weight.shape[0]):
                one = PackedRows(weight.bytes[i], weight.format) if isinstance(weight, PackedRows) else weight[i]  # type: ignore[index]
                own = importance[i] if importance is not None and importance.ndim > 1 else importance
                yield from self.pieces(name, one, format, own, first=first + i * math.prod(weight.shape[1:-1]), stored=stored)
        elif format in PLAIN:
            yield from (self._put(name, rows, format, stored) for rows in rows_of(weight, BLOCK))
        else:
            self.rounded(name, stored, format)
            for rows in rows_of(weight, BLOCK):
                yield quantize_rows(unpacked(rows), format, importance, name=name, first=first).bytes
                first += len(rows) if isinstance(rows, Tensor) else rows.shape[0]

    def dense(self, name: str, weight: Tensor | PackedWeight, dtype: torch.dtype, stored: str, offset: float = 0.0) -> Tensor:
        """The weight as a tensor of its shape. stored: what the files hold it in. offset: what its numbers were stored with; see `exact_in`."""
        if isinstance(weight, Tensor) and weight.dtype == dtype:
            self.kept[name] = "copied"
            return weight
        out, at = torch.empty(weight.shape, dtype=dtype), 0
        flat = out.view(-1)
        for rows in rows_of(weight, BLOCK):
            piece = self._put(name, rows, SPELLED[dtype], stored, offset).flatten()
            flat[at : at + len(piece)] = piece
            at += len(piece)
        return out

    def _put(self, name: str, rows: Tensor | PackedWeight, format: str, stored: str, offset: float = 0.0) -> Tensor:
        wide = unpacked(rows)
        out = wide.to(PLAIN[format])
        if exact_in(wide, PLAIN[format], offset):
            self.kept.setdefault(name, "exact")
            return out
        if bool((out.isinf() & ~wide.isinf()).any()):
            raise BadRequest(f"{name} holds numbers up to {wide.abs().max().item():.4g}, and {format.lower()} ends at "
                             f"{torch.finfo(PLAIN[format]).max:.5g}. Write it in bf16 or f32", field="dtype")
        self.rounded(name, stored, format)
        return out

    def rounded(self, name: str, before: str, after: str) -> None:
        """Notes that a weight lost some of its last bits, or more."""
        if self.kept.get(name) != "rounded":
            self.pairs[before, after] += 1
        self.kept[name] = "rounded"


def unpacked(weight: Tensor | PackedWeight) -> Tensor:
    """The numbers, in float32 where they are packed."""
    return unpack(weight) if isinstance(weight, PackedWeight) else weight


def format_of(weight: Tensor | PackedWeight) -> str:
    """The format's name in GGUF's spelling; of other dtypes torch's own."""
    if isinstance(weight, Tensor):
        return SPELLED.get(weight.dtype, str(weight.dtype).removeprefix("torch."))
    return weight.format if isinstance(weight, PackedRows) else type(weight).__name__


def exact_in(weight: Tensor, dtype: torch.dtype, offset: float = 0.0) -> bool:
    """Whether the dtype holds every number of it.

    offset: what the numbers were stored with, which cost them their last bits; those that are stored so again as the same bits are the same.
    """
    back = weight.to(dtype).to(weight.dtype)
    return bool(((back + offset == weight + offset) | weight.isnan()).all())


def rows_of(weight: Tensor | PackedWeight, n_numbers: int) -> Iterator[Tensor | PackedWeight]:
    """The rows in their order, so many at once that they mean at most n_numbers, or one."""
    if isinstance(weight, Tensor):
        flat = weight.reshape(-1, weight.shape[-1]) if weight.ndim > 1 else weight.reshape(1, -1)
        yield from flat.split(max(1, n_numbers // max(1, flat.shape[1])))
    elif isinstance(weight, PackedRows):
        rows = PackedRows(weight.bytes.reshape(-1, weight.bytes.shape[-1]), weight.format)
        yield from rows.parts(n_numbers)
    else:
        yield from weight.parts(n_numbers)
