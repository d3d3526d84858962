"""Tensors of a safetensors file as views of a memory map: nothing is read before it is used."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pellucid.errors import UnsupportedModel
from pellucid.weights.drafts import Draft, Planned
from pellucid.weights.header import Header, read_header
from pellucid.weights.mapped import MappedFile

DTYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
          "F8_E8M0": torch.float8_e8m0fnu, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
          "U16": torch.uint16, "I16": torch.int16, "F16": torch.float16, "BF16": torch.bfloat16, "U32": torch.uint32, "I32": torch.int32,
          "F32": torch.float32, "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64}

SPELLED = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsFile(MappedFile):
    """One mapped file. Raises what `read_header` raises."""

    def __init__(self, path: Path, header: Header | None = None) -> None:
        self.header = header or read_header(path)
        super().__init__(path)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name, a view. Raises UnsupportedModel for a number format torch has no tensors of."""
        entry = self.header.tensors[name]
        if entry.dtype not in DTYPES:
            raise UnsupportedModel(f"{name} in {self.path.name} is stored as {entry.dtype}, which Pellucid does not read (reads: {', '.join(DTYPES)})")
        return self.view(entry.start, entry.shape, DTYPES[entry.dtype])

    def release(self, name: str | None = None) -> None:
        """Gives back the memory of one tensor's pages, or of all: see `release_bytes`."""
        entry = self.header.tensors[name] if name is not None else None
        self.release_bytes(*((entry.start, entry.stop) if entry is not None else ()))


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one safetensors file. `format: pt` is what transformers asks for before it reads one."""
    save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
    if metadata:
        _in_order(path)


def _in_order(path: Path) -> None:
    """The metadata sorted, in place: safetensors 0.8 writes it in the order of a hash map, another in every process."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        text = json.dumps({"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, (len(text), size)
        file.seek(8)
        file.write(text.ljust(size))


def write_planned(draft: Draft, tensors: Sequence[Planned], metadata: Mapping[str, str] | None = None) -> None:
    """The same, one tensor at a time. Wider numbers come first, so that each begins at a multiple of its size."""
    tensors = sorted(tensors, key=lambda tensor: -DTYPES[tensor.type].itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {"dtype": tensor.type, "shape": tensor.shape, "data_offsets": (at, at + tensor.n_bytes)}
        at += tensor.n_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    draft.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        draft.write_tensor(tensor)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in memory."""
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
