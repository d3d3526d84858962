"""Logits -> the next token of every row, as each row's Request asks. Rows never touch one another.

The order in which settings act, the same as transformers 5.23 has (generation/utils.py: processors, then warpers) and vLLM's V1 sampler
where the two agree:

    bias ─ repetition ─ presence, frequency ─ bad words, minimum, constraint ─ argmax where greedy, else:
    ─ / temperature ─ top-k ─ top-p ─ min-p ─ draw ─ forced prefix, which overrides all

- bias: added to the logit. https://platform.openai.com/docs/api-reference/completions/create#logit_bias
- repetition: logits of tokens in prompt or output are divided by it where positive, multiplied where negative. https://arxiv.org/abs/1909.05858
- presence, frequency: logit -= presence * (count > 0) + frequency * count, counted over the output alone, as OpenAI and vLLM have it.
- bad words: the last id of one is forbidden where the others are what came last, prompt included, as transformers has it (vLLM: output alone).
- minimum: stop ids are forbidden until so many ids have come. The constraint's mask forbids whatever else it does not allow.
- top-k: exactly k tokens; transformers keeps all that tie with the k-th.
- top-p: the fewest likeliest tokens whose share of what top-k left sums to at least p. https://arxiv.org/abs/1904.09751
- min-p: tokens at least min_p times as likely as the likeliest. https://arxiv.org/abs/2407.01082

The draw inverts the cumulative distribution at one uniform number, the i-th of the row's own seeded generator for its i-th id, on the CPU: a
seed means the same numbers on every device, whoever shares the batch, however often the row left it, speculated or not.

A row's id and log-probabilities are bitwise the same in any company: everything is elementwise or a row's own, and how much of a row is sorted
depends on that row alone (which of two equal logits comes first depends on it). torch's sums are not used: with several threads the bits
of one depend on how many rows there are (seen in torch 2.13 on the CPU: 8 of 30 slices of a (33, 151937) sum differed); `total` adds in an
order of its own.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pellucid.engine.request import MAX_TOP_LOGPROBS, Alternatives, Request, check_vocabulary
from pellucid.errors import PellucidError

HEAD = 256  # tokens sorted first for top-p: nearly always enough, and 25 times cheaper than sorting 150,000
WORD = 32  # bits in a word of a packed mask


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
        self.width = _width(s.top_k, s.top_p, n_vocab)
        self.settings = (s.temperature or 1.0, s.top_k or n_vocab, s.top_p if s.top_p < 1 else 2.0,  # 2: no rounded sum of shares reaches it
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


class Edits:
    """Tokens whose logits a row changes: N of them, each with its bias, whether it was seen, and its count in the output."""

    def __init__(self, bias: dict[int, float], seen: Iterable[int]) -> None:
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


@dataclass(frozen=True, slots=True)
class Sampled:
    """What came of one call, row by row.

    errors: by the place of a row for which nothing could be chosen; its id is -1 here, and its Row does not know of it.
    """

    ids_B: Tensor  # int64, on the logits' device
    ids: tuple[int, ...]
    logprobs: tuple[float | None, ...]  # None for a row that does not ask
    top_logprobs: tuple[Alternatives | None, ...]
    errors: dict[int, PellucidError]


class Sampler:
    """Chooses the next token of any rows in any order; all that it remembers is in the rows."""

    def __init__(self, n_vocab: int, device: torch.device | str = "cpu") -> None:
        self.n_vocab, self.device = n_vocab, torch.device(device)
        self.wide = torch.float32 if self.device.type == "mps" else torch.float64  # mps has no float64
        bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
        self._bools_256 = bits.bool().view(torch.int64)[:, 0].to(self.device)  # a byte of a packed mask -> eight bools, read as one number

    def __call__(self, logits_BV: Tensor, rows: Sequence[Row], mask_BV: Tensor | None = None) -> Sampled:
        """One id a row, which each row is told at once. Asks the device one time, and once more for each time that top-p needs a longer head.

        mask_BV: what may come, bool (B, V) or packed int32 (B, ceil(V / 32)) as engine/request.py's Constraint has it; all ones where nothing binds.
        """
        model_BV = logits_BV.float()
        logits_BV = self._edited(model_BV, rows, mask_BV)
        best_B, chosen_B = logits_BV.max(-1)
        if drawing := [b for b, row in enumerate(rows) if not row.sampling.greedy]:
            every = len(drawing) == len(rows)
            at_C = None if every else self._send(drawing)
            few_CV, few_C = (logits_BV, best_B) if at_C is None else (logits_BV[at_C], best_B[at_C])
            drawn_C = self._draw(few_CV - few_C[:, None], [rows[b] for b in drawing])
            chosen_B = drawn_C if at_C is None else chosen_B.index_copy(0, at_C, drawn_C)
        forced = [-1 if row.forced_id is None else row.forced_id for row in rows]
        if max(forced, default=-1) >= 0:
            forced_B = self._send(forced)
            chosen_B = torch.where(forced_B >= 0, forced_B, chosen_B)
            best_B = best_B.masked_fill(forced_B >= 0, 0.0)  # what is forced needs nothing left to choose from
        return self._report(model_BV, best_B, chosen_B, rows)

    def _report(self, model_BV: Tensor, best_B: Tensor, chosen_B: Tensor, rows: Sequence[Row]) -> Sampled:
        """Everything to the host in one piece, and every row told its id."""
        asking = [b for b, row in enumerate(rows) if row.request.scores]
        parts = [best_B.to(self.wide), chosen_B.to(self.wide)]
        if asking:
            at_S = self._send(asking)
            parts.append(score(model_BV[at_S], chosen_B[at_S], any(rows[b].request.top_logprobs for b in asking)).to(self.wide).flatten())
        values = torch.cat(parts).tolist()
        n = len(rows)
        # NaN is the maximum wherever there is one.
        errors = {b: _failure(model_BV[b].max().item(), values[b]) for b in range(n) if not math.isfinite(values[b])}
        ids = [-1 if b in errors else int(i) for b, i in enumerate(values[n : 2 * n])]
        logprobs: list[float | None] = [None] * n
        top: list[Alternatives | None] = [None] * n
        for place, b in enumerate(asking):
            width = (len(values) - 2 * n) // len(asking)
            logprobs[b], top[b] = scores(values[2 * n + place * width :][:width], rows[b].request.top_logprobs)
        for b, row in enumerate(rows):
            if b in errors:
                chosen_B = chosen_B.index_fill(0, self._send([b]), -1)
            else:
                row.note(ids[b])
        return Sampled(chosen_B, tuple(ids), tuple(logprobs), tuple(top), errors)

    def _edited(self, logits_BV: Tensor, rows: Sequence[Row], mask_BV: Tensor | None) -> Tensor:
        """Logits after all that looks at single tokens; the caller's are left as they are."""
        editing = [(b, row) for b, row in enumerate(rows) if row.edits.n]
        forbidden = [b * self.n_vocab + i for b, row in enumerate(rows) for i in row.forbidden()]
        if not editing and not forbidden and mask_BV is None:
            return logits_BV
        out_BV = logits_BV.clone() if mask_BV is None else torch.where(self._allowed(mask_BV), logits_BV, -torch.inf)
        if editing:
            at_N = torch.from_numpy(np.concatenate([row.edits.ids_N + b * self.n_vocab for b, row in editing])).to(self.device)
            penalties_3N = np.repeat(np.array([(row.sampling.repetition_penalty, row.sampling.presence_penalty, row.sampling.frequency_penalty)
                                               for _, row in editing], np.float32).T, [row.edits.n for _, row in editing], axis=1)
            values_3N = np.concatenate([row.edits.values_3N for _, row in editing], axis=1)
            bias_N, seen_N, count_N, *penalties = torch.from_numpy(np.concatenate((values_3N, penalties_3N))).to(self.device)
            flat_N = repetition(out_BV.view(-1)[at_N] + bias_N, seen_N > 0, penalties[0])
            out_BV.view(-1).scatter_(0, at_N, presence_and_frequency(flat_N, count_N, *penalties[1:]))
        if forbidden:
            out_BV.view(-1).index_fill_(0, self._send(forbidden), -torch.inf)
        return out_BV

    def _allowed(self, mask_BV: Tensor) -> Tensor:
        """The mask as bool (B, V)."""
        if mask_BV.dtype == torch.int32:
            n_words = -(-self.n_vocab // WORD)
            assert mask_BV.shape[1] == n_words, f"a packed mask of {mask_BV.shape[1]} words for {self.n_vocab} tokens, which want {n_words}"
            octets_BO = mask_BV.to(self.device).contiguous().view(torch.uint8)  # little-endian: bit i of a word is bit i % 8 of its byte i // 8
            mask_BV = self._bools_256[octets_BO.int()].view(torch.bool)[:, : self.n_vocab]
        assert (mask_BV.dtype, mask_BV.shape[1]) == (torch.bool, self.n_vocab), f"a mask of {mask_BV.dtype}, {tuple(mask_BV.shape)}"
        return mask_BV.to(self.device)

    def _draw(self, logits_CV: Tensor, rows: Sequence[Row]) -> Tensor:
        """One id a row (C,) from logits whose largest is 0."""
        chosen_C = torch.empty(len(rows), dtype=torch.int64, device=self.device)
        for places, logits_GN, ids_GN in self.candidates(logits_CV, rows):
            u_G1 = torch.tensor([[rows[c].u(len(rows[c].output_ids))] for c in places], dtype=torch.float64)
            place_G1 = invert(logits_GN, u_G1, self.wide)
            chosen_C[self._send(places)] = (place_G1 if ids_GN is None else ids_GN.gather(1, place_G1))[:, 0]
        return chosen_C

    def candidates(self, logits_CV: Tensor, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensor, Tensor | None]]:
        """What temperature, top-k, top-p and min-p leave: places of rows, their logits (G, N) with what is dropped at -inf, and the ids (G, N).

        The ids are None where nothing needs an order: all tokens in place. Rows that want as many candidates come together, none more than it would
        want alone; one whose top-p needs more than HEAD comes again with more, and the last time counts.
        """
        waiting: dict[int, list[int]] = {}
        for c, row in enumerate(rows):
            waiting.setdefault(row.width, []).append(c)
        while waiting:
            width, places = waiting.popitem()
            group = [rows[c] for c in places]
            logits_GV = logits_CV if len(places) == len(rows) else logits_CV[self._send(places)]
            settings = torch.tensor([row.settings for row in group], dtype=self.wide, device=self.device)
            temperature_G1, top_k_G1, top_p_G1, min_p_log_G1 = settings[:, :, None].unbind(1)
            logits_GN, ids_GN, enough_G = logits_GV / temperature_G1.float(), None, None
            if width:
                any_top_p = any(row.sampling.top_p < 1 for row in group)
                logits_GN, ids_GN, enough_G = likeliest(logits_GN, width, top_k_G1, top_p_G1.float() if any_top_p else None)
            if any(row.sampling.min_p for row in group):
                logits_GN = logits_GN.masked_fill(logits_GN < logits_GN.amax(-1, keepdim=True) + min_p_log_G1.float(), -torch.inf)
            yield places, logits_GN, ids_GN
            if enough_G is not None and (short := [c for c, enough in zip(places, enough_G.tolist(), strict=True) if not enough]):
                waiting.setdefault(min(8 * width, self.n_vocab), []).extend(short)

    def _send(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _failure(model: float, edited: float) -> PellucidError:
    """Why a row has no next token, from its largest logit as the model computed it and as the settings left it."""
    if not math.isfinite(model):
        return PellucidError(f"the model computed logits that are not numbers (largest: {model}). Weights that overflow float16 do this: "
                             f"try another dtype (--dtype float32), and check the files' sha256 (pellucid show)")
    if edited == -math.inf:
        return PellucidError("the constraint, bad_words and min_tokens leave no token that may come next: no output meets all of them. Relax one")
    return PellucidError(f"logit_bias and repetition_penalty took logits past what float32 holds (largest: {edited}). Choose smaller ones")


def seed(asked: int, index: int) -> int:
    """The seed of a request's index-th output: the first has the one asked for, the others what no neighbouring seed has."""
    return asked if index == 0 else int.from_bytes(hashlib.blake2b(f"{asked}/{index}".encode(), digest_size=8).digest()) >> 1


def score(logits_SV: Tensor, ids_S: Tensor, top: bool) -> Tensor:
    """Log-probabilities of these ids (S, 1) under softmax(logits); with `top` the K likeliest ids follow and then theirs, (S, 1 + 2K).

    K is always MAX_TOP_LOGPROBS (the vocabulary, if smaller), so that no row's choice among equals depends on what another asks. `scores` reads a row of it.
    """
    logits_SV = logits_SV.float()
    best_S1 = logits_SV.amax(-1, keepdim=True)
    whole_S1 = best_S1 + total((logits_SV - best_S1).exp_()).log()
    chosen_S1 = logits_SV.gather(1, ids_S.clamp(min=0)[:, None]) - whole_S1
    if not top:
        return chosen_S1
    top_SK, top_ids_SK = logits_SV.topk(min(MAX_TOP_LOGPROBS, logits_SV.shape[1]))
    return torch.cat([chosen_S1, top_ids_SK.float(), top_SK - whole_S1], dim=1)  # ids below 2**24 are exact in float32


def scores(values: Sequence[float], k: int) -> tuple[float, Alternatives]:
    """The log-probability and the k likeliest of one row of `score`, on the host."""
    n = len(values) // 2
    return values[0], tuple((int(i), logprob) for i, logprob in zip(values[1 : 1 + k], values[1 + n :][:k], strict=True))


def total(weights_BN: Tensor) -> Tensor:
    """Sums of rows (B, 1), halves added to halves: the same bits in any company, and rounding grows with log N. The weights are used up."""
    n = weights_BN.shape[1]
    while n > 1:
        half = (n + 1) // 2
        weights_BN[:, : n - half] += weights_BN[:, half:n]
        n = half
    return weights_BN[:, :1]


def repetition(logits_N: Tensor, seen_N: Tensor, penalty_N: Tensor) -> Tensor:
    """Seen tokens' logits divided by the penalty where positive, multiplied where negative."""
    return torch.where(seen_N, torch.where(logits_N > 0, logits_N / penalty_N, logits_N * penalty_N), logits_N)


def presence_and_frequency(logits_N: Tensor, counts_N: Tensor, presence_N: Tensor, frequency_N: Tensor) -> Tensor:
    """logit -= presence * (count > 0) + frequency * count."""
    return logits_N - presence_N * (counts_N > 0) - frequency_N * counts_N


def _width(top_k: int, top_p: float, n_vocab: int) -> int:
    """How many candidates a row has sorted first: 0 where nothing needs an order, else a few sizes only, so that rows share them."""
    if 0 < top_k < n_vocab:
        return min(max(64, 1 << (top_k - 1).bit_length()), n_vocab)
    return 0 if top_p == 1 else min(HEAD, n_vocab)


def likeliest(logits_GV: Tensor, width: int, top_k_G1: Tensor, top_p_G1: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The `width` likeliest in order (G, N), cut by top-k and top-p (2 = all) at -inf, their ids, and which rows (G,) have enough for top-p there."""
    logits_GN, ids_GN = logits_GV.topk(width)
    logits_GN = logits_GN.masked_fill(torch.arange(width, device=logits_GV.device) >= top_k_G1, -torch.inf)
    if top_p_G1 is None:
        return logits_GN, ids_GN, None
    # Shares are shares of what top-k leaves: of these, or of all where it leaves more.
    best_G1, here_G1 = logits_GN[:, :1], top_k_G1 <= width
    whole_G1 = torch.where(here_G1, total((logits_GN - best_G1).exp()), total((logits_GV - best_G1).exp()))
    share_GN = (logits_GN - (best_G1 + whole_G1.log())).exp()
    mass_GN = share_GN.cumsum(-1)
    enough_G = (here_G1 | (mass_GN[:, -1:] >= top_p_G1))[:, 0] if width < logits_GV.shape[1] else None
    return logits_GN.masked_fill(mass_GN - share_GN >= top_p_G1, -torch.inf), ids_GN, enough_G


def invert(logits_BN: Tensor, u_B1: Tensor, wide: torch.dtype = torch.float64) -> Tensor:
    """Where the cumulative distribution of softmax(logits), summed in `wide`, passes u in [0, 1): (B, 1), int64.

    The largest logit of a row must be near 0. A candidate at -inf is never met.
    """
    cdf_BN = logits_BN.exp().cumsum(-1, dtype=wide)
    # A narrower u may have rounded up to 1, past the last candidate with any share; below 1, no product rounds up to the total.
    u_B1 = u_B1.to(cdf_BN).clamp(max=1 - torch.finfo(wide).eps / 2)
    return torch.searchsorted(cdf_BN, u_B1 * cdf_BN[:, -1:], right=True).clamp(max=cdf_BN.shape[1] - 1)  # past the end only where all is NaN
