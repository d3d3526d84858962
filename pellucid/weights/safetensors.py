"""Tensors of a safetensors file as views of a memory map: nothing is read before it is used."""
from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pellucid.errors import UnsupportedModel
from pellucid.weights.header import Entry, Header, read_header

DTYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
          "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
          "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32,
          "F32": torch.float32, "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64}

SPELLED = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsFile:
    """One file, mapped privately and copy-on-write: writing to a tensor changes memory and never the file.

    The map lives as long as a tensor that views it. Raises what `read_header` raises.
    """

    def __init__(self, path: Path, header: Header | None = None) -> None:
        self.path = path
        self.header = header or read_header(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, a view. Raises UnsupportedModel for a number format torch has no tensors of."""
        entry = self.header.tensors[name]
        if entry.dtype not in DTYPES:
            raise UnsupportedModel(f"{name} in {self.path.name} is stored as {entry.dtype}, which Pellucid does not read (reads: {', '.join(DTYPES)})")
        dtype = DTYPES[entry.dtype]
        if not entry.n_bytes:
            return torch.empty(entry.shape, dtype=dtype)
        if entry.start % dtype.itemsize:  # files by other writers may start anywhere, and kernels expect whole numbers
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.n_bytes, offset=entry.start)
            return raw.clone().view(dtype).view(entry.shape)
        return torch.frombuffer(self._map, dtype=dtype, count=entry.n_bytes // dtype.itemsize, offset=entry.start).view(entry.shape)

    def release(self, name: str | None = None) -> None:
        """Lets the system take back the memory of the pages of one tensor, or of all; the next access reads them again.

        What was written to those pages in the meantime is lost: call it only for tensors that nobody changes in place.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        entry = self.header.tensors[name] if name is not None else Entry("U8", (), 0, len(self._map))
        start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: the edges belong to neighbors too
        if entry.stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, entry.stop - start)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one safetensors file. `format: pt` is what transformers asks for before it reads one."""
    save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
