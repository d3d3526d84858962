"""The most likely way to cut a text into pieces, in the arithmetic of SentencePiece, so that the choice between equals is its choice.

"aaaaa" is "aaaa"+"a" or "a"+"aaaa", equally likely: SentencePiece decides by the rounding of a float32 sum over all the text before. The
tokenizers library sums in float64 and decides otherwise, hence this file. About 300 thousand characters a second.
Source: EncodeOptimized,
  https://github.com/google/sentencepiece/blob/273449044caa593c2fd7eb7550cb3ab2cff93f1a/src/unigram_model.cc#L889-L1020
"""
from __future__ import annotations

from array import array
from collections.abc import Mapping

_UNKNOWN_PENALTY = 10.0  # kUnkPenalty: an unknown character costs this much more than the least likely piece


class Unigram:
    """Pieces with their log-probabilities.

    Args:
        scores: (id, float32 log-probability) of every piece that text may contain.
        own: the pieces of the user's own, which get a bonus instead of a probability.
    """

    def __init__(self, scores: Mapping[str, tuple[int, float]], own: Mapping[str, int], unk_id: int) -> None:
        likely = [score for _, score in scores.values()] or [0.0]
        self._unk_id, self._unk_score = unk_id, _float32(_float32(min(likely)) - _UNKNOWN_PENALTY)
        # 0.1 a byte, less 0.1: the scores that sentencepiece 0.2.3 reports. (0.2.1 gave them -0.1, which loses to nothing likely either.)
        self._pieces = dict(scores) | {text: (i, _float32(len(text.encode()) * 0.1 - 0.1)) for text, i in own.items()}
        self._longest: dict[str, int] = {}
        for text in self._pieces:
            self._longest[text[0]] = max(self._longest.get(text[0], 1), len(text))

    def cut(self, text: str) -> list[tuple[int, str]]:
        """(id, piece) of the best cut, in order; a character that no piece covers is (unk_id, character)."""
        n, pieces, unk = len(text), self._pieces, self._unk_score
        # Of the best path to each position: its score, rounded to float32 when kept; its last piece's start (-1: none yet) and id.
        best, start, last = array("f", bytes(4 * (n + 1))), [-1] * (n + 1), [self._unk_id] * (n + 1)
        for i in range(n):
            here, single = best[i], False
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
                    best[i + 1], start[i + 1], last[i + 1] = score, i, self._unk_id
        out, end = [], n
        while end > 0:
            out.append((last[end], text[start[end]:end]))
            end = start[end]
        return out[::-1]


def _float32(value: float) -> float:
    return array("f", [value])[0]
