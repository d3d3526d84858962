"""GGUF files, version 3, written as they are read in gguf.py: one pass, one tensor at a time, in as many parts as are asked for. No torch here.

Of a split model the first part has all metadata, and each part says which it is, as llama.cpp's gguf-split writes them:
https://github.com/ggml-org/llama.cpp/blob/067d44f6c48459f7a82dbafc6fbd0bae97755a4e/tools/gguf-split/gguf-split.cpp
"""
from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pellucid.errors import BadCheckpoint, BadRequest
from pellucid.weights.drafts import Buffer, Draft, Planned, Report, Written, write_all
from pellucid.weights.gguf import ALIGNMENT, BY_NAME, FORMATS, MAGIC, MAX_DIMS, Gguf

MAX_NAME = 63  # bytes of a tensor's name: GGML_MAX_NAME counts the zero that C puts after it
MAX_PARTS = 65_535  # split.count has 16 bits
SPLIT = ("split.no", "split.count", "split.tensors.count")
_NUMBERS = {format.name: number for number, format in FORMATS.items()}
_KIND = {name: i for i, name in enumerate(("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool", "string", "array", "uint64",
                                           "int64", "float64"))}
_CODE = {"uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i", "float32": "f", "bool": "?", "uint64": "Q", "int64": "q",
         "float64": "d"}


@dataclass(frozen=True, slots=True)
class Typed:
    """A value, or a list of values, of this kind, where it is not the one that `encode` takes by itself."""

    kind: str
    value: Any


Value = bool | int | float | str | list[Any] | Typed | bytes  # bytes: encoded already, the number of its type before it


def encode(value: Value) -> bytes:
    """A value of the metadata as the file has it, its type first.

    Whole numbers are uint32, those below zero int32, the items of a list int32, as llama.cpp's converter writes them (int64 where they do not fit);
    others float32. Every item of a list is of the kind of its first.
    """
    if isinstance(value, bytes):
        return value
    kind, value = (value.kind, value.value) if isinstance(value, Typed) else (_kind(value), value)
    if isinstance(value, list):
        kind = kind if kind != "array" else _kind_of_items(value)
        return struct.pack("<IIQ", _KIND["array"], _KIND[kind], len(value)) + _items(kind, value)
    return struct.pack("<I", _KIND[kind]) + _items(kind, [value])


def _items(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "string":
        return b"".join(map(_text, values))
    if kind == "array":
        return b"".join(encode(value)[4:] for value in values)
    return struct.pack(f"<{len(values)}{_CODE[kind]}", *values)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "array"
    if isinstance(value, bool | float | str):
        return {bool: "bool", float: "float32", str: "string"}[type(value)]
    return "uint32" if 0 <= value < 2**32 else "int32" if -2**31 <= value < 0 else "uint64" if value > 0 else "int64"


def _kind_of_items(values: Sequence[Any]) -> str:
    assert len({type(value) for value in values}) <= 1, values
    if values and type(values[0]) is int:
        return "int32" if all(-2**31 <= value < 2**31 for value in values) else "int64"
    return _kind(values[0]) if values else "int32"


def copied(model: Gguf) -> dict[str, Value]:
    """The metadata of a model, bit for bit and in its order, but for what says how it is split and aligned: parts after the first could not say it."""
    with model.files[0].open("rb") as file:
        out: dict[str, Value] = {}
        for key, (start, stop) in model.headers[0].spans.items():
            file.seek(start)
            out[key] = file.read(stop - start)
    return {key: value for key, value in out.items() if key not in (*SPLIT, "general.alignment")}


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Planned], *, max_bytes: int | None = None, overwrite: bool = False,
               report: Report = lambda n: None) -> tuple[Written, ...]:
    """Writes a model and returns its files, whole or not at all.

    max_bytes: no file is larger, unless its metadata and one tensor are; NAME-00001-of-00003.gguf and so on where one does not hold all.
    Raises what `write_all` raises, BadCheckpoint for a tensor's name that no reader takes.
    """
    for tensor in tensors:
        _check(tensor)
    encoded = {key: encode(value) for key, value in metadata.items()}
    parts, paths = [_Part(encoded, tensors)], [path]
    if max_bytes is not None and parts[0].n_bytes > max_bytes:
        parts = _parts(encoded, tensors, max_bytes)
        paths = part_paths(path, len(parts))
    return write_all(paths, lambda i, draft: parts[i].fill(draft), needed=sum(part.n_bytes for part in parts), overwrite=overwrite, report=report)


def part_paths(path: Path, n: int) -> list[Path]:
    """The files of a model in so many parts."""
    if n > MAX_PARTS:
        raise BadRequest(f"{n:,} parts would be written, and split.count goes to {MAX_PARTS:,}. Give a larger --split-max-size", field="split_max_size")
    return [path.with_name(f"{whole_name(path)}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1)]


def whole_name(path: Path) -> str:
    """The name of the model of which this is a part, or all: without its ending."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)


def type_bytes(type: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of this type, whose rows its blocks divide."""
    format = BY_NAME[type]
    assert (shape[-1] if shape else 1) % format.n_numbers == 0, (type, shape)
    return prod(shape) // format.n_numbers * format.n_bytes


def planned(name: str, type: str, shape: tuple[int, ...], read: Callable[[], Iterable[Buffer]]) -> Planned:
    """A tensor of a GGUF file."""
    return Planned(name=name, type=type, shape=shape, n_bytes=type_bytes(type, shape), read=read)


def _check(tensor: Planned) -> None:
    if len(tensor.name.encode()) > MAX_NAME or len(tensor.shape) > MAX_DIMS:
        raise BadCheckpoint(f"{tensor.name} of shape {tensor.shape} cannot be written: llama.cpp takes names of {MAX_NAME} bytes and {MAX_DIMS} dimensions "
                            f"at most. Rename it, or leave it in safetensors")


class _Part:
    """One file: its metadata encoded, and some of the tensors."""

    def __init__(self, metadata: Mapping[str, bytes], tensors: Sequence[Planned]) -> None:
        self.metadata, self.tensors = metadata, tensors
        self.n_bytes = _padded(_head_bytes(metadata) + sum(map(_info_bytes, tensors))) + sum(_padded(tensor.n_bytes) for tensor in tensors)

    def fill(self, draft: Draft) -> None:
        draft.write(MAGIC + struct.pack("<IQQ", 3, len(self.tensors), len(self.metadata)))
        for key, value in self.metadata.items():
            draft.write(_text(key) + value)
        at = 0
        for tensor in self.tensors:
            n = len(tensor.shape)
            draft.write(_text(tensor.name) + struct.pack(f"<I{n}QIQ", n, *reversed(tensor.shape), _NUMBERS[tensor.type], at))
            at += _padded(tensor.n_bytes)
        _pad(draft)
        for tensor in self.tensors:
            draft.write_tensor(tensor)
            _pad(draft)
        assert draft.n_bytes == self.n_bytes, (draft.n_bytes, self.n_bytes)


def _parts(metadata: Mapping[str, bytes], tensors: Sequence[Planned], max_bytes: int) -> list[_Part]:
    """Tensors in their order, each part filled until the next one would not fit."""
    groups: list[list[Planned]] = [[]]
    head, info, data = _head_bytes({**metadata, **_split(0, 0, 0)}), 0, 0
    for tensor in tensors:
        info, data = info + _info_bytes(tensor), data + _padded(tensor.n_bytes)
        if groups[-1] and _padded(head + info) + data > max_bytes:
            groups.append([])
            head, info, data = _head_bytes(_split(0, 0, 0)), _info_bytes(tensor), _padded(tensor.n_bytes)
        groups[-1].append(tensor)
    mine = [_split(i, len(groups), len(tensors)) for i in range(len(groups))]
    return [_Part({**metadata, **said} if i == 0 else said, group) for i, (said, group) in enumerate(zip(mine, groups, strict=True))]


def _split(i: int, n: int, n_tensors: int) -> dict[str, bytes]:
    values = (Typed("uint16", i), Typed("uint16", n), Typed("int32", n_tensors))
    return dict(zip(SPLIT, map(encode, values), strict=True))


def _head_bytes(metadata: Mapping[str, bytes]) -> int:
    return 24 + sum(8 + len(key.encode()) + len(value) for key, value in metadata.items())


def _info_bytes(tensor: Planned) -> int:
    return 8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8


def _pad(draft: Draft) -> None:
    draft.write(bytes(_padded(draft.n_bytes) - draft.n_bytes))


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT
