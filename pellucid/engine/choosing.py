"""What a pass tells its sequences: log-probabilities of ids that are given, and the ids that come."""
from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from pellucid.engine.exits import Exits
from pellucid.engine.masks import Filled
from pellucid.engine.passes import Passes
from pellucid.engine.report import Books
from pellucid.engine.sampler import Sampler, not_numbers
from pellucid.engine.score import log_probabilities
from pellucid.engine.sequence import Sequence, alike
from pellucid.engine.speculate import Speculation
from pellucid.errors import PellucidError

LOGIT_ROWS = 64  # positions whose logits stand in memory at once when a prompt is scored


class Choosing:
    """From hidden states to ids and scores. What goes wrong with one sequence ends it alone.

    capacity: ids that a sequence may have at most.
    """

    def __init__(self, passes: Passes, sampler: Sampler, books: Books, speculation: Speculation | None, exits: Exits, *, capacity: int) -> None:
        self.passes, self.sampler, self.books, self.speculation, self.exits, self.capacity = passes, sampler, books, speculation, exits, capacity

    def tell(self, sequence: Sequence, hidden_TD: Tensor, tapped_TD: Tensor) -> None:
        """Gives a sequence what it asks of hidden states. Raises PellucidError where they are not numbers: nothing of that pass is kept."""
        if self.passes.suspect and not hidden_TD.isfinite().all():
            raise not_numbers("hidden states that are not numbers")
        self._score(sequence, sequence.n_computed, hidden_TD)
        if sequence.read is not None:
            sequence.read(sequence.n_computed, tapped_TD)

    def _score(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Records the log-probabilities of given ids that this pass tells."""
        if len(sequence.scores) >= len(sequence.scored):
            return
        first = sequence.scored.start + len(sequence.scores)
        stop = min(sequence.scored.stop, start + len(hidden_TD))
        for begin in range(first, stop, LOGIT_ROWS):
            end = min(begin + LOGIT_ROWS, stop)
            logits_NV = self.passes.unembed(hidden_TD[begin - start : end - start], [sequence.adapter] * (end - begin)).float()
            told = log_probabilities(logits_NV, sequence.ids[begin + 1 : end + 1], sequence.n_top)
            if sequence.row is None and any(map(math.isnan, told.logprobs)):  # what samples as well is told so by the sampler
                raise not_numbers("logits that are not numbers")
            sequence.scores += told.logprobs
            sequence.best += told.greedy
            sequence.top_scores += told.top_logprobs

    def choose(self, ready: list[tuple[Sequence, Tensor]], masks: Filled) -> dict[Sequence, int]:
        """The next id of every sequence; where drafts were computed, as many as the drafts are right, and one more. How far those are computed."""
        hidden_ND = ready[0][1] if len(ready) == 1 else torch.cat([hidden_TD for _, hidden_TD in ready])
        if masks.words_RW is None and all(s.plain for s, _ in ready) and (ids := self.passes.likeliest(hidden_ND)) is not None:
            for (sequence, _), chosen in zip(ready, ids, strict=True):
                self.take(sequence, chosen)
            return {}
        logits_NV = self.passes.unembed(hidden_ND, [s.adapter for s, hidden_TD in ready for _ in range(hidden_TD.shape[0])])
        starts = list(accumulate((hidden_TD.shape[0] for _, hidden_TD in ready), initial=0))
        for place, error in masks.errors.items():
            if not ready[place][0].done:
                self.exits.fail(ready[place][0], error)
        alive = [(s, start, hidden_TD.shape[0]) for (s, hidden_TD), start in zip(ready, starts, strict=False) if not s.done]
        for sequence, _, _ in alive:
            if sequence.row is not None and len(sequence.row.output_ids) != sequence.n_output:
                self.exits.fail(sequence, PellucidError("an interruption fell between choosing an id and writing it down. Ask again"))
        alive = [(s, start, n) for s, start, n in alive if not s.done]
        drafted = [(s, len(s.ids)) for s, _, _ in alive if s.drafts]
        depth = 0
        while alive:
            places = [start + depth for _, start, _ in alive]
            every = len(places) == logits_NV.shape[0]
            mask_BW = masks.words_RW if masks.words_RW is None or every else masks.words_RW[places]
            self._sample([s for s, _, _ in alive], logits_NV if every else logits_NV[places], mask_BW)
            alive = [(s, start, n) for s, start, n in alive if not s.done and depth + 1 < n and s.ids[-1] == s.drafts[depth]]
            depth += 1
        computed = {}
        for sequence, n in drafted:
            right = alike(sequence.drafts, sequence.ids[n:])
            computed[sequence] = n + min(right, len(sequence.ids) - n - 1)
            if self.speculation is not None:
                self.speculation.told(sequence, right)
        return computed

    def _sample(self, sequences: list[Sequence], logits_BV: Tensor, mask_BW: Tensor | None) -> None:
        sampled = self.sampler(logits_BV, [s.row for s in sequences if s.row is not None], mask_BW)
        for b, sequence in enumerate(sequences):
            if (error := sampled.errors.get(b)) is not None:
                self.exits.fail(sequence, error)
            else:
                self._append(sequence, sampled.ids[b], sampled.logprobs[b], sampled.top_logprobs[b])

    def take(self, sequence: Sequence, chosen: int) -> None:
        """The likeliest id of a plain sequence has come."""
        assert sequence.row is not None
        sequence.row.note(chosen)
        self._append(sequence, chosen, None, None)

    def _append(self, sequence: Sequence, chosen: int, logprob: float | None, top: Any) -> None:
        """An id has come; whether it is the last."""
        assert sequence.row is not None
        request = sequence.row.request
        sequence.ids.append(chosen)
        if logprob is not None:
            sequence.logprobs.append(logprob)
            sequence.top_logprobs.append(top)
        self.books.came(sequence)
        try:
            if sequence.constraint is not None:
                sequence.constraint.advance(chosen)
        except PellucidError as error:
            self.exits.fail(sequence, error)
            return
        if chosen in request.stop_ids or (sequence.constraint is not None and sequence.constraint.done):
            sequence.finish_reason = "stop"
        elif sequence.n_output == request.max_tokens:
            sequence.finish_reason = "length"
        elif len(sequence.ids) == self.capacity:
            sequence.finish_reason = "context"
