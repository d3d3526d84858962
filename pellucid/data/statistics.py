"""What a set of items is, in numbers: for the plan before the first step, and for the report."""
from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pellucid.data.example import Comparison, Item, Verdict, examples
from pellucid.data.stock import digest

_LISTED = 1000  # pairs of rows that are told by name; beyond that they are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """lengths: tokens of each sequence, sorted. duplicates: origins of rows that say the same, in pairs with the first that does. conflicting: of rows that ask
    the same and answer otherwise, prefer the other answer, or give the same answer another verdict. Of both so many are counted, and the first are listed."""

    n_items: int
    n_tokens: int
    n_learned: int
    lengths: Sequence[int]
    duplicates: tuple[tuple[str, str], ...]
    conflicting: tuple[tuple[str, str], ...]
    n_duplicates: int
    n_conflicting: int

    @classmethod
    def of(cls, items: Iterable[Item]) -> Statistics:
        n_items, n_learned, lengths = 0, 0, array("I")
        same, other = _Pairs(), _Pairs()
        whole: dict[bytes, str] = {}
        asked: dict[bytes, str] = {}
        for item in items:
            n_items += 1
            for each in examples(item):
                lengths.append(len(each.ids))
                n_learned += each.n_learned
            key, (mine, against) = digest(item), _claims(item)
            if key in whole:
                same.add(whole[key], item.origin)
            elif against is not None and against in asked and asked[against] != item.origin:
                other.add(asked[against], item.origin)
            whole.setdefault(key, item.origin)
            if mine is not None:
                asked.setdefault(mine, item.origin)
        return cls(n_items=n_items, n_tokens=sum(lengths), n_learned=n_learned, lengths=array("I", sorted(lengths)), duplicates=tuple(same.first),
                   conflicting=tuple(other.first), n_duplicates=same.n, n_conflicting=other.n)

    @property
    def learned_share(self) -> float:
        """Targets per token."""
        return self.n_learned / max(1, self.n_tokens)

    def length_at(self, share: float) -> int:
        """Tokens that this share of the sequences does not exceed: 0.5 = the median."""
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))] if self.lengths else 0

    def histogram(self) -> list[tuple[int, int]]:
        """(up to so many tokens, sequences), in powers of two."""
        bins: dict[int, int] = {}
        for length in self.lengths:
            top = 1 << (length - 1).bit_length()
            bins[top] = bins.get(top, 0) + 1
        return sorted(bins.items())

    def plain(self) -> dict[str, Any]:
        """As JSON has it, for a report."""
        return {"items": self.n_items, "sequences": len(self.lengths), "tokens": self.n_tokens, "learned": self.n_learned,
                "lengths": {"least": self.length_at(0), "median": self.length_at(0.5), "p90": self.length_at(0.9), "most": self.length_at(1)},
                "histogram": [{"up_to": top, "sequences": n} for top, n in self.histogram()],
                "duplicates": {"count": self.n_duplicates, "first": [list(pair) for pair in self.duplicates[:20]]},
                "conflicting": {"count": self.n_conflicting, "first": [list(pair) for pair in self.conflicting[:20]]}}


class _Pairs:
    def __init__(self) -> None:
        self.first: list[tuple[str, str]] = []
        self.n = 0

    def add(self, first: str, second: str) -> None:
        self.n += 1
        if len(self.first) < _LISTED:
            self.first.append((first, second))


def _claims(item: Item) -> tuple[bytes | None, bytes | None]:
    """What the item claims, and which claim of another would stand against it; an equal item never comes here."""
    if isinstance(item, Comparison):
        mine = _hash(item.chosen.ids, item.rejected.ids)
        return mine, _hash(item.rejected.ids, item.chosen.ids)
    if isinstance(item, Verdict):
        return _hash(item.example.ids, (item.good,)), _hash(item.example.ids, (not item.good,))
    begin = next((i for i, flag in enumerate(item.learned) if flag), 0)
    asked = _hash(item.ids[:begin]) if begin > 1 else None  # a text has no prompt
    return asked, asked


def _hash(*parts: Sequence[int]) -> bytes:
    return blake2b(b"|".join(array("q", part).tobytes() for part in parts), digest_size=16).digest()
