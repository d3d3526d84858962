"""The masks of a step, filled in a thread of their own while the model computes: llguidance lets go of the interpreter while it fills one."""
from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.engine.request import Constraint
from pellucid.engine.sampler import WORD

ALL = -1  # a word with every bit set


@dataclass(frozen=True, slots=True)
class Filled:
    """words_RW: (R, W) int32, a row for each row of logits; None where nothing binds. errors: place of a constraint -> why it cannot go on."""

    words_RW: Tensor | None
    errors: dict[int, Exception]


class Masks:
    """Begun when a step begins, ended before it samples. In between nobody else may touch the constraints."""

    def __init__(self, n_vocab: int) -> None:
        self.n_words = -(-n_vocab // WORD)
        self._thread: ThreadPoolExecutor | None = None  # begun when there is something to fill
        self._filling: Future[Filled] | Filled | None = None

    def begin(self, constraints: Sequence[Constraint | None], drafts: Sequence[Sequence[int]] | None = None) -> None:
        """drafts: for each constraint the ids proposed after what has come; it gets a row for now and one after each of them.

        A row after a draft id that may not come allows everything: no sampled id reaches it.
        """
        assert self._filling is None, "a step has begun and not ended"
        proposed = drafts if drafts is not None else [()] * len(constraints)
        assert len(proposed) == len(constraints)
        if not any(constraint is not None for constraint in constraints):
            self._filling = Filled(None, {})
            return
        self._thread = self._thread or ThreadPoolExecutor(1, "pellucid-masks")
        self._filling = self._thread.submit(self._filled, list(constraints), [tuple(d) for d in proposed])

    def end(self) -> Filled:
        """Waits for what was begun."""
        assert self._filling is not None, "no step has begun"
        filling, self._filling = self._filling, None
        return filling if isinstance(filling, Filled) else filling.result()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def _filled(self, constraints: list[Constraint | None], drafts: list[tuple[int, ...]]) -> Filled:
        words_RW = torch.full((sum(1 + len(d) for d in drafts), self.n_words), ALL, dtype=torch.int32)
        errors: dict[int, Exception] = {}
        row = 0
        for place, (constraint, draft) in enumerate(zip(constraints, drafts, strict=True)):
            if constraint is not None:
                try:
                    _fill(constraint, draft, words_RW[row : row + 1 + len(draft)])
                except Exception as error:  # whatever it is, it ends this one alone
                    errors[place] = error
                if constraint.failure is not None:
                    errors[place] = constraint.failure
            row += 1 + len(draft)
        return Filled(words_RW, errors)


def _fill(constraint: Constraint, draft: Sequence[int], words_NW: Tensor) -> None:
    """The masks now and after each draft id, as far as they may come; the constraint is left as it was."""
    came = 0
    try:
        constraint.mask(words_NW[0])
        for i, token_id in enumerate(draft):
            if not allowed(words_NW[i], token_id) or constraint.done:
                break
            constraint.advance(token_id)
            came += 1
            constraint.mask(words_NW[i + 1])
    finally:
        constraint.rollback(came)


def allowed(words_W: Tensor, token_id: int) -> bool:
    """Whether a mask lets an id come."""
    return bool(int(words_W[token_id // WORD]) >> token_id % WORD & 1)
