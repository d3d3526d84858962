"""Where the constrained part of an output begins: after a text or after ids, such as the end of a model's thinking.

Until then anything may come but an end; and no token may reach past the mark but with white space, since a grammar begins with a whole token.
States count how much of the mark has come; -1 says that all of it has.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from pellucid.engine.grammar import Vocabulary


class Mark(Protocol):
    def step(self, state: int, token_id: int) -> int:
        """The state after an id that is allowed."""

    def allows(self, state: int, token_id: int) -> bool:
        """Whether an id may come, ends aside."""

    def words(self, state: int) -> Tensor:
        """All ids that may come, as a mask (W,) int32."""


class IdsMark:
    """These ids in this order."""

    def __init__(self, ids: Sequence[int], vocabulary: Vocabulary) -> None:
        self.ids = tuple(ids)
        self._back = borders(self.ids)
        self._words = vocabulary.words(i for i, t in enumerate(vocabulary.tokens) if t and i not in vocabulary.eos_ids)
        self._known = frozenset(i for i, t in enumerate(vocabulary.tokens) if t)

    def step(self, state: int, token_id: int) -> int:
        state = follow(self.ids, self._back, state, token_id)
        return -1 if state == len(self.ids) else state

    def allows(self, state: int, token_id: int) -> bool:
        return token_id in self._known

    def words(self, state: int) -> Tensor:
        return self._words


class TextMark:
    """This text, however it is cut into tokens, special ones included."""

    def __init__(self, text: bytes, vocabulary: Vocabulary) -> None:
        self.text, self._vocabulary = text, vocabulary
        self._back = borders(text)
        self._enders = [i for i, t in enumerate(vocabulary.tokens) if text[-1:] in t and i not in vocabulary.eos_ids]  # they can complete it
        self._by_state: dict[int, Tensor] = {}

    def step(self, state: int, token_id: int) -> int:
        for byte in self._vocabulary.tokens[token_id]:
            state = follow(self.text, self._back, state, byte)
            if state == len(self.text):
                return -1
        return state

    def allows(self, state: int, token_id: int) -> bool:
        tokens = self._vocabulary.tokens
        if not 0 <= token_id < len(tokens) or not tokens[token_id]:
            return False
        came = self.text[:state] + tokens[token_id]
        end = came.find(self.text) + len(self.text)
        return end < len(self.text) or not came[end:].strip(b" \n\r\t")

    def words(self, state: int) -> Tensor:
        if state not in self._by_state:
            v = self._vocabulary
            past = {i for i in self._enders if not self.allows(state, i)}
            self._by_state[state] = v.words(i for i, t in enumerate(v.tokens) if t and i not in v.eos_ids and i not in past)
        return self._by_state[state]


def borders(pattern: Sequence[int]) -> list[int]:
    """For each length of a beginning, the longest shorter beginning it ends with (Knuth, Morris and Pratt 1977)."""
    back = [0, 0]
    for i in range(1, len(pattern)):
        back.append(follow(pattern, back, back[i], pattern[i]))
    return back


def follow(pattern: Sequence[int], back: Sequence[int], state: int, item: int) -> int:
    """How much of the pattern has come once `item` follows `state` of it."""
    while state and (state == len(pattern) or pattern[state] != item):
        state = back[state]
    return state + 1 if pattern[state] == item else 0
