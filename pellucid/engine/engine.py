"""Many requests at once over one decoder: token ids in, token ids out.

    engine = Engine(decoder)
    a, b = engine.submit(request), engine.submit(other)
    for token_id in a: ...           # whoever takes an id runs steps, and every step serves all that run
    engine.run([request, ...])       # all of it, for a caller who need not watch

A step: the scheduler gives sequences tokens, one flat pass of the decoder computes them, and one call of the sampler chooses an id for every
sequence that has caught up. What is chosen is appended, and so is the next thing to compute.
"""
from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Ids
from contextlib import nullcontext
from typing import Any

import torch

from pellucid.engine.burst import Bursts
from pellucid.engine.choosing import Choosing
from pellucid.engine.exits import Exits
from pellucid.engine.generation import Generation, best
from pellucid.engine.lock import Lock
from pellucid.engine.masks import Masks
from pellucid.engine.pages import PagedCache
from pellucid.engine.passes import Passes
from pellucid.engine.report import Books, Report
from pellucid.engine.request import MAX_TOP_LOGPROBS, FinishReason, Request, Result, check_vocabulary, checked_adapter, token_ids
from pellucid.engine.sampler import Row, Sampler
from pellucid.engine.scheduler import Scheduler
from pellucid.engine.score import Embedding, Score, Tap, windows
from pellucid.engine.sequence import Sequence
from pellucid.engine.speculate import Proposer, Speculation
from pellucid.engine.store import CacheDtype, check_cache, settled
from pellucid.errors import BadRequest, EmptyPrompt, OutOfMemoryBudget, PromptTooLong
from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder, reach
from pellucid.model.memory import SHARE, available_bytes
from pellucid.model.parts import Rows
from pellucid.model.report import size

STEP_TOKENS = 512  # bounds the memory of a step, and is past where longer prompts gain speed on a CPU
MAX_ROWS = 64


class Engine:
    """Continues any number of sequences over one decoder and one cache of pages.

    Args:
        cache_bytes: what the cache may take, a draft model's included; None = a share of what is free (SHARE), and never more than max_rows whole contexts.
        cache_dtype: "same" as the model computes in; "float16", in which numbers from 65,520 on are an error; or "int8", half of that memory at a loss
            that docs/LOG.md states. "auto" is float16 for quantized weights that compute in float32, and else the same.
        max_rows: sequences that run at once; the others wait.
        step_tokens: tokens a step computes at most.
        proposer: drafts what may come next, to be checked in one pass; see engine/speculate.py. The output is the same with it and without.

    With a decoder made deterministic, a sequence's ids and log-probabilities are bitwise the same in any company, in any chunks, preempted or
    not. A native plan (`passes.plan`) does so by nature: that costs nothing where the weights are packed, and long prompts take longer where they are
    dense. Without one every token is computed in its own place of a block of PAGE positions, at the cost docs/LOG.md states.
    Threads may share an engine. Raises OutOfMemoryBudget where no page fits.
    """

    def __init__(self, decoder: Decoder, *, cache_bytes: int | None = None, cache_dtype: CacheDtype = "auto", max_rows: int = MAX_ROWS,
                 step_tokens: int = STEP_TOKENS, proposer: Proposer | None = None) -> None:
        if step_tokens < max_rows or max_rows < 1:
            raise BadRequest(f"max_rows={max_rows} sequences need a token each in a step of step_tokens={step_tokens}. Lower max_rows or raise step_tokens",
                             field="max_rows")
        check_cache(cache_bytes, cache_dtype)
        self.decoder, self.spec, self.deterministic = decoder, decoder.spec, decoder.deterministic
        weight = decoder.embed.weight
        self.device = weight.device
        limits: dict[torch.device, int] = {}
        if cache_bytes is None:
            free = available_bytes(self.device)
            cache_bytes = 2**62 if free is None else int(SHARE * free)
            limits = {device: int(SHARE * there) for device in decoder.devices or () if (there := available_bytes(device)) is not None}
        draft_bytes = 0 if proposer is None else proposer.furnish(self.spec, n_bytes=cache_bytes, max_rows=max_rows, step_tokens=step_tokens)
        if limits:  # each device has its own
            cache_bytes, limits = 2**62, {device: most - draft_bytes * (device == self.device) for device, most in limits.items()}
        self.cache = PagedCache(self.spec, n_bytes=cache_bytes - draft_bytes, max_rows=max_rows, step_tokens=step_tokens, dtype=weight.dtype,
                                device=self.device, store=settled(cache_dtype, decoder), devices=decoder.devices, limits=limits)
        self.cache_bytes = self.cache.n_bytes + draft_bytes
        self.scheduler = Scheduler(self.cache, max_rows=max_rows, step_tokens=step_tokens)
        limit = reach(self.spec)
        self.n_ctx = self.spec.n_ctx if limit is None else min(limit[0], self.spec.n_ctx)
        self.capacity = min(self.cache.capacity(step_tokens), self.n_ctx)
        self.speculation = None if proposer is None else Speculation(proposer)
        self.lock = Lock()
        self._dropped: deque[Sequence] = deque()  # by callers, while somebody was at work
        self._masks = Masks(self.spec.n_vocab)
        self.books = Books()
        self.passes = Passes(decoder, self.cache)
        self.bursts = Bursts(self.passes, self.cache)
        self.exits = Exits(self.books, self.scheduler, self.speculation)
        self.choosing = Choosing(self.passes, Sampler(self.spec.n_vocab, self.device), self.books, self.speculation, self.exits,
                                 capacity=self.capacity)

    # What callers ask

    def submit(self, request: Request, index: int = 0) -> Generation:
        """Its ids will come as the generation is taken, or as any other is. index: of several outputs of one request, each with draws of its own.

        Raises EmptyPrompt, PromptTooLong (with both counts), UnknownAdapter or BadRequest before anything is computed.
        """
        self._check_causal("generates")
        self.decoder.check_adapters([request.adapter])
        n = len(request.prompt_ids)
        self._check_room(n, request.max_tokens)
        row = Row(request, self.spec.n_vocab, index=index)
        room = self.capacity - n
        scored = range(0) if request.prompt_logprobs is None else range(n - 1)
        sequence = self._sequence(request.prompt_ids, row=row, scored=scored, reuse=request.reuse, n_top=request.prompt_logprobs or 0,
                                  end=n - 1 + min(room, request.max_tokens or room), adapter=request.adapter,
                                  constraint=None if request.constraint is None else request.constraint.start())
        return Generation(self, sequence, request)

    def run(self, requests: Iterable[Request]) -> list[tuple[Result, ...]]:
        """The outputs of every request, in order. What one raises is raised when all are done."""
        asked = list(requests)
        started = [[self.submit(request, index) for index in range(request.n_generated)] for request in asked]
        for several in started:
            for generation in several:
                while not generation.finished:
                    self.step()
        return [best([generation.result() for generation in several], request.n) for several, request in zip(started, asked, strict=True)]

    def score(self, pairs: Iterable[tuple[Ids[int], Ids[int]]], n_top: int = 0, *, adapter: str | None = None) -> list[Score]:
        """The log-probability of each continuation after its context. An empty context scores all ids but the first, which nothing comes before."""
        if not 0 <= n_top <= MAX_TOP_LOGPROBS:
            raise BadRequest(f"top_logprobs={n_top!r} is out of range: from 0 to {MAX_TOP_LOGPROBS}", field="top_logprobs")
        self._check_causal("scores")
        self.decoder.check_adapters([checked_adapter(adapter)])
        asked = [(token_ids(context, "context"), token_ids(continuation, "continuation")) for context, continuation in pairs]
        sequences = []
        for context, continuation in asked:
            ids = context + continuation
            self._check_room(len(ids), 0)
            check_vocabulary(ids, self.spec.n_vocab, "ids")
        for context, continuation in asked:
            scored = range(max(0, len(context) - 1), len(context) + len(continuation) - 1)
            sequences.append(self._sequence(context + continuation, scored=scored, n_top=n_top, end=scored.stop, adapter=adapter))
        self._finish([s for s in sequences if not s.done])
        return [Score(logprobs=tuple(s.scores), greedy=tuple(s.best), top_logprobs=tuple(s.top_scores) if n_top else None) for s in sequences]

    def embed(self, texts: Iterable[Ids[int]], *, pooling: str = "mean", normalize: bool = True, activation: str | None = None,
              adapter: str | None = None) -> list[Embedding]:
        """One vector (D,), float32, for each sequence of ids: its hidden states' mean, or the last one's.

        activation: the name of a module whose output is taken in place of the final hidden states, such as blocks.3.mlp.
        Raises BadRequest for a pooling or a name that is not there.
        """
        asked = [Embedding(list(ids), pooling, normalize) for ids in texts]
        self.decoder.check_adapters([checked_adapter(adapter)])
        for embedding in asked:
            self._check_room(len(embedding.ids), 0)
            check_vocabulary(embedding.ids, self.spec.n_vocab, "ids")
        tap = None if activation is None else Tap(self.decoder, activation)
        with self.lock, tap or nullcontext():  # to the end: what others ask to be tapped is not what these read
            self.passes.tap = tap
            try:
                if not self.spec.causal:
                    self._read_whole(asked, adapter)
                elif tap is not None and self.deterministic and self.passes.plan is not None:
                    self._read_aside(asked, adapter)
                else:
                    self._finish([self._sequence(e.ids, read=e.read, end=len(e.ids), adapter=adapter) for e in asked])
            finally:
                self.passes.tap = None
        return asked

    @torch.inference_mode()
    def _read_whole(self, asked: Iterable[Embedding], adapter: str | None) -> None:
        """Every text in one pass of its own: its tokens see what follows them, so no part of it can be computed before the rest."""
        for embedding in asked:
            hidden_TD = self.decoder(torch.tensor(embedding.ids, device=self.device), None, Rows((len(embedding.ids),), (0,), (adapter,)))
            embedding.read(0, hidden_TD if self.passes.tap is None else self.passes.tap.take(hidden_TD))

    @torch.inference_mode()
    def _read_aside(self, asked: Iterable[Embedding], adapter: str | None) -> None:
        """Every text by itself, over a cache of its own: what is tapped the decoder computes, and others get the plan's bits, beside this and after it."""
        for embedding in asked:
            cache = Cache(self.spec)
            cache.plan(0, len(embedding.ids))
            for start in range(0, len(embedding.ids), STEP_TOKENS):
                ids_T = torch.tensor(embedding.ids[start : start + STEP_TOKENS], device=self.device)
                hidden_TD = self.decoder(ids_T, None, Rows((len(ids_T),), (0,), (adapter,)), cache)
                embedding.read(start, hidden_TD if self.passes.tap is None else self.passes.tap.take(hidden_TD))

    def _check_causal(self, what: str) -> None:
        if not self.spec.causal:
            raise BadRequest(f"tokens of this model see those that follow them, so it encodes text and {what} none. Ask it for vectors: embed", field="prompt")

    def rolling(self, ids: Ids[int], overlap: int = 1) -> list[float]:
        """The log-probability of every id of a text as long as it may be, but of the first: in windows of the context, each id after the `overlap`
        or more that precede it. Raises BadRequest for an overlap that leaves no room."""
        return [value for told in self.score(windows(ids, self.capacity, overlap)) for value in told.logprobs]

    def give_up(self, sequence: Sequence, reason: FinishReason) -> None:
        """It is not wanted any more: its pages are free at once."""
        with self.lock:
            if not sequence.done:
                sequence.finish_reason = reason
                self.exits.leave(sequence)

    def drop(self, sequence: Sequence) -> None:
        """`give_up` for a finalizer, which may run anywhere, also in the middle of a step: then it is given up before the next."""
        self._dropped.append(sequence)
        with self.lock.if_idle() as idle:
            if idle:
                self._let_go()

    def report(self) -> Report:
        """How it stands."""
        with self.lock:
            self._let_go()
        scheduler, drafts = self.scheduler, self.speculation
        return Report(**self.books.facts(), n_running=len(scheduler.running), n_waiting=len(scheduler.waiting), n_preempted=scheduler.n_preempted,
                      n_drafted=0 if drafts is None else drafts.n_drafted, n_accepted=0 if drafts is None else drafts.n_accepted,
                      cache_bytes=self.cache_bytes, cache_used_share=self.cache.used_share)

    # A step

    # inference_mode is entered for a step at a time: held across yields it would leak into the caller's code.
    @torch.inference_mode()
    def step(self) -> bool:
        """Computes some tokens of every sequence that runs. False if there was nothing to do."""
        with self.lock, self.books.step() as done:
            self._let_go()
            for sequence in self.scheduler.running:
                sequence.drafts = []  # of a step that was interrupted
            if self.speculation is not None:
                self.speculation.propose(self.scheduler.running)
            plan = self.scheduler.plan()
            n_drafts = sum(len(s.drafts) for s, _ in plan)
            if not plan:
                assert not self.scheduler.running, "sequences run and none has anything to compute"
                self._refuse_what_cannot_run()
                return False
            n_computed = self._burst([s for s, _ in plan])
            if not n_computed:
                self._compute(plan)
                n_computed = sum(n for _, n in plan)
            seconds = done(n_computed)
            if self.speculation is not None:
                self.speculation.measured([n for _, n in plan], n_drafts, seconds)
            return True

    def _let_go(self) -> None:
        """Ends what was dropped unfinished."""
        while self._dropped:
            self.give_up(self._dropped.popleft(), "cancelled")

    def _burst(self, sequences: list[Sequence]) -> int:
        """Passes one after another where nothing but the likeliest ids is wanted. How many tokens were computed; 0 leaves the step to be done one by one."""
        n = 0 if self.speculation is not None else self.bursts.length(sequences, crowded=bool(self.scheduler.waiting))
        if not n:
            return 0
        try:
            came = self.bursts.run(sequences, n)
        except Exception as error:
            self.exits.fail_all(sequences, error)
            return len(sequences)
        for ids in came:
            for sequence, chosen in zip(sequences, ids, strict=True):
                self.choosing.take(sequence, chosen)
        for sequence in sequences:
            self._settle(sequence, sequence.n_computed + len(came))
        return len(came) * len(sequences)

    def _compute(self, plan: list[tuple[Sequence, int]]) -> None:
        """A pass, and what it tells. How far a sequence is computed is written down last: whatever interrupts this, it is only done again."""
        self.passes.suspect = False
        choosing = {s for s, n in plan if s.row is not None and s.n_computed + n == s.n_tokens}
        try:
            self._masks.begin([s.constraint for s, _ in plan if s in choosing], [s.drafts for s, _ in plan if s in choosing])
            hidden, tapped = self.passes.sequences(plan)
        except Exception as error:  # memory, say: nobody's fault that could be named, and the engine goes on
            self.exits.fail_all([s for s, _ in plan], error)
            return
        finally:
            masks = self._masks.end()
        computed = {s: s.n_computed + n for s, n in plan}
        ready = []
        for (sequence, _), hidden_TD, tapped_TD in zip(plan, hidden, tapped, strict=True):
            try:
                self.choosing.tell(sequence, hidden_TD, tapped_TD)
            except Exception as error:
                self.exits.fail(sequence, error)
            if sequence in choosing:
                first = hidden_TD.shape[0] - 1 - len(sequence.drafts)
                ready.append((sequence, hidden_TD[first:] if first else hidden_TD))
        if ready:
            try:
                computed |= self.choosing.choose(ready, masks)
            except Exception as error:
                self.exits.fail_all([s for s, _ in ready], error)
        for sequence, _ in plan:
            self._settle(sequence, computed[sequence])

    def _settle(self, sequence: Sequence, n_computed: int) -> None:
        """After a step: pages that are full get names, and a sequence that is done leaves."""
        if sequence.slot is None:  # failed, and gone
            return
        sequence.n_computed, sequence.drafts = n_computed, []
        self.cache.settle(sequence.slot, sequence.ids, sequence.n_computed)
        if sequence.row is None and sequence.n_computed >= sequence.n_tokens:
            sequence.finish_reason = "length"
        if sequence.done:
            self.exits.leave(sequence)

    # Helpers

    def _sequence(self, ids: Ids[int], *, end: int, adapter: str | None = None, **facts: Any) -> Sequence:
        with self.lock:
            self.passes.refresh()
            salt = b"" if adapter is None else f" adapter {self.decoder.adapters[adapter].sha256}".encode()
            sequence = Sequence(self.books.asked(), list(ids), end, len(ids), submitted=self.books.now, arrived=time.perf_counter(), adapter=adapter,
                                salt=salt, **facts)
            if sequence.row is None and sequence.read is None and not sequence.scored:  # there is nothing to ask of it
                sequence.finish_reason = "length"
                self.books.left(sequence)
            else:
                self.scheduler.add(sequence)
        return sequence

    def _check_room(self, n: int, max_tokens: int | None) -> None:
        """Raises EmptyPrompt or PromptTooLong for what can never be computed here."""
        n_ctx = self.n_ctx
        if not n:
            raise EmptyPrompt("the prompt has no tokens: there is nothing to start from. Give at least one, such as the model's BOS", field="prompt")
        wanted = 0 if max_tokens == 0 else 1
        if n + wanted > n_ctx:
            raise PromptTooLong(f"the prompt has {n:,} tokens; this model's context holds {n_ctx:,}{' with at least one left to generate' * wanted}. "
                                f"Shorten the prompt by {n + wanted - n_ctx:,}", n_prompt=n, n_ctx=n_ctx)
        needed = min(n_ctx, n + (max_tokens if max_tokens is not None else 1))
        if needed > self.capacity:
            raise PromptTooLong(f"{n:,} tokens and {needed - n:,} to come need more than the whole cache, which has {size(self.cache.n_bytes)} for "
                                f"{self.capacity:,} tokens of one request. Give the engine more (cache_bytes), or ask for less", n_prompt=n,
                                n_ctx=self.capacity)

    def _finish(self, sequences: list[Sequence]) -> None:
        try:
            for sequence in sequences:
                while not sequence.done:
                    self.step()
        finally:
            for sequence in sequences:
                self.give_up(sequence, "cancelled")
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error

    def _refuse_what_cannot_run(self) -> None:
        """Nothing runs and somebody waits: pages for it will never be there."""
        if self.scheduler.waiting and not self.scheduler.running:
            sequence = self.scheduler.waiting[0]
            self.exits.fail(sequence, OutOfMemoryBudget(
                f"{len(sequence.ids):,} tokens do not fit the cache of {size(self.cache.n_bytes)}. Give the engine more (cache_bytes)",
                needed_bytes=self.cache.n_bytes + 1, available_bytes=self.cache.n_bytes))
