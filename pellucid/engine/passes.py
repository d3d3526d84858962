"""Who computes a pass over the engine's pages: a native plan where there is one and nobody looks inside, else the decoder."""
from __future__ import annotations

import math
from collections.abc import Sequence as Ids

import torch
from torch import Tensor

from pellucid.engine.group import PAGE
from pellucid.engine.pages import PagedCache
from pellucid.engine.score import Tap
from pellucid.engine.sequence import Sequence
from pellucid.model.decoder import Decoder
from pellucid.model.low_rank import Choice
from pellucid.model.parts import Rows
from pellucid.model.plan import Plan
from pellucid.model.plan_scope import Declined


class Passes:
    """Computes tokens of rows that go on from the cache.

    tap: what is read in place of hidden states, while somebody asks for it. suspect: whether anything was computed that is not a number; whoever
    wants to know sets it back. declined: why there is no plan.
    """

    def __init__(self, decoder: Decoder, cache: PagedCache) -> None:
        self.decoder, self.cache, self.device = decoder, cache, decoder.embed.weight.device
        self.tap: Tap | None = None
        self.suspect = False
        self.declined = ""
        self.plan: Plan | None = None
        self._was_seen = False  # whether the latest pass was the decoder's because somebody looked inside
        self._write()

    def _write(self) -> None:
        try:
            self.plan = Plan(self.decoder, self.cache, PAGE)
        except Declined as e:
            self.plan, self.declined = None, str(e)

    def refresh(self) -> None:
        """Writes the plan anew where modules or weights were changed since, and forgets what they computed: to be called when a sequence begins."""
        if self.plan is None:
            return
        if self.decoder.deterministic and self._seen != self._was_seen:  # the plan's bits are not the decoder's
            self.cache.forget()
        if not self.plan.current:
            self.cache.forget()
            self._write()

    def sequences(self, plan: list[tuple[Sequence, int]]) -> tuple[list[Tensor], list[Tensor]]:
        """Hidden states (T, D) of every sequence's tokens to come, and the same or what is tapped in its place.

        No plan knows adapters: where there is one, rows that take an adapter are the decoder's, in a pass of their own, so that they change nobody's bits.
        """
        for sequence, _ in plan:
            self.cache.lengths[_slot(sequence)] = sequence.n_computed  # whatever an interrupted pass left there
        self._was_seen = self._seen
        if self.plan is None or self._was_seen or len({s.adapter is None for s, _ in plan}) == 1:
            return self._pass(plan)
        out: list[tuple[Tensor, Tensor]] = [(torch.empty(0), torch.empty(0))] * len(plan)
        for adapted in (False, True):
            places = [i for i, (s, _) in enumerate(plan) if (s.adapter is not None) == adapted]
            for i, *both in zip(places, *self._pass([plan[i] for i in places]), strict=True):
                out[i] = both[0], both[1]
        return [hidden for hidden, _ in out], [tapped for _, tapped in out]

    def _pass(self, plan: list[tuple[Sequence, int]]) -> tuple[list[Tensor], list[Tensor]]:
        """Sequences that all take an adapter, or none of which does, or that the decoder computes in any case."""
        adapters = tuple(s.adapter for s, _ in plan)
        if self.decoder.deterministic and (self.plan is None or self._was_seen or any(adapters)):
            blocks = [self._in_blocks(sequence, n) for sequence, n in plan]
            return [hidden for hidden, _ in blocks], [tapped for _, tapped in blocks]
        rows = Rows(tuple(n for _, n in plan), tuple(_slot(s) for s, _ in plan), adapters)
        ids: list[int] = []
        for s, n in plan:
            ids += s.ids[s.n_computed : s.n_computed + n] if not s.drafts else (s.ids + s.drafts)[s.n_computed : s.n_computed + n]
        hidden_TD, tapped_TD = self._both(self.hidden(ids, rows))
        hidden = [hidden_TD] if len(plan) == 1 else list(hidden_TD.split(rows.lengths))
        return hidden, hidden if tapped_TD is hidden_TD else list(tapped_TD.split(rows.lengths))

    def hidden(self, ids: list[int], rows: Rows) -> Tensor:
        """Hidden states (T, D) of these tokens. Each row goes on from what the cache says that it holds."""
        ends = max(self.cache.lengths[slot] + n for slot, n in zip(rows.slots, rows.lengths, strict=True))
        if self.plan is not None and self._plans(len(ids), ends) and not any(rows.adapters):
            hidden_TD = self.plan.forward(ids, rows)
            self.suspect |= not self.plan.finite
            return hidden_TD
        positions = [p for slot, n in zip(rows.slots, rows.lengths, strict=True) for p in range(self.cache.lengths[slot], self.cache.lengths[slot] + n)]
        return self._decode(ids, positions, rows)

    def goes_on(self, n: int) -> bool:
        """Whether `go_on` can be asked for so many rows."""
        return self.plan is not None and self.plan.goes_on and self._plans(n)

    def go_on(self, sequences: Ids[Sequence], n: int, stops: Ids[int]) -> list[list[int]]:
        """See `Plan.go_on`: sequences whose newest id alone is left to compute."""
        assert self.plan is not None
        slots = [_slot(s) for s in sequences]
        for slot, sequence in zip(slots, sequences, strict=True):
            self.cache.lengths[slot] = sequence.n_computed
        self._was_seen = False
        return self.plan.go_on([s.ids[-1] for s in sequences], slots, n, stops)

    def unembed(self, hidden_TD: Tensor, adapters: Ids[str | None] = ()) -> Tensor:
        """Logits (T, V) for the token that follows each position. adapters: that of each token; empty = none."""
        matrix = self.decoder.unembed
        own = [t for t, name in enumerate(adapters) if matrix.adapters is not None and name is not None and matrix.adapters.get(name) is not None]
        if not own:
            return self._unembed(hidden_TD)
        choice = Choice.of([adapters[t] for t in own], [1] * len(own), self.device)
        adapted_NV: Tensor = matrix(hidden_TD[own].to(self.decoder.embed.weight.dtype), choice)
        if len(own) == len(hidden_TD):
            return adapted_NV
        rest = sorted(set(range(len(hidden_TD))) - set(own))
        rest_NV = self._unembed(hidden_TD[rest])
        out_TV = rest_NV.new_empty(len(hidden_TD), rest_NV.shape[1])
        out_TV[rest], out_TV[own] = rest_NV, adapted_NV.to(rest_NV.dtype)
        return out_TV

    def likeliest(self, hidden_TD: Tensor) -> list[int] | None:
        """Of each position the id with the largest logit, the first of equal ones, where the plan finds them without computing all: else None."""
        if self.plan is None or not self._plans(len(hidden_TD)) or self.plan.spec.logit_scale != 1.0 or self.plan.spec.logit_softcap is not None:
            return None
        ids = self.plan.likeliest(hidden_TD)
        return None if -1 in ids else ids

    def _unembed(self, hidden_TD: Tensor) -> Tensor:
        if self.plan is not None and self._plans(len(hidden_TD)):
            return self.plan.unembed(hidden_TD)
        out_TV: Tensor = self.decoder.unembed(hidden_TD.to(self.decoder.embed.weight.dtype))
        return out_TV

    def _plans(self, n: int, ends: float = math.inf) -> bool:
        """Whether the plan computes so many tokens. ends: where the longest of their texts does with them."""
        plan = self.plan
        return plan is not None and not self._seen and (plan.whole or n <= plan.few or ends <= plan.short or self.decoder.deterministic)

    @property
    def _seen(self) -> bool:
        """Whether somebody looks at what modules compute."""
        return self.tap is not None or (self.plan is not None and self.plan.watched)

    def _decode(self, ids: list[int], positions: list[int], rows: Rows) -> Tensor:
        out_TD: Tensor = self.decoder(torch.tensor(ids, device=self.device), torch.tensor(positions, device=self.device), rows, self.cache)
        self.suspect |= not math.isfinite(out_TD.sum().item())  # one pass over them; which tokens it is, if any, is asked then
        return out_TD

    def _in_blocks(self, sequence: Sequence, n: int) -> tuple[Tensor, Tensor]:
        """The same by the decoder, with every token in its own place of a block: what else there is to compute cannot change a bit of it.

        Tokens of the first block that were computed before come out as they were; what pads the last one is written past the row's end.
        """
        slot, start, ids = _slot(sequence), sequence.n_computed, sequence.ids + sequence.drafts
        first, parts = start // PAGE * PAGE, []
        for begin in range(first, start + n, PAGE):
            block = ids[begin : min(begin + PAGE, start + n)]
            self.cache.lengths[slot] = begin
            # Padding takes the last position there is: a table of positions may end here.
            positions = [min(p, begin + len(block) - 1) for p in range(begin, begin + PAGE)]
            both = self._both(self._decode(block + [0] * (PAGE - len(block)), positions, Rows((PAGE,), (slot,), (sequence.adapter,))))
            parts.append([x[: len(block)] for x in both])
        hidden_TD, tapped_TD = (torch.cat(x)[start - first:] for x in zip(*parts, strict=True))
        return hidden_TD, tapped_TD

    def _both(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_TD, hidden_TD if self.tap is None else self.tap.take(hidden_TD)


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot
