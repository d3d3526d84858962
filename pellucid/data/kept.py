"""Items kept as bytes, on disk where they are many, and read at any place: so that a set larger than memory can be shuffled, and gone on with.

    an item     kind:u8 ids of the first:u32 of the second:u32 | ids:u32... flags, 8 a byte | of the second | its origin to the end      little-endian

Five bytes a token or fewer, where tuples take some forty.
"""
from __future__ import annotations

import mmap
import struct
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from pellucid.data.example import Comparison, Example, Item, Verdict, examples

IN_MEMORY = 64 << 20  # bytes; more of them lie in a file without a name, which is gone with the process
_HEAD = struct.Struct("<BII")
_KINDS = ("example", "comparison", "bad", "good")


class Kept(Sequence[Item]):
    """The items that were given, in their order. folder: where a file lies if they are many; None = the system's for such files."""

    def __init__(self, items: Iterable[Item], folder: Path | None = None, in_memory: int = IN_MEMORY) -> None:
        self._at = array("Q", [0])
        with tempfile.SpooledTemporaryFile(max_size=in_memory, dir=folder) as file:
            for item in items:
                record = content(item) + item.origin.encode()
                file.write(record)
                self._at.append(self._at[-1] + len(record))
            file.seek(0)
            on_disk = self._at[-1] > in_memory
            self._bytes: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if on_disk else file.read()

    def __len__(self) -> int:
        return len(self._at) - 1

    @overload
    def __getitem__(self, i: int) -> Item: ...
    @overload
    def __getitem__(self, i: slice) -> list[Item]: ...
    def __getitem__(self, i: int | slice) -> Item | list[Item]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        k = range(len(self))[i]  # raises IndexError, and counts negative ones from the end
        return _item(self._bytes[self._at[k] : self._at[k + 1]])

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))


class Some(Sequence[Item]):
    """Those of other items that stand at these places."""

    def __init__(self, items: Sequence[Item], places: Iterable[int]) -> None:
        self._items, self._places = items, array("Q", places)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, i: int) -> Item: ...
    @overload
    def __getitem__(self, i: slice) -> list[Item]: ...
    def __getitem__(self, i: int | slice) -> Item | list[Item]:
        return [self._items[k] for k in self._places[i]] if isinstance(i, slice) else self._items[self._places[i]]

    def __iter__(self) -> Iterator[Item]:
        return (self._items[k] for k in self._places)


def content(item: Item) -> bytes:
    """All of an item but where it was read: equal for items that teach the same."""
    each = examples(item)
    assert all(one.origin == item.origin for one in each)  # one row says it all
    kind = "comparison" if isinstance(item, Comparison) else ("bad", "good")[item.good] if isinstance(item, Verdict) else "example"
    parts = [_HEAD.pack(_KINDS.index(kind), len(each[0].ids), len(each[1].ids) if len(each) > 1 else 0)]
    for one in each:
        parts += [np.array(one.ids, "<u4").tobytes(), np.packbits(np.array(one.learned, bool)).tobytes()]
    return b"".join(parts)


def _item(record: bytes) -> Item:
    kind, n, m = _HEAD.unpack_from(record)
    second = _HEAD.size + _size(n)
    origin = record[second + _size(m) :].decode()
    first = _example(record, _HEAD.size, n, origin)
    if _KINDS[kind] == "comparison":
        return Comparison(first, _example(record, second, m, origin), origin)
    return first if _KINDS[kind] == "example" else Verdict(first, _KINDS[kind] == "good", origin)


def _size(n: int) -> int:
    """Bytes of so many ids and their flags."""
    return 4 * n + (n + 7) // 8


def _example(record: bytes, at: int, n: int, origin: str) -> Example:
    ids = np.frombuffer(record, "<u4", n, at).tolist()
    learned = np.unpackbits(np.frombuffer(record, np.uint8, (n + 7) // 8, at + 4 * n), count=n).astype(bool).tolist()
    return Example(tuple(ids), tuple(learned), origin)
