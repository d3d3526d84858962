"""What the sampler remembers of one sequence."""
from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from pellucid.engine.request import Request, check_vocabulary

HEAD = 1024  # likeliest tokens looked at first: nearly always enough, and four times cheaper than sorting 150,000


class Row:
    """What the sampler remembers of one sequence, however often that joins and leaves a batch. All of it on the host.

    `index` tells the outputs of one request apart: each has random numbers of its own. `output_ids` are what has come already, for a row that is
    built again. Raises BadRequest if the request names a token outside the vocabulary.
    """

    def __init__(self, request: Request, n_vocab: int, *, index: int = 0, output_ids: Iterable[int] = ()) -> None:
        s = request.sampling
        for name, ids in (("prompt", request.prompt_ids), ("stop_ids", request.stop_ids), ("prefix_ids", request.prefix_ids),
                          ("logit_bias", s.logit_bias), *(("bad_words", word) for word in request.bad_words)):
            check_vocabulary(ids, n_vocab, name)
        self.request, self.sampling = request, s
        self.output_ids: list[int] = []
        top_k = min(s.top_k or n_vocab, n_vocab)
        self.width = 0 if top_k == n_vocab and s.top_p == 1 else min(HEAD, n_vocab) if top_k < HEAD or top_k == n_vocab else n_vocab
        self.settings = (s.temperature or 1.0, top_k, s.top_p if s.top_p < 1 else 2.0,  # 2: no rounded sum of shares reaches it
                         math.log(s.min_p) if s.min_p else -math.inf)
        self.edits = Edits(s.logit_bias, request.prompt_ids if s.repetition_penalty != 1 else ())
        self._generator = torch.Generator().manual_seed(seed(s.seed, index))
        self._u: list[float] = []  # of the numbers drawn, the last few: those for ids to come
        self._n_drawn = 0
        self._words: dict[int, list[tuple[int, ...]]] = {}  # by the id before the one that they forbid
        for word in request.bad_words:
            if len(word) > 1:
                self._words.setdefault(word[-2], []).append(word)
        self._never = [word[0] for word in request.bad_words if len(word) == 1]
        for token_id in output_ids:
            self.note(token_id)

    def u(self, i: int) -> float:
        """The uniform number in [0, 1) for the i-th id of the output, of those to come. A draft may look ahead."""
        assert i >= len(self.output_ids), f"number {i} is used and gone: {len(self.output_ids)} ids have come"
        if (n := i + 1 - self._n_drawn) > 0:
            self._u += torch.rand(n, dtype=torch.float64, generator=self._generator).tolist()
            self._n_drawn += n
        return self._u[i - self._n_drawn]

    def note(self, token_id: int) -> None:
        """An id has come. The sampler says so itself of those it chooses."""
        self.output_ids.append(token_id)
        del self._u[: len(self._u) - max(0, self._n_drawn - len(self.output_ids))]
        if self.sampling.penalizes:
            self.edits.note(token_id)

    @property
    def forced_id(self) -> int | None:
        """What the forced prefix has here, if it reaches so far."""
        i, prefix = len(self.output_ids), self.request.prefix_ids
        return prefix[i] if i < len(prefix) else None

    @property
    def plain(self) -> bool:
        """Whether its next id is the likeliest as the model has it, and nothing is asked about that."""
        return self.sampling.greedy and not self.edits.n and not self.request.scores and self.forced_id is None and not self.forbidden()

    @property
    def stays_plain(self) -> bool:
        """Whether that is so of all ids to come as well, whatever comes, and they may come together."""
        return self.request.ahead and self.plain and not self._words and not self.sampling.penalizes

    def forbidden(self) -> list[int]:
        """Ids that may not come here: by bad words and the minimum."""
        ids = list(self._never)
        if len(self.output_ids) < self.request.min_tokens:
            ids += self.request.stop_ids
        if self._words and (last := self._last(1)):
            ids += (word[-1] for word in self._words.get(last[0], ()) if self._last(len(word) - 1) == word[:-1])
        return ids

    def _last(self, n: int) -> tuple[int, ...]:
        """The last n ids of prompt and output, fewer where there are not so many."""
        ours = tuple(self.output_ids[-n:])
        return ours if len(ours) == n else (*self.request.prompt_ids[len(ours) - n:], *ours)


class Ahead(Row):
    """A row that goes on from where another is, with its settings and its random numbers: for guesses. The other knows nothing of them."""

    def __init__(self, row: Row) -> None:
        self.__dict__.update(vars(row))
        self._row, self.output_ids = row, list(row.output_ids)
        if row.sampling.penalizes:
            self.edits = row.edits.copy()

    def u(self, i: int) -> float:
        """See `Row`: the number that the row itself will use there."""
        return self._row.u(i)

    def note(self, token_id: int) -> None:
        """A guess."""
        self.output_ids.append(token_id)
        if self.sampling.penalizes:
            self.edits.note(token_id)


class Edits:
    """Tokens whose logits a row changes: N of them, each with its bias, whether it was seen, and its count in the output."""

    def __init__(self, bias: Mapping[int, float], seen: Sequence[int]) -> None:
        ids = list(dict.fromkeys((*bias, *seen)))
        self.n, self._ids = len(ids), np.array(ids, np.int64)
        self._values = np.zeros((3, len(ids)), np.float32)
        self._place = {token_id: i for i, token_id in enumerate(ids)}
        for token_id, value in bias.items():
            self._values[0, self._place[token_id]] = value
        self._values[1, [self._place[token_id] for token_id in dict.fromkeys(seen)]] = 1

    @property
    def ids_N(self) -> np.ndarray:
        return self._ids[: self.n]

    @property
    def values_3N(self) -> np.ndarray:
        return self._values[:, : self.n]

    def copy(self) -> Edits:
        """One that goes its own way."""
        other = copy.copy(self)
        other._ids, other._values, other._place = self._ids.copy(), self._values.copy(), dict(self._place)
        return other

    def note(self, token_id: int) -> None:
        i = self._place.setdefault(token_id, self.n)
        if i == self.n:
            if self.n == len(self._ids):  # doubled, so that a long output costs a copy seldom
                self._ids = np.concatenate((self._ids, np.zeros(self.n + 16, np.int64)))
                self._values = np.concatenate((self._values, np.zeros((3, self.n + 16), np.float32)), axis=1)
            self._ids[i] = token_id
            self.n += 1
        self._values[1, i] = 1
        self._values[2, i] += 1


def seed(asked: int, index: int) -> int:
    """The seed of a request's index-th output: the first has the one asked for, the others what no neighbouring seed has."""
    return asked if index == 0 else int.from_bytes(hashlib.blake2b(f"{asked}/{index}".encode(), digest_size=8).digest()) >> 1
