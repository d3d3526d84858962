"""Drafts: what may come next, checked in one pass with what is computed anyway.

A sequence's drafts are computed behind its last id. The sampler then chooses place by place what it would have chosen without them, with the same
random numbers, for as long as that is what the draft has there. So every id that comes is the model's own, at every temperature, and a wrong guess
costs time and nothing else: the output is the same within the rounding of a pass that computes more tokens, and bitwise where the decoder is
deterministic. Whether the time is well spent is measured: `Pace`.

Source of the idea: https://arxiv.org/abs/2211.17192; drafts taken from the prompt: https://github.com/apoorvumang/prompt-lookup-decoding.
"""
from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from pellucid.engine.sequence import Sequence
from pellucid.spec import DecoderSpec

MOST = 8  # drafts of a sequence at once: that many are right in a row where text is copied, and hardly ever elsewhere
PROBE = 3  # drafts with which a sequence finds out again whether they pay
MEASURED = 3  # steps without drafts before there are any: the median of two is no better than their mean
RECENT = 5  # measured steps whose median counts: one that something else held up changes nothing
PLAIN_EVERY = 32  # steps with drafts, after which one without is measured again
FORGET_AFTER = 256  # steps without drafts, after which what they cost is measured again
FIRST_WAIT, LAST_WAIT = 32, 512  # ids that a sequence does without drafts when they did not pay, doubled each time
CHEAPEST = 0.01  # price that is believed: less is a clock's noise, and guesses that are never right would go on at it
UNMEASURED = 0.2  # price of a draft before it is known: few rows wait for weights to be read, and then computing a token more costs little
CHAIN = 16  # places of the same two ids that are compared: bounds a look-up in a long text that repeats itself
LONGEST = 4  # ids; a longer match is no better guess
SHORTEST = 2


class Proposer(Protocol):
    """Guesses the ids that follow. A wrong guess costs time and changes nothing else."""

    def furnish(self, spec: DecoderSpec, *, n_bytes: int, max_rows: int, step_tokens: int) -> int:
        """Makes it ready for an engine of this model, whose cache may take so much; the bytes of that it takes for itself."""
        ...

    def propose(self, sequences: Rows[Sequence], most: Rows[int]) -> list[list[int]]:
        """For each sequence at most so many ids that may follow its own, in order; none where there is no guess."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence is done; it may never have been proposed for."""
        ...


@dataclass(slots=True)
class _Habit:
    """How a sequence's drafts have done of late."""

    right: float
    wrong: float  # rounds that ended with one
    rest: int  # ids to go without
    wait: int = FIRST_WAIT  # the next rest

    @property
    def share(self) -> float:
        return self.right / (self.right + self.wrong)


class Pace:
    """How many drafts pay, by what they were measured to cost and to bring.

    price    of a draft, in times of an id without drafts: (step with drafts - step without) / drafts * rows / step without. Known for each size of
             batch: near 0 where a step waits for weights to be read, 1 and more where it computes all the time
    share    the probability that a draft is right if those before it are. The j-th is right with share**j, saves an id's time then, and is made
             while that is above the price

    Where not even the first is, the sequence goes without for a while and tries again. Nothing here changes an id.
    """

    def __init__(self) -> None:
        self._plain: dict[int, deque[float]] = {}  # seconds of steps without drafts, by the size of the batch, a power of two
        self._prices: dict[int, deque[float]] = {}
        self._since_plain: dict[int, int] = {}
        self._since_drafts: dict[int, int] = {}
        self._right, self._wrong = 3.0, 1.0  # of all sequences; begins as if three of four had been right
        self._habits: dict[Sequence, _Habit] = {}

    def counts(self, sequences: Rows[Sequence]) -> list[int]:
        """How many drafts to ask for. All 0 where a step without any is to be measured, and where none can pay."""
        size = len(sequences).bit_length()
        if len(self._plain.get(size, ())) < MEASURED or self._since_plain.get(size, 0) >= PLAIN_EVERY:
            return [0] * len(sequences)
        if (price := self.price(size)) >= 1:  # not even one that is surely right pays
            return [0] * len(sequences)
        return [self._count(sequence, price) for sequence in sequences]

    def price(self, size: int) -> float:
        """Of a draft in batches of this size (the bits of the number of rows)."""
        return max(CHEAPEST, median(self._prices[size])) if self._prices.get(size) else UNMEASURED

    def _count(self, sequence: Sequence, price: float) -> int:
        habit = self._habits.get(sequence)
        if habit is None:
            share = self._right / (self._right + self._wrong)
            habit = self._habits[sequence] = _Habit(2 * share, 2 * (1 - share), 0 if paying(share, price) else FIRST_WAIT)
        if habit.rest:
            habit.rest -= 1
            return 0
        return paying(habit.share, price) or PROBE

    def told(self, sequence: Sequence, n_drafted: int, n_right: int, n_rows: int) -> None:
        """How many of a sequence's drafts were right, in a step of so many rows."""
        habit, wrong = self._habits.get(sequence), float(n_right < n_drafted)
        self._right, self._wrong = 0.99 * self._right + n_right, 0.99 * self._wrong + wrong
        if habit is None:  # it has ended with them
            return
        habit.right, habit.wrong = 0.8 * habit.right + n_right, 0.8 * habit.wrong + wrong  # the last five rounds or so
        if paying(habit.share, self.price(n_rows.bit_length())):
            habit.wait = FIRST_WAIT
        else:
            habit.rest, habit.wait = habit.wait, min(2 * habit.wait, LAST_WAIT)

    def measured(self, n_rows: int, n_drafts: int, seconds: float, *, asked: bool) -> None:
        """What a step took in which every sequence computed one id and its drafts. asked: whether time went into making some."""
        size = n_rows.bit_length()
        if n_drafts:
            self._since_drafts[size] = 0
            self._since_plain[size] = self._since_plain.get(size, 0) + 1
            if plain := self._plain.get(size):
                before = median(plain)
                self._prices.setdefault(size, deque(maxlen=RECENT)).append((seconds - before) / n_drafts * n_rows / before)
        elif not asked:
            self._plain.setdefault(size, deque(maxlen=RECENT)).append(seconds)
            self._since_plain[size] = 0
            self._since_drafts[size] = self._since_drafts.get(size, 0) + 1
            if self._since_drafts[size] >= FORGET_AFTER:
                self._prices.pop(size, None)
                self._since_drafts[size] = 0

    def forget(self, sequence: Sequence) -> None:
        """It is done."""
        self._habits.pop(sequence, None)


def paying(share: float, price: float) -> int:
    """How many drafts in a row each save more than they cost, up to MOST."""
    if share <= price:
        return 0
    return MOST if price <= share**MOST else max(1, int(math.log(price) / math.log(share)))


class Speculation:
    """The drafts of an engine: asks a proposer for as many as pay, and keeps the books."""

    def __init__(self, proposer: Proposer) -> None:
        self.proposer, self.pace = proposer, Pace()
        self.n_drafted = self.n_accepted = 0
        self._asked = False
        self._n_rows = 0

    def propose(self, running: Rows[Sequence]) -> None:
        """Gives drafts to the sequences that need only their next id."""
        able = [s for s in running if s.decodes and not s.drafts]
        self._n_rows, self._asked = len(able), False
        if not able:
            return
        most = [min(n, s.end - len(s.ids)) for n, s in zip(self.pace.counts(able), able, strict=True)]
        self._asked = any(most)
        if self._asked:
            for sequence, n, drafts in zip(able, most, self.proposer.propose(able, most), strict=True):
                sequence.drafts = list(drafts[:n])

    def told(self, sequence: Sequence, n_right: int) -> None:
        """How many of a sequence's drafts were right."""
        n = len(sequence.drafts)
        sequence.n_drafted, sequence.n_accepted = sequence.n_drafted + n, sequence.n_accepted + n_right
        self.n_drafted, self.n_accepted = self.n_drafted + n, self.n_accepted + n_right
        if not sequence.done:  # an end among the drafts says nothing of those behind it
            self.pace.told(sequence, n, n_right, self._n_rows)

    def measured(self, n_tokens: Rows[int], n_drafts: int, seconds: float) -> None:
        """What a step took that computed so many tokens of each sequence. One with parts of prompts in it tells nothing about drafts."""
        if sum(n_tokens) == len(n_tokens) + n_drafts:
            self.pace.measured(len(n_tokens), n_drafts, seconds, asked=self._asked)

    def forget(self, sequence: Sequence) -> None:
        """It is done."""
        self.pace.forget(sequence)
        self.proposer.forget(sequence)


class PromptLookup:
    """Guesses that what followed the last few ids earlier, in the prompt or the output, follows them again.

    The longest match of LONGEST to SHORTEST ids counts, the latest of several. Finding it costs the same at every length: each pair of ids leads
    back to where it stood before, as in deflate (https://www.rfc-editor.org/rfc/rfc1951#section-4).
    """

    def __init__(self) -> None:
        self._indexes: dict[Sequence, _Index] = {}

    def furnish(self, spec: DecoderSpec, *, n_bytes: int, max_rows: int, step_tokens: int) -> int:
        """See `Proposer`. It needs no memory of the device."""
        return 0

    def propose(self, sequences: Rows[Sequence], most: Rows[int]) -> list[list[int]]:
        """See `Proposer`."""
        return [self._indexes.setdefault(s, _Index()).continuation(s.ids, n) if n else [] for s, n in zip(sequences, most, strict=True)]

    def forget(self, sequence: Sequence) -> None:
        """See `Proposer`."""
        self._indexes.pop(sequence, None)


class _Index:
    """Where each pair of a growing list of ids ended, the latest place first."""

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], int] = {}
        self._earlier = array("q", [-1, -1])  # for each end of a pair, the end of the same pair before it; -1 = there is none
        self._n = SHORTEST

    def continuation(self, ids: list[int], n: int) -> list[int]:
        """The n ids after the best earlier match of the last ones; what repeats goes on repeating."""
        for end in range(self._n, len(ids)):  # a pair at the very end has nothing after it
            pair = (ids[end - 2], ids[end - 1])
            self._earlier.append(self._latest.get(pair, -1))
            self._latest[pair] = end
        self._n = max(self._n, len(ids))
        if len(ids) <= SHORTEST:
            return []
        best, longest, at = -1, 0, self._latest.get((ids[-2], ids[-1]), -1)
        for _ in range(CHAIN):
            if at < 0 or longest == LONGEST:
                break
            length = SHORTEST
            while length < LONGEST and length < at and ids[at - length - 1] == ids[-length - 1]:
                length += 1
            if length > longest:
                best, longest = at, length
            at = self._earlier[at]
        return [] if best < 0 else [ids[best + i % (len(ids) - best)] for i in range(n)]
