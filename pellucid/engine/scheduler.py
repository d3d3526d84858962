"""Who computes how many tokens in the next step, and who waits."""
from __future__ import annotations

import time
from bisect import insort

from pellucid.engine.pages import PagedCache
from pellucid.engine.sequence import Sequence

LOOK_AHEAD = 64  # waiting sequences that are passed over in a step because what they begin with is being computed, before the rest is left for later


class Scheduler:
    """Sequences that run and sequences that wait, each in the order of their arrival.

    There are no phases. Every step gives each running sequence tokens until it has caught up or the step is full: first those that need one
    or a few, so that a long prompt does not hold up an answer, then prompts, in chunks if need be, then whoever waits. Where pages run out
    the youngest gives up its own and waits; it is computed again later, and its output does not change.
    """

    def __init__(self, cache: PagedCache, *, max_rows: int, step_tokens: int) -> None:
        self.cache, self.max_rows, self.step_tokens = cache, max_rows, step_tokens
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.n_preempted = 0

    def add(self, sequence: Sequence) -> None:
        """It waits for a step with room."""
        insort(self.waiting, sequence, key=lambda s: s.number)

    def remove(self, sequence: Sequence, *, scrub: bool = False) -> None:
        """It is done or given up: its pages are free at once."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.cache.close(sequence.slot, scrub=scrub)
        sequence.slot = None

    def plan(self) -> list[tuple[Sequence, int]]:
        """Each sequence of the next step and how many tokens it computes; those with one token stand first."""
        given: dict[Sequence, int] = {}
        budget = self.step_tokens
        n_drafts = (self.step_tokens - len(self.running)) // 2  # after a token for each, drafts leave half of the step to prompts
        for sequence in sorted(self.running, key=lambda s: (not s.decodes, s.number)):
            if sequence.slot is None:  # gave up its pages a moment ago
                continue
            if not self.cache.replan(sequence.slot, len(sequence.ids), sequence.end):
                self._preempt(sequence, given)  # its rope turns anew from this length on
                continue
            if sequence.drafts:
                sequence.drafts = sequence.drafts[:n_drafts] if self._may_guess(sequence) else []
                n_drafts -= len(sequence.drafts)
            n = min(sequence.n_tokens - sequence.n_computed, budget)
            if n > 0 and self._has_room(sequence, n, given):
                given[sequence] = n
            budget = self.step_tokens - sum(given.values())
        self._admit(given, budget)
        return sorted(given.items(), key=lambda item: (item[1] > 1, item[0].number))

    def _admit(self, given: dict[Sequence, int], budget: int) -> None:
        passed = 0
        for sequence in list(self.waiting):
            if len(self.running) >= self.max_rows or budget <= 0 or passed >= LOOK_AHEAD:
                return
            slot = self.cache.open(sequence.ids, sequence.end, reuse=sequence.reuse_limit, names=sequence.names, salt=sequence.salt)
            if slot is None:
                passed += 1
                continue
            sequence.n_computed = self.cache.lengths[slot]
            n = min(sequence.n_tokens - sequence.n_computed, budget)
            if not self.cache.reserve(slot, sequence.n_computed + n, spare=len(self.running)):
                self.cache.close(slot)
                return
            if sequence.n_reused is None:
                sequence.n_reused, sequence.admitted = sequence.n_computed, time.perf_counter()
            sequence.slot, given[sequence] = slot, n
            budget -= n
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=lambda s: s.number)

    def _has_room(self, sequence: Sequence, n: int, given: dict[Sequence, int]) -> bool:
        """Pages for so many more tokens, if need be those of younger sequences."""
        assert sequence.slot is not None
        while not self.cache.reserve(sequence.slot, sequence.n_computed + n):
            youngest = self.running[-1]
            self._preempt(youngest, given)
            if youngest is sequence:
                return False
        return True

    def _may_guess(self, sequence: Sequence) -> bool:
        """Whether what is proposed changes nothing for anybody: a rope turns as before, and every other has a page left."""
        assert sequence.slot is not None
        turns_alike = self.cache.replan(sequence.slot, sequence.n_tokens, sequence.end)
        return turns_alike and self.cache.reserve(sequence.slot, sequence.n_tokens, spare=len(self.running))

    def _preempt(self, sequence: Sequence, given: dict[Sequence, int]) -> None:
        given.pop(sequence, None)
        self.remove(sequence)
        sequence.n_computed, sequence.drafts = 0, []
        self.n_preempted += 1
        self.add(sequence)
