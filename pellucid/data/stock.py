"""Items in the order they are learned in: a pure function of a seed and the step, so that a run that goes on sees what it would have seen."""
from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pellucid.data.example import Item, examples, n_tokens


@dataclass(frozen=True, slots=True)
class Source:
    """A set of items. weight: how often one of it is drawn beside the others; an epoch is over when the set whose weight is largest for its size is."""

    name: str
    items: Sequence[Item]
    weight: float = 1.0


class Stock:
    """The items of several sets, mixed.

    One set is read in its order, or in another one every epoch. Of several, each place of the order is of the set that is furthest behind its share, and
    each set goes through its own epochs: shares hold at every step, not only on average.
    """

    def __init__(self, sources: Sequence[Source], *, batch: int, seed: int, shuffle: bool = True) -> None:
        self.sources, self.batch, self.seed, self.shuffle = tuple(sources), batch, seed, shuffle
        total = sum(source.weight for source in sources)
        self.shares = [source.weight / total for source in sources]
        self._orders: dict[tuple[int, int], list[int]] = {}
        self._drawn, self._sets = [0] * len(sources), list[tuple[int, int]]()  # each place's set, and how many of it came before

    @property
    def n_epoch(self) -> int:
        """Items until every one of some set has been seen, and of the others as many as their shares are."""
        return max(1, round(max(len(source.items) / share for source, share in zip(self.sources, self.shares, strict=True)))) if len(self.sources) > 1 \
            else len(self.sources[0].items)

    def steps(self, epochs: float) -> int:
        return max(1, round(epochs * self.n_epoch / self.batch))

    def step(self, n: int) -> list[Item]:
        """The items of step n, counted from 0."""
        return [self._at(place) for place in range(n * self.batch, (n + 1) * self.batch)]

    def _at(self, place: int) -> Item:
        while len(self._sets) <= place:  # the rule is a walk: cheap, and the same however far a run has come
            s = min(range(len(self.sources)), key=lambda s: ((self._drawn[s] + 1) / self.shares[s], s))
            self._sets.append((s, self._drawn[s]))
            self._drawn[s] += 1
        s, k = self._sets[place]
        items = self.sources[s].items
        return items[self._order(s, k // len(items))[k % len(items)]]

    def _order(self, s: int, epoch: int) -> Sequence[int]:
        n = len(self.sources[s].items)
        if not self.shuffle:
            return range(n)
        if (s, epoch) not in self._orders:
            order = list(range(n))
            random.Random(f"{self.seed} {s} {epoch}").shuffle(order)  # a text as seed goes through SHA-512: the same on every machine
            self._orders = {key: kept for key, kept in self._orders.items() if key[0] != s or key[1] >= epoch - 1} | {(s, epoch): order}
        return self._orders[s, epoch]


def held_out(items: Sequence[Item], n: int, seed: int) -> tuple[list[Item], list[Item]]:
    """(to learn from, kept apart): n items, the same for a seed, and none of a row that is learned from."""
    origins = list(dict.fromkeys(item.origin for item in items))
    random.Random(f"{seed} held out").shuffle(origins)
    apart: set[str] = set()
    count = Counter(item.origin for item in items)
    taken = 0
    for origin in origins:
        if taken >= n:
            break
        apart.add(origin)
        taken += count[origin]
    return [item for item in items if item.origin not in apart], [item for item in items if item.origin in apart]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of items: for the report and before the first step. lengths: tokens of each sequence, sorted."""

    n_items: int
    n_tokens: int
    n_learned: int
    lengths: tuple[int, ...]
    duplicates: tuple[tuple[str, str], ...]  # origins of rows that are the same
    conflicting: tuple[tuple[str, str], ...]  # of rows that ask the same and answer otherwise

    @classmethod
    def of(cls, items: Sequence[Item]) -> Statistics:
        sequences = [each for item in items for each in examples(item)]
        whole: dict[bytes, str] = {}
        asked: dict[bytes, tuple[str, bytes]] = {}
        twice, otherwise = [], []
        for item in items:
            key = _hash(repr([(each.ids, each.learned) for each in examples(item)]))
            first = next(iter(examples(item)))
            begin = next((i for i, flag in enumerate(first.learned) if flag), 0)
            prompt = _hash(repr(first.ids[:begin]))
            if key in whole:
                twice.append((whole[key], item.origin))
            elif begin > 1 and prompt in asked and asked[prompt][0] != item.origin:
                otherwise.append((asked[prompt][0], item.origin))
            whole.setdefault(key, item.origin)
            asked.setdefault(prompt, (item.origin, key))
        return cls(n_items=len(items), n_tokens=sum(map(n_tokens, items)), n_learned=sum(each.n_learned for each in sequences),
                   lengths=tuple(sorted(len(each.ids) for each in sequences)), duplicates=tuple(twice), conflicting=tuple(otherwise))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
