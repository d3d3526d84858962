"""What a caller of the engine holds: the ids of one request as they come, and what came of them."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pellucid.engine.request import Alternatives, FinishReason, Request, Result
from pellucid.engine.sequence import Sequence

if TYPE_CHECKING:
    from pellucid.engine.engine import Engine


class Generation(Iterator[int]):
    """The ids that continue a request, as they come; `result()` says afterwards what came and why it ended.

    Taking an id runs the engine until there is one. The caller may end it at any point: `stop()` because what came is enough, `cancel()`
    because nobody wants it any more. One that is dropped unfinished is cancelled.
    """

    def __init__(self, engine: Engine, sequence: Sequence, request: Request) -> None:
        self._engine, self._sequence, self.request = engine, sequence, request
        self._n_taken = 0
        self._ended_at: int | None = None
        self._reason: FinishReason = "cancelled"

    def __next__(self) -> int:
        sequence = self._sequence
        while self._ended_at is None:
            done = sequence.done  # asked first: another thread's step may end it after its last id was looked for
            if self.n_ready:
                break
            if sequence.error is not None:
                raise sequence.error
            if done:
                raise StopIteration
            self._engine.step()
        if self._ended_at is not None:
            raise StopIteration
        self._n_taken += 1
        return sequence.ids[sequence.n_prompt + self._n_taken - 1]

    def stop(self) -> None:
        """End with the last id taken because something the engine does not know, such as a stop string, was met."""
        self._end("stop")

    def cancel(self) -> None:
        """End with the last id taken; the pages are free at once."""
        self._end("cancelled")

    def _end(self, reason: FinishReason) -> None:
        if self._ended_at is None:
            if self.n_ready or not self._sequence.done:
                self._ended_at, self._reason = self._n_taken, reason
            self._engine.give_up(self._sequence, reason)

    def __del__(self, ends: Callable[[], bool] = sys.is_finalizing) -> None:  # a default stays when the module's own names are gone
        if not self._sequence.done and not ends():  # a process that ends has no pages to free
            self._engine.drop(self._sequence)

    @property
    def n_ready(self) -> int:
        """Ids that have come and were not taken."""
        return self._sequence.n_output - self._n_taken

    @property
    def n_taken(self) -> int:
        return self._n_taken

    @property
    def finished(self) -> bool:
        """Whether all ids have come, taken or not."""
        return self._ended_at is not None or self._sequence.done

    @property
    def ids(self) -> list[int]:
        """Those taken so far."""
        return self._sequence.ids[self._sequence.n_prompt : self._sequence.n_prompt + self._n_taken]

    def scored(self, start: int = 0) -> list[tuple[int, float, Alternatives]]:
        """Of the ids taken, from number `start` on: the id, its log-probability and the likeliest in its place; none where not asked for."""
        n = min(self._n_taken, len(self._sequence.logprobs))
        sequence = self._sequence
        return [(sequence.ids[sequence.n_prompt + i], sequence.logprobs[i], sequence.top_logprobs[i]) for i in range(start, n)]

    def prompt_scored(self) -> list[tuple[int, float | None, Alternatives]]:
        """The same of the prompt, whose first id has nothing before it; none where not asked for, or before an id was taken."""
        sequence = self._sequence
        if self.request.prompt_logprobs is None or not self._n_taken:
            return []
        tops: list[Alternatives] = [(), *(sequence.top_scores if self.request.prompt_logprobs else [()] * len(sequence.scores))]
        return list(zip(self.request.prompt_ids, [None, *sequence.scores], tops, strict=True))

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while there are ids to take."""
        if self._ended_at is not None:
            return self._reason
        reason = self._sequence.finish_reason  # asked first, as above
        return None if self.n_ready else reason

    def result(self) -> Result:
        """What came. Raises what ended it, if that was an error; a RuntimeError before it has ended is a bug of the caller."""
        with self._engine.lock:  # no step is half done
            return self._result()

    def _result(self) -> Result:
        sequence = self._sequence
        if sequence.error is not None:
            raise sequence.error
        if not self.finished:
            raise RuntimeError("a generation has no result before it has ended")
        n, reason = (len(sequence.output_ids), sequence.finish_reason) if self._ended_at is None else (self._ended_at, self._reason)
        assert reason is not None
        asked = self.request
        scored = asked.prompt_logprobs is not None
        return Result(
            token_ids=tuple(sequence.output_ids[:n]), finish_reason=reason, logprobs=tuple(sequence.logprobs[:n]) if asked.scores else None,
            top_logprobs=tuple(sequence.top_logprobs[:n]) if asked.top_logprobs else None,
            prompt_logprobs=tuple(sequence.scores) if scored else None,
            prompt_top_logprobs=tuple(sequence.top_scores) if scored and asked.prompt_logprobs else None,
            n_prompt=sequence.n_prompt, n_reused=sequence.n_reused or 0, prefill_seconds=sequence.first_seconds - sequence.submitted if n else 0.0,
            seconds=sequence.last_seconds - sequence.submitted if n else 0.0)


def best(results: list[Result], n: int) -> tuple[Result, ...]:
    """The n with the highest mean log-probability, the best first; all of them, in order, if there are no more."""
    if len(results) == n:
        return tuple(results)
    return tuple(sorted(results, key=lambda r: -((r.cumulative_logprob or 0.0) / max(1, len(r.token_ids))))[:n])
