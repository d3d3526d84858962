"""The most likely way to cut a text into pieces, with the choice between equals that SentencePiece makes.

"aaaaa" is "aaaa"+"a" or "a"+"aaaa", equally likely: SentencePiece decides by the rounding of a float32 sum over all the text before, the tokenizers
library by a float64 one, and otherwise. So the library cuts wherever the best cut leads by more than rounding can move, which is known of a word
once and for all texts, and `Lattice` cuts the rest in SentencePiece's arithmetic. docs/LOG.md has the rates.
Source: EncodeOptimized in src/unigram_model.cc of sentencepiece 0.2.3.
"""
from __future__ import annotations

import functools
import itertools
import math
import re
import secrets
from array import array
from collections.abc import Mapping

import tokenizers
from tokenizers import models

SPACE = "▁"
_UNKNOWN_PENALTY = 10.0  # kUnkPenalty: an unknown character costs this much more than the least likely piece
_HALF_ULP = 2.0 ** -24 * 1.001  # of a float32 sum: what one addition rounds away at most, and a little for the bound's own rounding
_RESET = 100_000.0  # kScoreResetThreshold: a sum that has grown larger begins anew (in 0.2.3; not yet at commit 27344904)
_BLOCK = 64  # words: what is cut in SentencePiece's arithmetic where one word of it is in doubt
_LONGEST = 40  # characters of a word worth knowing; in scripts without spaces a word is a sentence, and seldom comes again
_KEPT = 100_000  # words, some 20 MB


class Unigram:
    """Text -> ids of a unigram model. bytes: the id of every byte, where unknown characters become theirs; empty where they become unk_id."""

    def __init__(self, lattice: Lattice, n_pieces: int, bytes: Mapping[int, int]) -> None:
        self._lattice, self._bytes, unk_id = lattice, bytes, lattice.unk_id
        # What no text may become has a name that nobody can type. The bytes' names the library must know: `_certain_to` looks out for them.
        vocab = [(f"\ufdd0{secrets.token_hex(8)}{i}", 0.0) for i in range(n_pieces)]
        for text, (i, score) in lattice.pieces.items():
            vocab[i] = text, score
        for byte, i in bytes.items():
            vocab[i] = f"<0x{byte:02X}>", 0.0
        self._words = _words(lattice.pieces, unk_id)
        self._library = tokenizers.Tokenizer(models.Unigram(vocab, unk_id, byte_fallback=bool(bytes)))
        self._scores = [score for _, score in vocab]
        for byte, i in bytes.items():  # an unknown character counts once: at its first byte
            self._scores[i] = 0.0 if byte & 0xC0 == 0x80 else lattice.unk_score
        self._sizes = [abs(score) for score in self._scores]
        self._unk_differs = abs(lattice.unk_score - (min(score for _, score in vocab) - _UNKNOWN_PENALTY))  # the library's is not rounded
        self._limits: dict[str, float] = {}

    def ids(self, text: str) -> list[int]:
        """The ids of a normalized text. A run of unknown characters may be one unk_id or several."""
        if self._words is None:
            return self._exactly(text, 0.0)[0]
        words = self._words.findall(text)
        if len(self._limits) > _KEPT:
            self._limits = {}  # not cleared: another thread may be reading it
        limits = self._limits
        for word in set(words).difference(limits):
            if len(word) <= _LONGEST:
                limits[word] = self._certain_to(word)
        out: list[int] = []
        before = 0.0  # the float32 sum over the text so far
        for start in range(0, len(words), _BLOCK):
            block = words[start : start + _BLOCK]
            limit = min(map(limits.get, block, itertools.repeat(-1.0)))
            ids: list[int] = self._library.encode("".join(block), add_special_tokens=False).ids if limit > abs(before) else []
            # A run of unknown characters is one id where there are no bytes, which does not say how many they were.
            countable = bool(self._bytes) or self._lattice.unk_id not in ids
            largest = abs(before) + 1.01 * sum(map(self._sizes.__getitem__, ids))
            if countable and limit > largest and largest + _LONGEST * self._lattice.largest < _RESET:  # the last: on any path, not the best alone
                if start + _BLOCK < len(words):
                    before = functools.reduce(lambda total, i: _float32(total + self._scores[i]), ids, before)
            else:
                ids, before = self._exactly("".join(block), before)
            out += ids
        return out

    def _exactly(self, text: str, before: float) -> tuple[list[int], float]:
        cut, total = self._lattice.cut(text, before)
        ids: list[int] = []
        for i, piece in cut:
            ids += [self._bytes[b] for b in piece.encode()] if i == self._lattice.unk_id and self._bytes else (i,)
        return ids, total

    def _certain_to(self, word: str) -> float:
        """How large the sum over the text before may be for the word's best cut to be SentencePiece's too, and the library's; -1 for never.

        No path through the word adds more than its n characters, each addition rounds by half an ulp of a sum below |before| + n max|score|, and
        the float32 best is at least as good, after rounding, as the best: so it is the best, where that leads by the rounding of both.
        """
        if self._bytes and "<0x" in word:
            return -1.0
        lead, n_best = self._lattice.lead(word)
        n = len(word)
        return (lead - n * self._unk_differs - 1e-9) / ((n_best + n) * _HALF_ULP) - n * self._lattice.largest


class Lattice:
    """Pieces with their log-probabilities, and the best path through them.

    Args:
        scores: (id, float32 log-probability) of every piece that text may contain.
        own: the pieces of the user's own, which get a bonus instead of a probability.
    """

    def __init__(self, scores: Mapping[str, tuple[int, float]], own: Mapping[str, int], unk_id: int) -> None:
        likely = [score for _, score in scores.values()] or [0.0]
        self.unk_id, self.unk_score = unk_id, _float32(_float32(min(likely)) - _UNKNOWN_PENALTY)
        # 0.1 a byte, less 0.1: the scores that sentencepiece 0.2.3 reports. (0.2.1 gave them -0.1, which loses to nothing likely either.)
        self.pieces = dict(scores) | {text: (i, _float32(len(text.encode()) * 0.1 - 0.1)) for text, i in own.items()}
        self.largest = max(abs(self.unk_score), *(abs(score) for _, score in self.pieces.values()), 0.0)
        self._longest: dict[str, int] = {}
        for text in self.pieces:
            self._longest[text[0]] = max(self._longest.get(text[0], 1), len(text))
        self._furthest = max(self._longest.values(), default=1)  # characters: no piece reaches further ahead

    def cut(self, text: str, before: float = 0.0) -> tuple[list[tuple[int, str]], float]:
        """(id, piece) of the best cut, in order, and its score added to `before`; a character that no piece covers is (unk_id, character)."""
        n, pieces, unk = len(text), self.pieces, self.unk_score
        # Of the best path to each position: its score, rounded to float32 when kept; its last piece's start (-1: none yet) and id.
        best, start, last = array("f", bytes(4 * (n + 1))), [-1] * (n + 1), [self.unk_id] * (n + 1)
        best[0] = before
        for i in range(n):
            here, single = best[i], False
            if not -_RESET <= here <= _RESET:
                for j in range(i, min(n, i + self._furthest) + 1):
                    if j == i or start[j] >= 0:
                        best[j] -= here
                here = 0.0
            for j in range(i + 1, min(n, i + self._longest.get(text[i], 0)) + 1):
                if (found := pieces.get(text[i:j])) is None:
                    continue
                single = single or j == i + 1
                score = _float32(found[1] + here)
                if start[j] < 0 or score > best[j]:
                    best[j], start[j], last[j] = score, i, found[0]
            if not single:
                score = _float32(unk + here)
                if start[i + 1] < 0 or score > best[i + 1]:
                    best[i + 1], start[i + 1], last[i + 1] = score, i, self.unk_id
        out, end = [], n
        while end > 0:
            out.append((last[end], text[start[end]:end]))
            end = start[end]
        return out[::-1], best[n]

    def lead(self, text: str) -> tuple[float, int]:
        """By how much the best cut is likelier than the second, unrounded (infinity where there is only one), and how many pieces it has."""
        ways: list[list[tuple[float, int]]] = [[(0.0, 0)], *([] for _ in text)]  # to each position: score and number of pieces
        for i in range(len(text)):
            two, single = sorted(ways[i], reverse=True)[:2], False
            for j in range(i + 1, min(len(text), i + self._longest.get(text[i], 0)) + 1):
                if (found := self.pieces.get(text[i:j])) is not None:
                    single = single or j == i + 1
                    ways[j] += [(score + found[1], n + 1) for score, n in two]
            if not single:
                ways[i + 1] += [(score + self.unk_score, n + 1) for score, n in two]
        first, second = [*sorted(ways[-1], reverse=True), (-math.inf, 0)][:2]
        return first[0] - second[0], first[1]


def _words(pieces: Mapping[str, tuple[int, float]], unk_id: int) -> re.Pattern[str] | None:
    """Cuts a text where no piece can cross; None where pieces cross everywhere, or where what the library is told would mean something else."""
    if not all(math.isfinite(score) for _, score in pieces.values()) or any("<0x" in text or i == unk_id for text, (i, _) in pieces.items()):
        return None
    if not any(re.search(f"[^{SPACE}]{SPACE}", text) for text in pieces):
        return re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")
    if not any(re.search(f"{SPACE}[^{SPACE}]", text) for text in pieces):  # spaces at the end of words
        return re.compile(f"[^{SPACE}]*{SPACE}+|[^{SPACE}]+")
    return None


def _float32(value: float) -> float:
    return array("f", [value])[0]
