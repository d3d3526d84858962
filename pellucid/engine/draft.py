"""Drafts by a small decoder of the same vocabulary."""
from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid import cost
from pellucid.engine.pages import PagedCache
from pellucid.engine.passes import Passes
from pellucid.engine.row import Ahead
from pellucid.engine.sampler import Sampler
from pellucid.engine.sequence import Sequence, alike
from pellucid.engine.store import settled
from pellucid.errors import BadRequest
from pellucid.model import parts
from pellucid.model.decoder import Decoder, reach
from pellucid.spec import DecoderSpec


@dataclass(slots=True)
class _Held:
    """What the small decoder has computed of a sequence."""

    slot: int
    n: int  # leading ids of the sequence
    guesses: list[int] = field(default_factory=list)  # and what was drafted behind them


class DraftModel:
    """Guesses what a small decoder says, drawn as the sequence draws: with its settings and the random numbers it will use.

    Two models that agree on the distribution then agree on the id, at every temperature. The small one catches up with each sequence by the
    engine's one rule, over a cache of pages of its own: a part of the engine's, for as many tokens as that holds. Grammars are not asked: where
    one forbids a guess, the guess is wrong.

    Raises BadRequest, when an engine is made with it, for another vocabulary. One engine at a time.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.spec = decoder, decoder.spec
        weight = decoder.embed.weight
        self.dtype, self.device = weight.dtype, weight.device
        self.sampler = Sampler(self.spec.n_vocab, self.device)
        self._held: dict[Sequence, _Held] = {}

    def furnish(self, spec: DecoderSpec, *, n_bytes: int, max_rows: int, step_tokens: int) -> int:
        """See `Proposer`. The memory is shared so that both caches hold as many tokens."""
        if self.spec.n_vocab != spec.n_vocab:
            raise other_vocabulary(self.spec, spec)
        ours, theirs = (cost.cache_bytes_per_token(each, self.dtype.itemsize) for each in (self.spec, spec))
        self.step_tokens = step_tokens
        self.cache = PagedCache(self.spec, n_bytes=n_bytes * ours // max(1, ours + theirs), max_rows=max_rows, step_tokens=step_tokens, dtype=self.dtype,
                                device=self.device, store=settled("auto", self.decoder))
        limit = reach(self.spec)
        self.capacity = min(self.cache.capacity(step_tokens), self.spec.n_ctx if limit is None else limit[0])
        self.passes = Passes(self.decoder, self.cache)
        self._held.clear()
        return self.cache.n_bytes

    @torch.inference_mode()
    def propose(self, sequences: Rows[Sequence], most: Rows[int]) -> list[list[int]]:
        """See `Proposer`. A sequence that has not caught up when a step's worth of tokens is computed gets none yet."""
        drafts: dict[Sequence, list[int]] = {s: [] for s in sequences}
        wanted = {s: min(n, self.capacity - len(s.ids)) for s, n in zip(sequences, most, strict=True)}
        self._abandon(wanted)
        logits, rows = self._catch_up({s: n for s, n in wanted.items() if n > 0}), {}
        while logits:
            ready, logits_BV = list(logits), torch.stack(list(logits.values()))
            sampled = self.sampler(logits_BV, [rows.setdefault(s, _ahead(s)) for s in ready])
            for b, sequence in enumerate(ready):
                if b not in sampled.errors:
                    drafts[sequence].append(sampled.ids[b])
            going = [s for b, s in enumerate(ready) if b not in sampled.errors and len(drafts[s]) < wanted[s] and not _ends(s, sampled.ids[b])]
            logits = self._pass([(s, drafts[s][-1:], len(s.ids) + len(drafts[s]) - 1) for s in going])
            for sequence in going:
                self._held[sequence].guesses = list(drafts[sequence])
        return list(drafts.values())

    def forget(self, sequence: Sequence) -> None:
        """See `Proposer`."""
        if (held := self._held.pop(sequence, None)) is not None:
            self.cache.close(held.slot)

    def _abandon(self, wanted: dict[Sequence, int]) -> None:
        """Lets go of what was begun for sequences that do without now: others may wait to begin alike, or for the pages."""
        for sequence in [s for s, held in self._held.items() if held.n < s.n_prompt and wanted.get(s, 0) <= 0]:
            self.forget(sequence)

    def _catch_up(self, wanted: dict[Sequence, int]) -> dict[Sequence, Tensor]:
        """Computes what is missing of each sequence, a step's worth in all. The logits (V,) of what follows those that have it all."""
        budget, todo = self.step_tokens, []
        for sequence, n in wanted.items():
            held = self._opened(sequence) if budget > 0 else None
            if held is None or held.n == len(sequence.ids):  # an interrupted step: nothing has come since
                continue
            new = sequence.ids[held.n :]
            start = held.n + min(alike(held.guesses, new), len(new) - 1)  # the last id in any case: what follows it is the question
            stop = min(len(sequence.ids), start + budget)
            if not self._reserve(held, stop + n - 1, wanted):
                continue
            budget -= stop - start
            held.guesses = []
            todo.append((sequence, sequence.ids[start:stop], start))
        logits = self._pass(todo)
        for sequence, ids, start in todo:
            held = self._held[sequence]
            held.n = start + len(ids)
            self.cache.settle(held.slot, sequence.ids, held.n)
        return {s: logits_V for s, logits_V in logits.items() if self._held[s].n == len(s.ids)}

    def _opened(self, sequence: Sequence) -> _Held | None:
        """Its row; None while another computes what it begins with."""
        held = self._held.get(sequence)
        if held is not None and not self.cache.replan(held.slot, len(sequence.ids), sequence.end):
            self.forget(sequence)
            held = None
        if held is None:
            slot = self.cache.open(sequence.ids, sequence.end)
            if slot is None:
                return None
            held = self._held[sequence] = _Held(slot, self.cache.lengths[slot])
        return held

    def _reserve(self, held: _Held, n_tokens: int, wanted: dict[Sequence, int]) -> bool:
        """Pages for so many tokens, if need be those of sequences that want no drafts now."""
        idle = [s for s in self._held if s not in wanted]
        while not self.cache.reserve(held.slot, n_tokens):
            if not idle:
                return False
            self.forget(idle.pop())
        return True

    def _pass(self, todo: list[tuple[Sequence, list[int], int]]) -> dict[Sequence, Tensor]:
        """The logits (V,) after each sequence's ids, which stand at `start` in it."""
        if not todo:
            return {}
        rows = parts.Rows(tuple(len(ids) for _, ids, _ in todo), tuple(self._held[s].slot for s, _, _ in todo))
        for slot, (_, _, start) in zip(rows.slots, todo, strict=True):
            self.cache.lengths[slot] = start
        hidden_TD = self.passes.hidden([i for _, ids, _ in todo for i in ids], rows)
        last_B = torch.tensor(rows.lengths, device=self.device).cumsum(0) - 1
        return dict(zip((s for s, _, _ in todo), self.passes.unembed(hidden_TD[last_B]), strict=True))


def _ahead(sequence: Sequence) -> Ahead:
    assert sequence.row is not None
    return Ahead(sequence.row)


def _ends(sequence: Sequence, token_id: int) -> bool:
    assert sequence.row is not None
    return token_id in sequence.row.request.stop_ids


def other_vocabulary(draft: DecoderSpec, spec: DecoderSpec) -> BadRequest:
    """The error for a draft model whose ids mean something else."""
    return BadRequest(f"the draft model has {draft.n_vocab:,} tokens in its vocabulary, and the model {spec.n_vocab:,}: its ids would mean "
                      f"something else. Draft with a smaller model of the same series, or with prompt look-up", field="draft")
