"""The wire format of protocol buffers, reading only: as much as a SentencePiece model needs.

https://protobuf.dev/programming-guides/encoding/
"""
from __future__ import annotations

import struct
from collections.abc import Iterator

from pellucid.errors import BadTokenizer

Value = int | bytes


def fields(message: bytes, where: str) -> Iterator[tuple[int, Value]]:
    """(field number, value) in the order of the file: varints and fixed integers as int (unsigned), everything with a length as bytes.

    Raises BadTokenizer for bytes that are not a message: a length past the end, an unfinished number, a wire type that does not exist.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at, where)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at, where)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at, where)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise BadTokenizer(f"{where}: wire type {kind} at byte {at} does not exist in protocol buffers. Is this a SentencePiece model?")
        if number == 0 or at + size > end:
            raise BadTokenizer(f"{where}: field {number} at byte {at} wants {size} bytes, {end - at} are left. Is the file whole, and a "
                               f"SentencePiece model?")
        data, at = message[at:at + size], at + size
        yield number, data if kind == 2 else int.from_bytes(data, "little")


def _varint(message: bytes, at: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):  # 64 bits take at most ten bytes of seven
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise BadTokenizer(f"{where}: a number at byte {at} does not end. Is the file whole, and a SentencePiece model?")


def as_float(value: Value) -> float:
    """A 32-bit field as the float it is."""
    assert isinstance(value, int)
    return float(struct.unpack("<f", struct.pack("<I", value))[0])


def as_int32(value: Value) -> int:
    """A varint field as the signed number it is (negative numbers are written as 64 bits)."""
    assert isinstance(value, int)
    return value - (1 << 64) if value >= 1 << 63 else value
