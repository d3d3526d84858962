"""The engine's memory: what layers keep of tokens, in pages that sequences share.

    group    layers that see equally far. A page's number means the same tokens in each of them
    pool     one layer's pages in one tensor: keys (P, N, K, C), values (P, N, K, C); a latent (P, N, 1, E). N = 32 tokens a page
    table    a sequence's pages of one group, in the order of its tokens; those that no later query sees are given back from the front
    name     of a page that is full: a hash of all the tokens up to its end. A new sequence that begins alike takes the page as it is
    idle     pages that no sequence uses and that have a name: they stay until their room is needed, the longest unused first

The layout is what native kernels read; tokens of one sequence that lie in pages one after another are one tensor, and are read without a copy.
Source of the idea: PagedAttention, https://arxiv.org/abs/2309.06180.
"""
from __future__ import annotations

import hashlib
import math
from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from pellucid.engine.group import PAGE, Group
from pellucid.engine.store import kept_shapes, pack8, pack16, unpack8, untouched
from pellucid.errors import OutOfMemoryBudget
from pellucid.model.cache import Held
from pellucid.model.parts import Rows
from pellucid.model.report import size
from pellucid.model.rope import by_length, planned, turns_as
from pellucid.ops.interface import Pages
from pellucid.spec import DecoderSpec, LatentAttention

NEVER = 1 << 62  # pages that no row has

@dataclass(slots=True)
class Names:
    """The names of a sequence's full pages, hashed once however often it waits in vain."""

    turns: bytes = b""  # how its rope turns, and what it is computed by: part of every name
    names: list[bytes] = field(default_factory=list)

    def of(self, turns: bytes, ids: Sequence[int]) -> list[bytes]:
        """Those of these ids."""
        if turns != self.turns:
            self.turns, self.names = turns, []
        if len(self.names) < len(ids) // PAGE:
            self.names = chain(turns, ids, self.names)
        return self.names[: len(ids) // PAGE]


@dataclass(slots=True)
class _Row:
    """What one sequence holds."""

    turns: bytes  # how its rope turns, and by what else it is computed: part of every name
    salt: bytes  # the latter
    planned: int  # tokens, see model/rope.py
    names: list[bytes]  # of its full pages, as far as its tokens are known
    tables: list[list[int]]  # of each group, from page first[g] on
    first: list[int]
    coming: deque[tuple[int, bytes]]  # pages that it will be the first to compute: place and name
    n_settled: int  # full pages that have been named


class PagedCache:
    """Pages for every sequence of an engine: implements what a decoder's pass continues from, `model.cache.Memory`.

    Args:
        n_bytes: what all pools together may take. They take less where that is more than `max_rows` whole contexts.
        step_tokens: the most tokens a pass brings, which layers with a window need room for beside it.
        devices: each layer's, where they are on several; limits: what the pools on each of them may take, where that is bounded.

    Raises OutOfMemoryBudget where not even one page of every layer fits.
    """

    def __init__(self, spec: DecoderSpec, *, n_bytes: int, max_rows: int, step_tokens: int, dtype: torch.dtype, device: torch.device | str = "cpu",
                 store: Literal["same", "float16", "int8"] = "same", devices: Sequence[torch.device] | None = None,
                 limits: Mapping[torch.device, int] | None = None) -> None:
        self.spec, self.device, self.dtype, self.store = spec, torch.device(device), dtype, store
        self.kept = torch.float16 if store == "float16" else dtype  # of the pools, but for int8
        self.lengths: dict[int, int] = {}
        self._rows: dict[int, _Row] = {}
        self._coming: set[bytes] = set()
        self._scalings = by_length(spec)
        self._next = 0
        self._devices = [self.device] * len(spec.layers) if devices is None else list(devices)  # of each layer
        self.groups, self._group_of = self._grouped()
        self._share_out(n_bytes, max_rows, step_tokens, limits or {})
        self.pools = [self._pools(layer) for layer in range(len(spec.layers))]
        self._scratch: dict[torch.device, dict[str, Tensor]] = {device: {} for device in self._devices}  # see Pages
        self._pass: dict[int, tuple[slice | Tensor, Pages]] = {}  # of each group, for the pass of these rows
        self._pass_of: Rows | None = None

    # What sequences do

    def open(self, ids: Sequence[int], end: int, *, reuse: int | None = None, names: Names | None = None, salt: bytes = b"") -> int | None:
        """A row for a sequence of these ids that may grow to `end` tokens; `lengths` says how many of them are there already.

        At most `reuse` are taken over, and never the last one, whose logits are what comes next. None = not now: another sequence is about to
        compute what this one begins with. names: of the ids' pages, for one that is opened again. salt: what else than the ids decides what is computed,
        an adapter: pages are shared among rows of the same.
        """
        plan = planned(self._scalings, len(ids), end)
        turns = self._turns(plan) + salt
        own = (Names() if names is None else names).of(turns, ids)
        limit = min(len(ids) - 1, len(ids) if reuse is None else reuse) // PAGE
        n = self._known(own[:limit])
        if n < limit and own[n] in self._coming:
            return None
        row = _Row(turns, salt, plan, own, [[] for _ in self.groups], [0] * len(self.groups), deque(), 0)
        slot, self._next = self._next, self._next + 1
        for g, group in enumerate(self.groups):
            row.first[g] = group.first_seen(n * PAGE) // PAGE
            row.tables[g] = [group.named[name] for name in row.names[row.first[g]:n]]
            for page in row.tables[g]:
                group.share(page)
        row.coming.extend((n + i, name) for i, name in enumerate(row.names[n:]) if name not in self._coming)
        row.n_settled = n
        self._coming.update(name for _, name in row.coming)
        self._rows[slot], self.lengths[slot] = row, n * PAGE
        return slot

    def reserve(self, slot: int, n_tokens: int, *, spare: int = 0) -> bool:
        """Pages for the row's first `n_tokens`. False if there are not enough with `spare` left over, and then nothing is taken."""
        row = self._rows[slot]
        n = -(-n_tokens // PAGE)
        wanted = [max(0, n - first - len(table)) for first, table in zip(row.first, row.tables, strict=True)]
        if any(want and want + spare > group.n_available for want, group in zip(wanted, self.groups, strict=True)):
            return False
        for want, group, table in zip(wanted, self.groups, row.tables, strict=True):
            for _ in range(want):
                table.append(group.take(table[-1] if table else None))
        return True

    def settle(self, slot: int, ids: Sequence[int], length: int) -> None:
        """After a pass: the row's first `length` tokens are these ids and computed, what is past them is not to be used.

        Names the pages that are full, and gives back those that no later query sees.
        """
        row = self._rows[slot]
        self.lengths[slot] = length
        if len(row.names) < length // PAGE:
            row.names = chain(row.turns, ids[: length // PAGE * PAGE], row.names)
        for g, group in enumerate(self.groups):
            first, table = row.first[g], row.tables[g]
            for i in range(row.n_settled, length // PAGE):
                group.name(table[i - first], row.names[i])
            keep = min(group.first_seen(length // PAGE * PAGE) // PAGE, first + len(table))  # a block may be computed again from its start
            for page in table[: keep - first]:
                group.give_back(page)
            row.first[g], row.tables[g] = max(first, keep), table[max(0, keep - first):]
        row.n_settled = max(row.n_settled, length // PAGE)
        while row.coming and row.coming[0][0] < row.n_settled:
            self._coming.discard(row.coming.popleft()[1])

    def replan(self, slot: int, length: int, end: int) -> bool:
        """False if a row of this length turns by other angles than what the row holds: it must be opened anew."""
        row = self._rows[slot]
        plan = planned(self._scalings, length, end) if self._scalings else length
        if self._scalings and self._turns(plan) + row.salt != row.turns:
            return False
        row.planned = max(row.planned, plan)
        return True

    def close(self, slot: int, *, scrub: bool = False) -> None:
        """The row is no more; its named pages stay while there is room. scrub: what it computed is not numbers, and is wiped and not kept."""
        row = self._rows.pop(slot)
        if scrub:
            self._scrub(row)
        del self.lengths[slot]
        self._coming.difference_update(name for _, name in row.coming)
        for group, table in zip(self.groups, row.tables, strict=True):
            for page in reversed(table):  # the end of a prefix is of less use than its beginning: it goes first
                group.give_back(page)

    def _scrub(self, row: _Row) -> None:
        for group, table in zip(self.groups, row.tables, strict=True):
            own = [page for page in table if group.users[page] == 1]
            for page in own:
                group.forget_name(page)
            for layer in group.layers:
                for pool in self.pools[layer]:
                    pool[own] = 0

    def capacity(self, step_tokens: int) -> int:
        """Tokens of the longest row that can be computed when it has all pages to itself."""
        limits = [group.n_pages * PAGE for group in self.groups if group.n_pages < (group.pages_of_one(step_tokens) or math.inf)]
        return min([self.spec.n_ctx, *limits])

    def forget(self) -> None:
        """Nothing computed so far is used again, but by the rows that are open; nor what they go on to compute."""
        for row in self._rows.values():
            for group, table in zip(self.groups, row.tables, strict=True):
                for page in table:
                    group.forget_name(page)
            self._coming.difference_update(name for _, name in row.coming)
            row.coming.clear()
            row.n_settled = NEVER
        for group in self.groups:
            group.forget_idle()

    @property
    def n_bytes(self) -> int:
        return sum(group.n_pages * group.bytes_per_page for group in self.groups)

    @property
    def used_share(self) -> float:
        """Of the fullest group's pages, those that open rows hold."""
        return max((1 - group.n_available / group.n_pages for group in self.groups), default=0.0)

    # What a decoder's pass does

    def planned_lengths(self, rows: Sequence[int], q_lengths: Sequence[int]) -> list[int]:
        """See `Memory`."""
        return [self._rows[row].planned for row in rows]

    def advance(self, rows: Sequence[int], q_lengths: Sequence[int]) -> None:
        """See `Memory`."""
        self._pass_of = None
        for row, n in zip(rows, q_lengths, strict=True):
            self.lengths[row] += n

    def keep(self, layer: int, rows: Rows, *new: Tensor) -> Held:
        """See `Memory`."""
        g = self._group_of[layer]
        if self._pass_of is not rows:
            self._pass_of, self._pass = rows, {}
        if g not in self._pass:
            self._pass[g] = self._places(g, rows)
        place, pages = self._pass[g]
        for pool, part in zip(self.pools[layer], self._packed(new), strict=True):
            pool.flatten(0, 1)[place] = part
        if self.store != "int8":
            return Held(tuple(self.pools[layer]), pages.lengths, pages)
        gathered = [pages.gather(pool) for pool in self.pools[layer]]
        return Held(tuple(unpack8(*pair, self.dtype) for pair in zip(gathered[::2], gathered[1::2], strict=True)), pages.lengths)

    def places(self, rows: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """Of every group and row the pages it holds, and the first position on them: for who writes and reads the pools itself."""
        held = [(self._rows[slot].tables[g], self._rows[slot].first[g] * PAGE) for g in range(len(self.groups)) for slot in rows]
        return [table for table, _ in held], [base for _, base in held]

    def group(self, layer: int) -> int:
        """Which group the pages of a layer are of."""
        return self._group_of[layer]

    def _packed(self, new: Iterable[Tensor]) -> Iterable[Tensor]:
        if self.store == "int8":
            return [part for x in new for part in pack8(x)]
        return new if self.kept == self.dtype else [pack16(x) for x in new]

    def _places(self, g: int, rows: Rows) -> tuple[slice | Tensor, Pages]:
        """Where a pass's new tokens go in the group's pools, taken as tokens one after another, and where its rows' keys are."""
        group, write, tables, offsets, lengths = self.groups[g], [], [], [], []
        device = self._devices[group.layers[0]]
        for slot, n in zip(rows.slots, rows.lengths, strict=True):
            row, start = self._rows[slot], self.lengths[slot]
            first, table = row.first[g], row.tables[g]
            write += [table[p // PAGE - first] * PAGE + p % PAGE for p in range(start, start + n)]
            seen = group.first_seen(start)
            tables.append(tuple(table[seen // PAGE - first : -(-(start + n) // PAGE) - first]))
            offsets.append(seen % PAGE)
            lengths.append(start + n - seen)
        pages = Pages(PAGE, tuple(tables), tuple(offsets), tuple(lengths), tuple(rows.lengths), device, self._scratch[device])
        if write[-1] - write[0] + 1 == len(write) and write == list(range(write[0], write[-1] + 1)):
            return slice(write[0], write[-1] + 1), pages
        return torch.tensor(write, device=device), pages

    # How it is built

    def _grouped(self) -> tuple[list[Group], dict[int, int]]:
        """The groups, and which one each layer that keeps something is in."""
        by_reach: dict[tuple[int | None, int | None, torch.device], list[int]] = {}
        for i, layer in enumerate(self.spec.layers):
            if layer.mixer is not None and layer.mixer.n_cached:
                how = (None, None) if isinstance(layer.mixer, LatentAttention) else (layer.mixer.window, layer.mixer.chunk)
                by_reach.setdefault((*how, self._devices[i]), []).append(i)
        groups = [Group(layers, window, chunk, PAGE * sum(self._bytes_per_token(i) for i in layers)) for (window, chunk, _), layers in by_reach.items()]
        return groups, {i: g for g, group in enumerate(groups) for i in group.layers}

    def _bytes_per_token(self, layer: int) -> int:
        mixer = self.spec.layers[layer].mixer
        assert mixer is not None
        itemsize, scale = (1, 4) if self.store == "int8" else (self.kept.itemsize, 0)
        return sum(heads * (width * itemsize + scale) for heads, width in kept_shapes(mixer))

    def _share_out(self, n_bytes: int, max_rows: int, step_tokens: int, limits: Mapping[torch.device, int]) -> None:
        """Pages for each group: for the same number of tokens, but no more than `max_rows` rows of a window can use."""
        def pages(n: int) -> list[int]:
            return [n if (most := group.pages_of_one(step_tokens)) is None else min(n, max_rows * most) for group in self.groups]

        def cost(n: int, device: torch.device | None = None) -> int:
            return sum(count * group.bytes_per_page for count, group in zip(pages(n), self.groups, strict=True)
                       if device is None or self._devices[group.layers[0]] == device)

        def fits(n: int) -> bool:
            return cost(n) <= n_bytes and all(cost(n, device) <= most for device, most in limits.items())

        low, high = 0, max_rows * -(-self.spec.n_ctx // PAGE)
        if not fits(high):
            while low < high - 1:
                low, high = ((low + high) // 2, high) if fits((low + high) // 2) else (low, (low + high) // 2)
            high = low
        if high == 0 and self.groups:
            device = next((device for device, most in limits.items() if cost(1, device) > most), None)
            room, where = (n_bytes, "") if device is None else (limits[device], f" on {device}")
            raise OutOfMemoryBudget(f"the cache may take {size(room)}{where}, and one page of {PAGE} tokens takes {size(cost(1, device))}. Give it more",
                                    needed_bytes=cost(1, device), available_bytes=room)
        for group, count in zip(self.groups, pages(high), strict=True):
            group.furnish(count)

    def _pools(self, layer: int) -> list[Tensor]:
        mixer = self.spec.layers[layer].mixer
        if mixer is None or not mixer.n_cached:
            return []
        P, shapes, device = self.groups[self._group_of[layer]].n_pages, kept_shapes(mixer), self._devices[layer]
        if self.store != "int8":
            return [untouched(P, PAGE, *shape, dtype=self.kept, device=device) for shape in shapes]
        return [untouched(P, PAGE, *shape, dtype=dtype, device=device) for heads, width in shapes
                for shape, dtype in (((heads, width), torch.int8), ((heads, 1), torch.float32))]

    # Names

    def turns(self, length: int, end: int) -> bytes:
        """How the rope of a row of so many tokens turns that may grow to `end`: names begin with it."""
        return self._turns(planned(self._scalings, length, end))

    def _turns(self, length: int) -> bytes:
        return repr(turns_as(self._scalings, length)).encode() if self._scalings else b""

    def _known(self, names: Sequence[bytes]) -> int:
        """How many leading pages need not be computed: every group has the pages that a query after them sees."""
        n = next((i for i, name in enumerate(names) if any(name not in g.named for g in self._unbounded)), len(names))
        while n and not all(name in g.named for g in self.groups for name in names[g.first_seen(n * PAGE) // PAGE : n]):
            n -= 1
        return n

    @cached_property
    def _unbounded(self) -> list[Group]:
        return [group for group in self.groups if group.reach is None]


def chain(turns: bytes, ids: Sequence[int], names: Sequence[bytes] = ()) -> list[bytes]:
    """The names of all full pages of these ids. names: those that are known, and not hashed again."""
    names = list(names)
    for i in range(len(names), len(ids) // PAGE):
        before = names[-1] if names else turns
        names.append(hashlib.blake2b(array("q", ids[i * PAGE : (i + 1) * PAGE]).tobytes(), key=hashlib.blake2b(before, digest_size=32).digest(),
                                     digest_size=32).digest())
    return names
