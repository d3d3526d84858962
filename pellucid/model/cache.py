"""What the mixers have already computed: growing buffers, a set for each layer and row."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pellucid.errors import BadRequest
from pellucid.model.parts import Rows
from pellucid.model.rope import by_length, turns_as
from pellucid.ops.interface import Ops, Pages
from pellucid.spec import DecoderSpec

GROWTH = 256  # tokens: a buffer starts here and doubles, so that appending costs constant time on average


@dataclass(frozen=True, slots=True)
class Held:
    """What rows hold of one layer: such as keys and values, row after row (S, ...) each, or pools of pages that `pages` says how to read."""

    parts: tuple[Tensor, ...]
    lengths: Sequence[int]  # tokens of each row that the queries of this pass may see
    pages: Pages | None = None

    def rows(self) -> tuple[Tensor, ...]:
        """Row after row, (S, ...) each."""
        return self.parts if self.pages is None else tuple(map(self.pages.gather, self.parts))

    def attend(self, ops: Ops, q_THC: Tensor, k: Tensor, v: Tensor, q_lengths: Sequence[int], **how: Any) -> Tensor:
        """`Ops.attend` over keys and values that are parts of this."""
        if self.pages is None:
            return ops.attend(q_THC, k, v, q_lengths=q_lengths, k_lengths=self.lengths, **how)
        return ops.attend_pages(q_THC, k, v, self.pages, **how)


class Memory(Protocol):
    """What a pass continues from: a `Cache`, or the engine's pages."""

    lengths: Any  # tokens that each row holds, by its number

    def keep(self, layer: int, rows: Rows, *new: Tensor) -> Held:
        """Keeps what a layer's mixer wants kept of the new tokens, such as keys (T, K, C) and values (T, K, C). All that the rows now hold of it."""
        ...

    def planned_lengths(self, rows: Sequence[int], q_lengths: Sequence[int]) -> Sequence[int]:
        """How long each row is taken to be, which is what ropes may depend on."""
        ...

    def advance(self, rows: Sequence[int], q_lengths: Sequence[int]) -> None:
        """Counts the tokens that every layer has now seen."""
        ...


def keep(cache: Memory | None, layer: int, rows: Rows, *new: Tensor) -> Held:
    """`Memory.keep`; without a memory, what the pass itself brings."""
    return Held(new, rows.lengths) if cache is None else cache.keep(layer, rows, *new)


class Cache:
    """Memory of `n_rows` sequences. A forward pass extends it; `lengths` says how many tokens each row holds.

    Of a model whose rope depends on a row's length, what a row holds is right only for lengths that turn alike. `plan` says how long a row
    is going to be before its first pass; a row that would outgrow its plan into other angles is refused.
    """

    def __init__(self, spec: DecoderSpec, n_rows: int = 1) -> None:
        self.lengths = [0] * n_rows
        self.planned = [0] * n_rows  # tokens; each row's rope is the one for so many
        self._scalings = by_length(spec)
        self._buffers: list[list[tuple[Tensor, ...] | None]] = [[None] * n_rows for _ in spec.layers]

    def keep(self, layer: int, rows: Rows, *new: Tensor) -> Held:
        """See `Memory`."""
        lengths = [self.lengths[slot] + n for slot, n in zip(rows.slots, rows.lengths, strict=True)]
        return Held(self.extend(layer, rows.slots, rows.lengths, *new), lengths)

    def extend(self, layer: int, rows: Sequence[int], q_lengths: Sequence[int], *new: Tensor) -> tuple[Tensor, ...]:
        """Appends what a layer's mixer keeps of the new tokens, such as keys (T, K, C) and values (T, K, C).

        Returns everything each row holds of it, row after row, (S, ...) each. With one row that is a view of its buffer: nothing is copied.
        """
        held = []
        for row, *parts in zip(rows, *(x.split(list(q_lengths)) for x in new), strict=True):
            start, stop = self.lengths[row], self.lengths[row] + parts[0].shape[0]
            buffers = self._room(layer, row, stop, parts)
            for buffer, part in zip(buffers, parts, strict=True):
                buffer[start:stop] = part
            held.append([buffer[:stop] for buffer in buffers])
        return tuple(held[0]) if len(held) == 1 else tuple(torch.cat(rows) for rows in zip(*held, strict=True))

    def plan(self, row: int, length: int) -> bool:
        """Says that this row is going to hold so many tokens. False if what it held was turned by other angles, and is forgotten."""
        stays = self.lengths[row] == 0 or self._alike(self.planned[row], length)
        if not stays:
            self.lengths[row] = 0
        self.planned[row] = length
        return stays

    def planned_lengths(self, rows: Sequence[int], q_lengths: Sequence[int]) -> list[int]:
        """How long each row is taken to be in a pass that brings so many new tokens. Raises BadRequest for one whose angles would change."""
        for row, n in zip(rows, q_lengths, strict=True):
            stop = max(self.planned[row], self.lengths[row] + n)
            if self.lengths[row] and not self._alike(self.planned[row], stop):
                raise BadRequest(f"a row of {stop} tokens was begun as one of {self.planned[row]}, and this model's rope turns all keys of so long a "
                                 f"row by other angles. Cache.plan(row, length) says it in time; or start the row anew.", field="prompt")
            self.planned[row] = stop
        return [self.planned[row] for row in rows]

    def _alike(self, a: int, b: int) -> bool:
        """Whether what is held of a row planned for `a` tokens is right for one of `b`."""
        return turns_as(self._scalings, a) == turns_as(self._scalings, b)

    def advance(self, rows: Sequence[int], q_lengths: Sequence[int]) -> None:
        """Counts the tokens that every layer has now seen."""
        for row, n in zip(rows, q_lengths, strict=True):
            self.lengths[row] += n

    def truncate(self, row: int, length: int) -> None:
        """Forgets everything of a row past `length` tokens; with none left, what was planned too."""
        self.lengths[row] = min(self.lengths[row], length)
        if not self.lengths[row]:
            self.planned[row] = 0

    def _room(self, layer: int, row: int, stop: int, new: Sequence[Tensor]) -> tuple[Tensor, ...]:
        held = self._buffers[layer][row]
        if held is not None and held[0].shape[0] >= stop:
            return held
        capacity = max(GROWTH, stop if held is None else 2 * held[0].shape[0], stop)
        grown = tuple(part.new_empty(capacity, *part.shape[1:]) for part in new)
        for buffer, old in zip(grown, held or (), strict=held is not None):
            buffer[: old.shape[0]] = old
        self._buffers[layer][row] = grown
        return grown
