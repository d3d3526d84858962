"""Items in the order they are learned in: a pure function of a seed and the step, so that a run that goes on sees what it would have seen."""
from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from pellucid.data.example import Item
from pellucid.data.kept import Some, content

DIGEST = 16  # bytes that stand for an item: among 10^9 of them two are the same once in 10^20 times
_MARK = 1024  # places between two counts that are kept of how a mixture was drawn


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
        self._orders: dict[tuple[int, int], Sequence[int]] = {}
        self._marks = [[0] * len(sources)]  # how many of each set came before place 0, _MARK, 2 * _MARK...

    @property
    def n_epoch(self) -> int:
        """Items until every one of some set has been seen, and of the others as many as their shares are."""
        return max(1, round(max(len(source.items) / share for source, share in zip(self.sources, self.shares, strict=True)))) if len(self.sources) > 1 \
            else len(self.sources[0].items)

    def steps(self, epochs: float) -> int:
        return max(1, round(epochs * self.n_epoch / self.batch))

    def step(self, n: int) -> list[Item]:
        """The items of step n, counted from 0."""
        return [self._item(s, k) for s, k in self._drawn(n * self.batch, self.batch)]

    def _drawn(self, begin: int, n: int) -> list[tuple[int, int]]:
        """For n places of the order: the set, and how many of it came before. The rule is a walk: cheap, and the same however far a run has come."""
        if len(self.sources) == 1:
            return [(0, begin + i) for i in range(n)]
        while len(self._marks) <= begin // _MARK:
            counts = self._marks[-1].copy()
            for _ in range(_MARK):
                self._draw(counts)
            self._marks.append(counts)
        counts = self._marks[begin // _MARK].copy()
        return [self._draw(counts) for _ in range(begin % _MARK + n)][begin % _MARK :]

    def _draw(self, counts: list[int]) -> tuple[int, int]:
        s = min(range(len(counts)), key=lambda s: ((counts[s] + 1) / self.shares[s], s))
        counts[s] += 1
        return s, counts[s] - 1

    def _item(self, s: int, k: int) -> Item:
        items = self.sources[s].items
        return items[self._order(s, k // len(items))[k % len(items)]]

    def _order(self, s: int, epoch: int) -> Sequence[int]:
        n = len(self.sources[s].items)
        if not self.shuffle:
            return range(n)
        if (s, epoch) not in self._orders:
            order = array("Q", range(n))
            random.Random(f"{self.seed} {s} {epoch}").shuffle(order)  # type: ignore[arg-type]  # a text goes through SHA-512: the same on every machine
            self._orders = {key: kept for key, kept in self._orders.items() if key[0] != s or key[1] >= epoch - 1} | {(s, epoch): order}
        return self._orders[s, epoch]


def held_out(items: Sequence[Item], n: int, seed: int) -> tuple[Sequence[Item], Sequence[Item]]:
    """(to learn from, kept apart): n items or a few more, the same for a seed. None of them is of a row that is learned from, or says what such a row says."""
    rows = array("Q")  # of each item: the number of its row, whose items follow one another
    origin = None
    for item in items:
        rows.append((rows[-1] if rows else 0) + (origin is not None and item.origin != origin))
        origin = item.origin
    order = list(range(rows[-1] + 1)) if rows else []
    random.Random(f"{seed} held out").shuffle(order)
    count = array("Q", bytes(8 * len(order)))
    for row in rows:
        count[row] += 1
    apart: set[int] = set()
    taken = 0
    for row in order:
        if taken >= n:
            break
        apart.add(row)
        taken += count[row]
    found = -1
    while apart and len(apart) > found:  # rows that say the same go along, until none is left
        found = len(apart)
        told = {digest(item) for item, row in zip(items, rows, strict=True) if row in apart}
        apart |= {row for item, row in zip(items, rows, strict=True) if digest(item) in told}
    return Some(items, (i for i, row in enumerate(rows) if row not in apart)), Some(items, (i for i, row in enumerate(rows) if row in apart))


def digest(item: Item) -> bytes:
    """Of all that an item says: equal for rows that say the same, wherever they were read."""
    return blake2b(content(item), digest_size=DIGEST).digest()
