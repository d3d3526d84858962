"""SentencePiece's compiled normalization: a double-array trie from byte strings to replacement texts.

Longest match first, at every character, on the text as it comes: exactly what SentencePiece does. (The `Precompiled` normalizer of the
tokenizers library works on grapheme clusters and differs, for example on decomposed Hangul and Vietnamese.)
Layout: a little-endian uint32 with the trie's size in bytes, the trie's uint32 units, then the replacements, each ended by a zero byte.
Units: https://github.com/s-yata/darts-clone/blob/e40ce4627526985a7767444b6ed6893ab6ff8983/include/darts.h#L50-L80
"""
from __future__ import annotations

import struct

from pellucid.errors import BadTokenizer

_ROOT = 0


class Charsmap:
    """The rules, ready to apply. Raises BadTokenizer for a blob whose lengths do not add up."""

    def __init__(self, blob: bytes, where: str = "precompiled_charsmap") -> None:
        size = struct.unpack_from("<I", blob)[0] if len(blob) >= 4 else 0
        if size == 0 or size % 4 or 4 + size > len(blob):
            raise BadTokenizer(f"{where}: the normalization table says its trie has {size} bytes, but {max(len(blob) - 4, 0)} follow. Is "
                               f"the file whole?")
        self._units = struct.unpack_from(f"<{size // 4}I", blob, 4)
        self._texts = blob[4 + size:]
        self._starts: dict[str, tuple[int, str | None] | None] = {}  # character -> where the trie stands after it, and its own replacement

    def split(self, text: str) -> list[str]:
        """The text as normalized chunks, one a matched rule or unmatched character, in order; joined they are the normalized text."""
        out, i, n, starts = [], 0, len(text), self._starts
        while i < n:
            char = text[i]
            if char not in starts:
                starts[char] = self._walk(_ROOT, char)
            start = starts[char]
            if start is None:
                out.append(char)
                i += 1
                continue
            node, best = start
            length, j = 1, i + 1
            while j < n and (step := self._walk(node, text[j])) is not None:
                node, j = step[0], j + 1
                if step[1] is not None:
                    best, length = step[1], j - i
            out.append(char if best is None else best)
            i += length
        return out

    def _walk(self, node: int, char: str) -> tuple[int, str | None] | None:
        """Follows a whole character from a node: (the node reached, the replacement of the key that ends there), or None where no path goes."""
        units, value = self._units, None
        if node == _ROOT:
            node = _offset(units[0])
        for byte in char.encode():
            node ^= byte
            if node >= len(units) or units[node] & 0x800000FF != byte:
                return None
            unit = units[node]
            node ^= _offset(unit)
            value = units[node] & 0x7FFFFFFF if unit >> 8 & 1 else None
        return node, None if value is None else self._text(value)

    def _text(self, at: int) -> str:
        return self._texts[at:self._texts.index(b"\0", at)].decode()


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 512) >> 6)
