"""What an engine says of itself."""
from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pellucid.engine.sequence import Sequence

_COUNTED = ("n_requests", "n_finished", "n_cancelled", "n_failed", "n_steps", "n_prompt_tokens", "n_reused_tokens", "n_computed_tokens", "n_output_tokens")

@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an engine has done since it was made, and how it stands, as plain numbers."""

    n_requests: int
    n_finished: int
    n_cancelled: int
    n_failed: int
    n_running: int
    n_waiting: int
    n_steps: int
    n_prompt_tokens: int
    n_reused_tokens: int  # of those, taken over from pages that were computed before
    n_computed_tokens: int  # everything that passed the decoder, what was computed again included
    n_output_tokens: int
    n_preempted: int
    n_drafted: int  # ids proposed to follow, and computed
    n_accepted: int  # of those, right
    cache_bytes: int  # a draft model's included
    cache_used_share: float
    busy_seconds: float
    queue_seconds: float  # from submitting to the first step that serves a request, mean over those that left
    first_token_seconds: float  # from submitting to the first id, mean over requests
    token_seconds: float  # between two ids of a request, as the engine works, mean over all

    @property
    def accepted_share(self) -> float | None:
        """Of what was drafted; None where nothing was."""
        return self.n_accepted / self.n_drafted if self.n_drafted else None


class Books:
    """What an engine writes down as it goes, and its clock, which runs while it works."""

    def __init__(self) -> None:
        self._n: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))
        self._seconds: Counter[str] = Counter()  # sums, of as many as the counts of the same name
        self._of: Counter[str] = Counter()
        self.busy_seconds = 0.0  # of whole steps
        self._began: float | None = None  # the step that runs, on the wall clock

    @property
    def now(self) -> float:
        """On the engine's clock."""
        return self.busy_seconds + (0.0 if self._began is None else time.perf_counter() - self._began)

    @contextmanager
    def step(self) -> Iterator[Callable[[int], float]]:
        """While a step runs. Call what it gives with the tokens computed, for the seconds that took; uncalled, the step did not happen."""
        self._began = time.perf_counter()
        try:
            yield self._done
        finally:
            self._began = None

    def _done(self, n_tokens: int) -> float:
        assert self._began is not None
        seconds, self._began = time.perf_counter() - self._began, None
        self.busy_seconds += seconds
        self._n["n_steps"] += 1
        self._n["n_computed_tokens"] += n_tokens
        return seconds

    def asked(self) -> int:
        """One more request; its number."""
        self._n["n_requests"] += 1
        return self._n["n_requests"]

    def came(self, sequence: Sequence) -> None:
        """An id has come."""
        self._n["n_output_tokens"] += 1
        sequence.last_seconds = self.now
        if sequence.n_output == 1:
            sequence.first_seconds = sequence.last_seconds
            self._mean("first_token", time.perf_counter() - sequence.arrived)

    def left(self, sequence: Sequence) -> None:
        """A sequence is done."""
        self._n["n_failed" if sequence.error is not None else "n_cancelled" if sequence.finish_reason == "cancelled" else "n_finished"] += 1
        if sequence.n_reused is not None:  # it has run
            self._n["n_prompt_tokens"] += sequence.n_prompt
            self._n["n_reused_tokens"] += sequence.n_reused
            self._mean("queue", sequence.admitted - sequence.arrived)
        if sequence.n_output > 1:
            self._mean("token", sequence.last_seconds - sequence.first_seconds, sequence.n_output - 1)

    def facts(self) -> dict[str, Any]:
        """What a Report says of it."""
        means = {f"{name}_seconds": self._seconds[name] / max(1, self._of[name]) for name in ("queue", "first_token", "token")}
        return {**self._n, **means, "busy_seconds": self.busy_seconds}

    def _mean(self, name: str, seconds: float, n: int = 1) -> None:
        if not math.isnan(seconds):
            self._seconds[name] += seconds
            self._of[name] += n
