"""One sequence on its way through the engine: what it is, how far it is computed, what came of it."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from pellucid.engine.pages import Names
from pellucid.engine.request import Alternatives, Constraint, FinishReason
from pellucid.engine.sampler import Row


@dataclass(eq=False, slots=True)
class Sequence:
    """The ids of one sequence and what is wanted of them.

    The one rule of the engine: `n_computed` catches up with `n_tokens`. What a sequence samples is appended to its ids, and so is the next thing
    to compute; one that samples nothing is done when it has caught up.
    """

    number: int  # in the order of arrival: the youngest is the first to give up its pages
    ids: list[int]  # prompt and output
    end: int  # tokens of it that may be computed: the last id that comes never is
    n_prompt: int
    row: Row | None = None  # what the sampler knows of it; None = nothing is sampled
    constraint: Constraint | None = None
    scored: range = range(0)  # positions whose next id's log-probability is wanted, of ids that are given
    n_top: int = 0  # and so many of the likeliest in its place
    read: Callable[[int, Tensor], None] | None = None  # gets hidden states (T, D) as they are computed, and the first one's position
    reuse: bool = True  # whether pages computed for others may be taken over
    adapter: str | None = None  # by its name
    salt: bytes = b""  # what it is by its content: pages are shared with those of the same
    submitted: float = 0.0  # on the engine's own clock, which runs while it works
    arrived: float = 0.0  # on the wall clock

    names: Names = field(default_factory=Names)  # of its full pages
    slot: int | None = None  # its row in the cache; None = waiting
    n_computed: int = 0
    drafts: list[int] = field(default_factory=list)  # proposed to follow the ids
    n_reused: int | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[Alternatives] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)  # of `scored`, in order
    best: list[bool] = field(default_factory=list)  # whether the id that came is the likeliest
    top_scores: list[Alternatives] = field(default_factory=list)
    first_seconds: float = math.nan  # when the first id came, on the engine's clock
    last_seconds: float = math.nan
    admitted: float = math.nan  # when it first ran, on the wall clock
    n_drafted: int = 0
    n_accepted: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens to be computed: the ids and what is proposed to follow them. The last id of a sequence that is only scored tells nothing."""
        if self.row is None and self.read is None:
            return self.scored.stop
        return len(self.ids) + len(self.drafts)

    @property
    def decodes(self) -> bool:
        """Whether only its newest id is left to compute."""
        return self.row is not None and self.n_computed == len(self.ids) - 1

    @property
    def plain(self) -> bool:
        """Whether its next id is the likeliest that the model itself has, and nothing else is asked of it."""
        row = self.row
        return (row is not None and row.plain and self.constraint is None and self.adapter is None and not self.drafts and not self.done
                and len(row.output_ids) == self.n_output)  # else an interruption fell between choosing an id and writing it down

    @property
    def done(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def n_output(self) -> int:
        """Ids that have come."""
        return len(self.ids) - self.n_prompt

    @property
    def output_ids(self) -> list[int]:
        return self.ids[self.n_prompt:]

    @property
    def reuse_limit(self) -> int:
        """Leading tokens whose hidden states nobody asks for."""
        if not self.reuse or self.read is not None:
            return 0
        return self.scored.start + len(self.scores) if len(self.scores) < len(self.scored) else len(self.ids)


def alike(a: Iterable[int], b: Iterable[int]) -> int:
    """How many leading ids of the two are the same."""
    n = 0
    for ours, theirs in zip(a, b, strict=False):
        if ours != theirs:
            break
        n += 1
    return n
