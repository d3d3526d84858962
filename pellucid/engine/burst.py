"""Several steps in one call of the native plan, where every sequence goes on with its likeliest ids and nothing is to be decided between them."""
from __future__ import annotations

import math
import time
from collections.abc import Sequence as Ids

from pellucid.engine.pages import PagedCache
from pellucid.engine.passes import Passes
from pellucid.engine.sequence import Sequence

SECONDS = 0.005  # what whoever comes in between waits at most: less than a screen takes to show a token
MOST = 16  # passes: what Python takes for a step is a few percent of so many, of the smallest models too


class Bursts:
    """Decides how many passes may follow one another, and runs them. A pass's ids do not depend on that."""

    def __init__(self, passes: Passes, cache: PagedCache) -> None:
        self.passes, self.cache = passes, cache
        self._pass_seconds = math.inf  # of the latest: until one was measured, one is run

    def length(self, sequences: Ids[Sequence], *, crowded: bool) -> int:
        """How many passes these can go on; 0 where one of them asks for more than its likeliest id. crowded: somebody waits, who may be let in after each."""
        if not self.passes.goes_on(len(sequences)) or not all(s.decodes and s.plain and s.row is not None and s.row.stays_plain for s in sequences):
            return 0
        n = 1 if crowded else max(1, min(MOST, int(SECONDS / self._pass_seconds), *(s.end - s.n_computed for s in sequences)))
        roomy = all(self.cache.reserve(_slot(s), s.n_computed + n, spare=len(sequences)) for s in sequences if n > 1)
        return n if roomy else 1

    def run(self, sequences: Ids[Sequence], n: int) -> list[list[int]]:
        """Of each pass the ids of all; fewer passes where one met a stop id of any, and none where something is not a number."""
        began = time.perf_counter()
        stops = {i for s in sequences if s.row is not None for i in s.row.request.stop_ids}
        came = self.passes.go_on(sequences, n, sorted(stops))
        self._pass_seconds = (time.perf_counter() - began) / max(1, len(came))
        return came


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot
