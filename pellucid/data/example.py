"""What methods learn from, in token ids. No torch here: a row is read, rendered and judged without it."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence. learned[t]: token t is a target, predicted from the tokens before it; the first has none before it and is never one.

    origin: where it was read, such as chats.jsonl:17, for every message about it.
    """

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    origin: str

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.learned) or not self.ids or self.learned[0]:
            raise ValueError(f"{self.origin}: {len(self.ids)} ids and {len(self.learned)} flags, of which the first has to be False")

    @property
    def n_learned(self) -> int:
        """Targets."""
        return sum(self.learned)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, the better one first."""

    chosen: Example
    rejected: Example
    origin: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer that was called good or bad."""

    example: Example
    good: bool
    origin: str


Item = Example | Comparison | Verdict


def examples(item: Item) -> tuple[Example, ...]:
    """The sequences of an item."""
    if isinstance(item, Comparison):
        return item.chosen, item.rejected
    return (item.example,) if isinstance(item, Verdict) else (item,)


def n_tokens(item: Item) -> int:
    """Of all its sequences: what it takes of a batch."""
    return sum(len(each.ids) for each in examples(item))
