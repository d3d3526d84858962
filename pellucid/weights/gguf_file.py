"""Tensors of a GGUF file as views of a memory map: plain ones as torch has them, the others packed."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pellucid.weights.gguf import BY_NAME, Header, read_gguf
from pellucid.weights.mapped import MappedFile
from pellucid.weights.packed_rows import PackedRows

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
          "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}


class GgufFile(MappedFile):
    """One mapped file; of a split model, one part. Raises what `read_gguf` raises."""

    def __init__(self, path: Path, header: Header | None = None) -> None:
        self.header = header or read_gguf(path)
        super().__init__(path)

    def tensor(self, name: str) -> Tensor | PackedRows:
        """The tensor of that name, a view of the file's bytes."""
        entry = self.header.tensors[name]
        if entry.type in DTYPES:
            return self.view(entry.start, entry.shape, DTYPES[entry.type])
        format = BY_NAME[entry.type]
        *rows, columns = entry.shape
        return PackedRows(self.view(entry.start, (*rows, columns // format.n_numbers * format.n_bytes), torch.uint8), entry.type)

    def release(self, name: str | None = None) -> None:
        """Gives back the memory of one tensor's pages, or of all: see `release_bytes`."""
        entry = self.header.tensors[name] if name is not None else None
        self.release_bytes(*((entry.start, entry.stop) if entry is not None else ()))
