"""The header of a safetensors file, read and checked by ourselves: names, dtypes, shapes and byte ranges. No torch here.

    [8 bytes: n, little-endian] [n bytes: JSON, name -> {dtype, shape, data_offsets}] [the tensors' bytes, without gaps]

https://github.com/huggingface/safetensors#format. The files come from strangers, so every number is checked against the others
before a byte of data is mapped.
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.errors import BadHeader, TruncatedFile

# Bits of one number. https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs, `Dtype`
DTYPE_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
              "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
              "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
LFS_POINTER = b"version "  # the first eight bytes of a Git LFS pointer file


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: `start` and `stop` count bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """Name -> entry in the order of the data, and the free-form strings of `__metadata__`."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The checked header of a safetensors file.

    Raises BadHeader when the header does not parse or contradicts itself or the file, TruncatedFile when the data ends too early.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == LFS_POINTER:
            raise BadHeader(f"{path.name} is a Git LFS pointer of {size} bytes, not the weights themselves. Fetch them with: git lfs pull")
        if len(start) < 8:
            raise TruncatedFile(f"{path.name} has {size} bytes, and a safetensors file starts with 8 that say how long its header is. Download it again.")
        n = int.from_bytes(start, "little")
        if n > MAX_HEADER_BYTES or n > size - 8:
            raise BadHeader(f"{path.name} says that its header is {n:,} bytes long, and the file has {max(size - 8, 0):,} after that number "
                            f"(the format allows {MAX_HEADER_BYTES:,}). Is it a safetensors file, and whole?")
        text = file.read(n)
    facts = _parsed(path.name, text)
    metadata = facts.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadHeader(f"{path.name}: __metadata__ of the header must map names to strings, found {metadata!r:.80}")
    entries = {name: _entry(path.name, name, fact, 8 + n) for name, fact in facts.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    _tile(path.name, ordered, 8 + n, size)
    return Header(ordered, metadata)


def _parsed(file: str, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise BadHeader(f"{file}: the header names {twice!r} twice, so one of the two is not what it seems")
        return out

    try:
        facts = json.loads(text, object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise BadHeader(f"{file}: the header is not JSON ({e}). Is it a safetensors file, and whole?") from None
    if not isinstance(facts, dict):
        raise BadHeader(f"{file}: the header is a {type(facts).__name__}, and an object of tensor names was expected")
    return facts


def _entry(file: str, name: str, fact: object, data_start: int) -> Entry:
    """The entry of one tensor, its dtype, shape and length found to agree."""
    if not isinstance(fact, Mapping) or not {"dtype", "shape", "data_offsets"} <= set(fact):
        raise BadHeader(f"{file}: {name} must have dtype, shape and data_offsets, found {fact!r:.80}")
    dtype, shape, offsets = fact["dtype"], fact["shape"], fact["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise BadHeader(f"{file}: {name} has the unknown dtype {dtype!r} (known: {', '.join(DTYPE_BITS)})")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise BadHeader(f"{file}: {name} has shape {shape!r:.60} and data_offsets {offsets!r:.60}; lists of counts, two of them offsets, were expected")
    start, stop = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or stop - start != bits // 8:
        raise BadHeader(f"{file}: {name} is {dtype} of shape {tuple(shape)}, which takes {bits / 8:,g} bytes, and its data_offsets span {stop - start:,}")
    return Entry(dtype, tuple(shape), data_start + start, data_start + stop)


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _tile(file: str, entries: Mapping[str, Entry], data_start: int, size: int) -> None:
    """Checks that the tensors follow one another without overlap or gap, and end where the file ends."""
    at, before = data_start, "the header"
    for name, entry in entries.items():
        if entry.start != at:
            fault = "overlaps" if entry.start < at else "leaves a gap after"
            raise BadHeader(f"{file}: {name} starts at byte {entry.start:,} and {fault} {before}, which ends at {at:,}")
        at, before = entry.stop, name
    if at > size:
        raise TruncatedFile(f"{file} has {size:,} bytes, and its header describes {at:,}. The download was cut short: fetch it again.")
    if at < size:
        raise BadHeader(f"{file} has {size:,} bytes, and its header describes only {at:,}. What the rest is, nothing says.")
