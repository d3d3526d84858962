"""Two ways to cut text into tokens that the tokenizers library has not: RWKV's and PLaMo 2's, which only GGUF files bring here.

https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-vocab.cpp (llm_tokenizer_rwkv, llm_tokenizer_plamo2)
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pellucid.tokenizer.encode import Token, splitter

_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.S)
_ESCAPED = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}
_SCALE, _UNKNOWN = 1e4, 10_000_000  # PLaMo 2 counts scores in ten thousandths; what no piece covers costs a thousand
_BOM = "\ufeff"


class CutEncoder:
    """A function from text to ids, and tokens that are cut out of the text before it sees any."""

    unk: str | None = None

    def __init__(self, cut: Callable[[str], list[int]], names: Sequence[str], tokens: Iterable[Token]) -> None:
        self._cut, self._names = cut, names
        self._ids = {name: i for i, name in enumerate(names)}
        self.n_vocab = len(names)
        self.added = {token.text: token for token in tokens}
        self._all = splitter(self.added.values())
        self._ordinary = splitter(t for t in self.added.values() if not t.special)

    def text(self, text: str) -> list[int]:
        return self.mixed([text])

    def rendered(self, text: str) -> list[int]:
        return self._joined(self._all(text))

    def mixed(self, parts: Sequence[str | int]) -> list[int]:
        return self._joined([q for p in parts for q in (self._ordinary(p) if isinstance(p, str) else [p])])

    def id_of(self, token: str) -> int | None:
        return self._ids.get(token)

    def token_of(self, token_id: int) -> str | None:
        return self._names[token_id] if 0 <= token_id < len(self._names) else None

    def _joined(self, parts: Iterable[str | int]) -> list[int]:
        return [i for part in parts for i in ((part,) if isinstance(part, int) else self._cut(part))]


def unescaped(token: str) -> bytes:
    """The bytes of a token as RWKV's vocabulary is written: what Python shows of a bytes object, without its quotes."""
    return _ESCAPE.sub(lambda m: bytes([int(m[1][1:], 16)]) if len(m[1]) == 3 else _ESCAPED.get(m[1], m[1]), token.encode())


def longest(table: Mapping[bytes, int]) -> Callable[[str], list[int]]:
    """At every place the longest token there is. The table has every single byte."""
    sizes: dict[bytes, set[int]] = {}
    for token in table:
        sizes.setdefault(token[:2], set()).add(len(token))
    tried = {start: sorted(found, reverse=True) for start, found in sizes.items()}

    def cut(text: str) -> list[int]:
        data, at, out = text.encode(), 0, []
        while at < len(data):
            size = next((n for n in tried.get(data[at : at + 2], ()) if data[at : at + n] in table), 1)
            out.append(table[data[at : at + size]])
            at += size
        return out

    return cut


def likeliest(pieces: Mapping[str, tuple[int, float]], bytes_at: Sequence[int]) -> Callable[[str], list[int]]:
    """The cut whose scores add up highest, found from the end; of equals the one with the longer piece first. pieces: text -> id, score.

    bytes_at: the id of every byte, which a character that is no piece becomes.
    """
    known = {text: (i, _rounded(score * _SCALE)) for text, (i, score) in pieces.items() if math.isfinite(score) and score * _SCALE > -2 * _UNKNOWN}
    furthest: dict[str, int] = {}
    for text in known:
        furthest[text[0]] = max(furthest.get(text[0], 1), len(text))

    def cut(text: str) -> list[int]:
        text = text.removeprefix(_BOM)
        n = len(text)
        best, ids, sizes = [0] * (n + 1), [-1] * n, [1] * n
        for at in range(n - 1, -1, -1):
            best[at] = best[at + 1] - _UNKNOWN
            for size in range(1, min(n - at, furthest.get(text[at], 0)) + 1):
                if (found := known.get(text[at : at + size])) is not None and (total := best[at + size] + found[1]) >= best[at]:
                    best[at], ids[at], sizes[at] = total, found[0], size
        out, at = [], 0
        while at < n:
            out += [ids[at]] if ids[at] >= 0 else [bytes_at[b] for b in text[at].encode()]
            at += sizes[at]
        return out

    return cut


def _rounded(value: float) -> int:
    """Halves away from zero, as C++ rounds."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))
