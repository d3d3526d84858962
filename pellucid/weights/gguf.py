"""The header of a GGUF file, read and checked by ourselves: metadata, and each tensor's type, shape and byte range. No torch here.

    "GGUF" version:u32 n_tensors:u64 n_pairs:u64
    n_pairs times    key:text type:u32 value                               text is length:u64 and so many bytes
    n_tensors times  name:text n_dims:u32 dims:u64... type:u32 offset:u64  dims have the columns first; offsets count from the data
    padding          the tensors' bytes, each padded to general.alignment

https://github.com/ggml-org/ggml/blob/01f0d4da3e444ca2bfe705e72adab08a4394bb1d/docs/gguf.md; what a file may not do besides is what
https://github.com/ggml-org/llama.cpp/blob/067d44f6c48459f7a82dbafc6fbd0bae97755a4e/ggml/src/gguf.cpp refuses. Versions 2 and 3 differ in
nothing but that 3 may be big-endian. The files come from strangers: every count is held against the bytes there are before it is followed.
"""
from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pellucid.errors import BadCheckpoint, BadHeader, MissingShard, TruncatedFile, UnsupportedModel

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # where general.alignment does not say otherwise
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NESTED = 8  # arrays in arrays; published files have none
LFS_POINTER = b"version "
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class Format(NamedTuple):
    """How numbers are stored: so many of a row together, in so many bytes."""

    name: str
    n_numbers: int
    n_bytes: int


# Number -> format. enum ggml_type and the block structs of ggml-common.h, llama.cpp at aca2e6ce7909064dbfbf3bd168e9ad3db1826e6c
FORMATS = {number: Format(*facts) for number, facts in {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    41: ("Q1_0", 128, 18),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 22: ("IQ2_S", 256, 82), 18: ("IQ3_XXS", 256, 98), 21: ("IQ3_S", 256, 110),
    19: ("IQ1_S", 256, 50), 29: ("IQ1_M", 256, 56), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36)}.items()}
BY_NAME = {format.name: format for format in FORMATS.values()}
# Formats that ggml has given up, by the same enum: their files are to be made again.
_GONE = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # of metadata, as `struct` spells them
_BOOL, _TEXT, _ARRAY = 7, 8, 9
_LENGTH = struct.Struct("<Q")
_KINDS = {0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32", 7: "bool", 8: "string", 9: "array",
          10: "uint64", 11: "int64", 12: "float64"}


@dataclass(frozen=True, slots=True)
class Items:
    """An array of the metadata, found but not decoded: tokenizers have hundreds of thousands of strings. `kind` is that of one item."""

    key: str
    kind: str
    n: int
    _cursor: _Cursor = field(repr=False, compare=False)
    _at: int = field(repr=False)

    def __len__(self) -> int:
        return self.n

    def values(self) -> list[Any]:
        """The items, decoded anew each time; arrays inside come as lists. Raises BadHeader for text that is not UTF-8."""
        return self._cursor.at_byte(self._at).items(self.key)


Value = bool | int | float | str | Items


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: `shape` has the columns last; `start` and `stop` count bytes from the beginning of the file."""

    type: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata by its key, tensors by their name in the order of the data. spans: key -> where its type and value start and stop in the file."""

    version: int
    metadata: dict[str, Value]
    tensors: dict[str, Entry]
    alignment: int
    spans: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Gguf:
    """A model in one file, or in all parts of a split one."""

    files: tuple[Path, ...]
    headers: tuple[Header, ...]

    @property
    def metadata(self) -> Mapping[str, Value]:
        """What the first part says; later parts say only which they are."""
        return self.headers[0].metadata

    @cached_property
    def tensors(self) -> dict[str, tuple[int, Entry]]:
        """Name -> (index of its file, entry), of all parts."""
        return {name: (i, entry) for i, header in enumerate(self.headers) for name, entry in header.tensors.items()}

    def floats(self, name: str) -> list[float]:
        """The numbers of a small tensor that says something about the model. Raises BadHeader for one that is not float32."""
        i, entry = self.tensors[name]
        if entry.type != "F32":
            raise BadHeader(f"{self.files[i].name}: {name} is {entry.type}, and F32 was expected")
        with self.files[i].open("rb") as file:
            file.seek(entry.start)
            return list(struct.unpack(f"<{entry.n_bytes // 4}f", file.read(entry.n_bytes)))


def open_gguf(path: Path) -> Gguf:
    """The model at this file, with the parts beside it where it is split. Reads no tensor data.

    Raises what `read_gguf` raises, MissingShard for a part that is not there, BadCheckpoint for parts that are not of one model.
    """
    header = read_gguf(path)
    count = _natural(path.name, header.metadata, "split.count", 1)
    if count <= 1:
        return Gguf((path,), (header,))
    match, number = _PART.fullmatch(path.name), _natural(path.name, header.metadata, "split.no", 0)
    if match is None or (int(match["number"]), int(match["count"])) != (number + 1, count):
        raise BadCheckpoint(f"{path.name} says that it is part {number + 1} of {count}, and parts are found by their names: "
                            f"it must be called NAME-{number + 1:05d}-of-{count:05d}.gguf, and the others alike.")
    files = tuple(path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1))
    if missing := [file.name for file in files if not file.is_file()]:
        raise MissingShard(f"{len(missing)} of the {count} parts of {path.name} are not there, first: {', '.join(missing[:3])}. "
                           f"Was the download complete? Fetch what is missing into {path.parent}.")
    model = Gguf(files, tuple(header if file == path else read_gguf(file) for file in files))
    _check_parts(model)
    return model


def _check_parts(model: Gguf) -> None:
    seen: dict[str, str] = {}
    for i, (file, header) in enumerate(zip(model.files, model.headers, strict=True)):
        number, count = (_natural(file.name, header.metadata, key, None) for key in ("split.no", "split.count"))
        if (number, count) != (i, len(model.files)):
            raise BadCheckpoint(f"{file.name} says that it is part {number + 1} of {count}. Its name is that of another part; fetch both again.")
        for name in header.tensors:
            if name in seen:
                raise BadCheckpoint(f"{name} is in both {seen[name]} and {file.name}, and nothing says which is meant")
            seen[name] = file.name
    n = _natural(model.files[0].name, model.metadata, "split.tensors.count", len(seen))
    if n != len(seen):
        raise BadCheckpoint(f"{model.files[0].name} counts {n:,} tensors in all parts, and they hold {len(seen):,}. "
                            f"They are not of one model; fetch them again.")


def _natural(file: str, metadata: Mapping[str, Value], key: str, absent: int | None) -> int:
    value = metadata.get(key, absent)
    if type(value) is not int or value < 0:
        raise BadHeader(f"{file}: {key} is {value!r:.60}, and a count was expected. Is it a part of a split model, and whole?")
    return value


def read_gguf(path: Path) -> Header:
    """The checked header of one GGUF file.

    Raises BadHeader when it does not parse or contradicts itself or the file, TruncatedFile when the file ends too early, UnsupportedModel for
    a version, byte order or tensor type that is not read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == LFS_POINTER:
            raise BadHeader(f"{path.name} is a Git LFS pointer of {size} bytes, not the weights themselves. Fetch them with: git lfs pull")
        if start[:4] != MAGIC:
            raise BadHeader(f"{path.name} starts with {start[:4]!r}, and a GGUF file with {MAGIC!r}. Is it one?")
        if size < 24:
            raise TruncatedFile(f"{path.name} has {size} bytes, and a GGUF file starts with 24 that say how much follows. Download it again.")
        _check_version(path.name, *struct.unpack("<I", start[4:]))
        cursor = _Cursor(path.name, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), 8)
    n_tensors, n_pairs = cursor.number("Q"), cursor.number("Q")
    for what, n, least in (("tensors", n_tensors, 24), ("pairs of metadata", n_pairs, 13)):  # the fewest bytes one takes
        if n * least > size:
            raise BadHeader(f"{path.name} says that it describes {n:,} {what}, and {size:,} bytes have no room for them. Is the file whole?")
    metadata, spans = _metadata(cursor, n_pairs)
    alignment = _alignment(path.name, metadata)
    found = [_tensor(cursor, i) for i in range(n_tensors)]
    start_of_data = _padded(cursor.at, alignment)
    entries: dict[str, Entry] = {}
    for name, entry in sorted(found, key=lambda each: (each[1].start, each[1].stop)):
        if name in entries:
            raise BadHeader(f"{path.name}: the header names {name!r} twice, so one of the two is not what it seems")
        entries[name] = Entry(entry.type, entry.shape, start_of_data + entry.start, start_of_data + entry.stop)
    _tile(path.name, entries, start_of_data, alignment, size)
    return Header(struct.unpack("<I", start[4:])[0], metadata, entries, alignment, spans)


def _check_version(file: str, version: int) -> None:
    if version & 0xFFFF == 0 and version:
        raise UnsupportedModel(f"{file} is a big-endian GGUF file, and little-endian ones are read. "
                               f"Convert it with gguf-convert-endian of the gguf package.")
    if version not in VERSIONS:
        raise UnsupportedModel(f"{file} is GGUF version {version}, and versions {' and '.join(map(str, VERSIONS))} are read. "
                               f"{'Make it again with a newer llama.cpp.' if version < 2 else 'Is there a newer Pellucid?'}")


def _metadata(cursor: _Cursor, n: int) -> tuple[dict[str, Value], dict[str, tuple[int, int]]]:
    """The values, and where each lies."""
    out: dict[str, Value] = {}
    spans = {}
    for i in range(n):
        key = cursor.text(f"key {i + 1} of the metadata")
        if not key or key in out:
            raise BadHeader(f"{cursor.file}: key {i + 1} of the metadata is {f'{key!r} a second time' if key else 'empty'}. Is the file whole?")
        start = cursor.at
        out[key] = cursor.value(key, cursor.number("I", key))
        spans[key] = start, cursor.at
    return out, spans


def _alignment(file: str, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1):
        raise BadHeader(f"{file}: general.alignment is {value!r:.60}, and a power of two was expected")
    return value


def _tensor(cursor: _Cursor, i: int) -> tuple[str, Entry]:
    """Name and entry of the next tensor, its range counted from the beginning of the data."""
    name = cursor.text(f"the name of tensor {i + 1}")
    n_dims = cursor.number("I", name)
    if n_dims > MAX_DIMS:
        raise BadHeader(f"{cursor.file}: {name} has {n_dims:,} dimensions, and at most {MAX_DIMS} were expected")
    shape = tuple(cursor.number("Q", name) for _ in range(n_dims))[::-1]
    number, offset = cursor.number("I", name), cursor.number("Q", name)
    if number not in FORMATS:
        gone = f"type {_GONE[number]}, which ggml has given up. Make the file again from the original" if number in _GONE else \
            f"the unknown type {number} (known: {', '.join(BY_NAME)})"
        raise UnsupportedModel(f"{cursor.file}: {name} has {gone}.")
    format = FORMATS[number]
    if (shape[-1] if shape else 1) % format.n_numbers:
        raise BadHeader(f"{cursor.file}: {name} is {format.name} of shape {shape}, "
                        f"and its rows must be a multiple of {format.n_numbers} numbers long")
    return name, Entry(format.name, shape, offset, offset + math.prod(shape) // format.n_numbers * format.n_bytes)


def _tile(file: str, entries: Mapping[str, Entry], data_start: int, alignment: int, size: int) -> None:
    """Checks that the tensors follow one another, each padded to the alignment, and end where the file ends, with or without the last padding."""
    at, before, end = data_start, "the header", data_start
    for name, entry in entries.items():
        if entry.start != at:
            fault = "overlaps" if entry.start < at else "leaves a gap after"
            raise BadHeader(f"{file}: {name} starts at byte {entry.start:,} and {fault} {before}, which ends at {at:,}, padded to {alignment}")
        before, end = name, entry.stop
        at = _padded(end, alignment)
    if entries and end > size:
        raise TruncatedFile(f"{file} has {size:,} bytes, and its header describes {end:,}. The download was cut short: fetch it again.")
    if at < size:
        raise BadHeader(f"{file} has {size:,} bytes, and its header describes only {at:,}. What the rest is, nothing says.")


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


class _Cursor:
    """A place in a mapped file that moves as it reads and never past the end."""

    def __init__(self, file: str, data: mmap.mmap, at: int) -> None:
        self.file, self.data, self.at = file, data, at

    def at_byte(self, at: int) -> _Cursor:
        return _Cursor(self.file, self.data, at)

    def take(self, n: int, what: str) -> int:
        """Moves on by n bytes; where they start."""
        if n > len(self.data) - self.at:
            raise TruncatedFile(f"{self.file} has {len(self.data):,} bytes, and its header goes on past them, in {what:.100}: {n:,} more were "
                                f"expected at byte {self.at:,}. Was the download cut short? Fetch it again.")
        self.at += n
        return self.at - n

    def number(self, code: str, what: str = "its counts") -> Any:
        return struct.unpack_from(f"<{code}", self.data, self.take(struct.calcsize(f"<{code}"), what))[0]

    def text(self, what: str) -> str:
        n = self.number("Q", what)
        start = self.take(n, what)
        try:
            return self.data[start : start + n].decode()
        except UnicodeDecodeError as e:
            raise BadHeader(f"{self.file}: {what:.100} is not UTF-8 ({e.reason} at byte {start + e.start:,}). Is the file whole?") from None

    def value(self, key: str, kind: int) -> Value:
        if kind == _TEXT:
            return self.text(key)
        if kind == _ARRAY:
            start = self.at
            inner, n = self._skip(key, 1)
            return Items(key, _KINDS[inner], n, self, start)
        return self._numbers(key, kind, 1)[0]  # type: ignore[no-any-return]

    def items(self, key: str) -> list[Any]:
        """The array that starts here."""
        kind, n = self.number("I", key), self.number("Q", key)
        if kind == _TEXT:
            return self._texts(key, n)
        return [self.items(key) for _ in range(n)] if kind == _ARRAY else list(self._numbers(key, kind, n))

    def _numbers(self, key: str, kind: int, n: int) -> tuple[Any, ...]:
        if kind not in _CODES:
            raise BadHeader(f"{self.file}: {key:.100} has the unknown type {kind} (known: {', '.join(_KINDS.values())}). Is the file whole?")
        start = self.take(n * struct.calcsize(f"<{_CODES[kind]}"), key)
        if kind == _BOOL and (odd := set(self.data[start : start + n]) - {0, 1}):
            raise BadHeader(f"{self.file}: {key:.100} is a bool, and holds {min(odd)} where 0 or 1 was expected")
        return struct.unpack_from(f"<{n}{_CODES[kind]}", self.data, start)

    def _skip(self, key: str, depth: int) -> tuple[int, int]:
        """Walks over an array without decoding it; the kind of its items and how many there are."""
        if depth > MAX_NESTED:
            raise BadHeader(f"{self.file}: {key:.100} nests arrays more than {MAX_NESTED} deep. Is the file whole?")
        kind, n = self.number("I", key), self.number("Q", key)
        if kind not in _KINDS:
            self._numbers(key, kind, 0)
        if kind in _CODES:
            self.take(n * struct.calcsize(f"<{_CODES[kind]}"), key)
        elif n * (8 if kind == _TEXT else 12) > len(self.data) - self.at:
            raise BadHeader(f"{self.file}: {key:.100} says that it has {n:,} items, and {len(self.data) - self.at:,} bytes are left of the file. "
                            f"Is it whole?")
        elif kind == _TEXT:
            self._ends(key, n)
        else:
            for _ in range(n):
                self._skip(key, depth + 1)
        return kind, n

    def _ends(self, key: str, n: int) -> list[int]:
        """Moves over n texts; where each of them ends. A loop of its own: vocabularies have hundreds of thousands."""
        out, at, size, length = [], self.at, len(self.data), _LENGTH.unpack_from
        for _ in range(n):
            if at + 8 > size or (end := at + 8 + length(self.data, at)[0]) > size:
                self.at = at
                self.take(self.number("Q", key), key)  # raises
            out.append(end)
            at = end
        self.at = at
        return out

    def _texts(self, key: str, n: int) -> list[str]:
        start = self.at
        ends = self._ends(key, n)
        starts = [start + 8, *(end + 8 for end in ends[:-1])]
        try:
            return [self.data[a:b].decode() for a, b in zip(starts, ends, strict=n > 0)]
        except UnicodeDecodeError:
            self.at = start
            return [self.text(key) for _ in range(n)]  # raises, and says where
