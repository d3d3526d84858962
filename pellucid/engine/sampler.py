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
- top-k: exactly k tokens, of equal ones those of the lowest ids; transformers keeps all that tie with the k-th.
- top-p: the fewest likeliest tokens whose share of what top-k left sums to at least p. https://arxiv.org/abs/1904.09751
- min-p: tokens at least min_p times as likely as the likeliest. https://arxiv.org/abs/2407.01082

The draw inverts the cumulative distribution, in the order of the vocabulary, at one uniform number: the i-th of the row's own seeded generator
for its i-th id, on the CPU. So a seed means the same numbers on every device, whoever shares the batch, however often the row left it, speculated or not.

A row's id and log-probability are bitwise the same in any company. What that takes:
- Everything is elementwise, or a row's own. How much of a row is sorted depends on that row alone, and of a sort only the values are used, which
  are the same whatever sorts them; torch does not say in which order equal ones come, and its CUDA kernels choose by the number of rows.
- No torch sum: with several threads its bits depend on how many rows there are (torch 2.13, CPU, 2 threads: in 8 of 30 slices of a (33, 151937)
  tensor). `total` adds in an order of its own. exp, log and cumsum were the same in all of them, which torch promises as little; a test looks.
Among equals, the ids of top_logprobs come in torch's order: the same in any company on the CPU, not promised on a GPU.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pellucid.engine.request import MAX_TOP_LOGPROBS, Alternatives
from pellucid.engine.row import HEAD, Row
from pellucid.errors import PellucidError

BLOCK = 256  # tokens whose weights are added up before one block of them is chosen: about the square root of a large vocabulary
PLAIN = 2**13  # so many weights are summed one after the other in the time that adding up blocks of them takes
CACHED = 2**19  # logits of 2 MB handled together on a CPU: larger buffers come fresh from the system each time, page by page
WORD = 32  # bits in a word of a packed mask


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
        self._bars_256x8 = torch.where(bits > 0, 0.0, -torch.inf).to(self.device)  # a byte of a mask -> what eight logits are given
        self._n_together = max(1, CACHED // n_vocab) if self.device.type == "cpu" else None

    def __call__(self, logits_BV: Tensor, rows: Sequence[Row], mask_BW: Tensor | None = None) -> Sampled:
        """One id a row, which each row is told at once. A GPU is asked one time, and once more where top-k or top-p cut anything.

        mask_BW: what may come, packed (B, ceil(V / 32)) int32 as engine/request.py's Constraint has it; all ones (-1) where nothing binds.
        """
        n = len(rows)
        if n <= (self._n_together or n):
            return self._sample(logits_BV, rows, mask_BW)
        size = self._n_together or n
        cuts = [slice(i, i + size) for i in range(0, n, size)]
        parts = [self._sample(logits_BV[cut], rows[cut], None if mask_BW is None else mask_BW[cut]) for cut in cuts]
        return joined(parts)

    def _sample(self, logits_BV: Tensor, rows: Sequence[Row], mask_BW: Tensor | None) -> Sampled:
        model_BV = logits_BV.detach().float()
        if mask_BW is None and self.device.type == "cpu" and all(row.plain for row in rows):
            array_BV = model_BV.numpy()
            likeliest = [int(i) for i in array_BV.argmax(-1)]  # a tenth of what torch takes to find a place and its number
            if all(math.isfinite(array_BV[b, i]) for b, i in enumerate(likeliest)):
                return self._plainly(likeliest, rows)
        logits_BV = self._edited(model_BV, rows, mask_BW)
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
            # What is forced needs nothing left to choose from, only a model that computed numbers.
            best_B = torch.where(forced_B >= 0, model_BV.amax(-1), best_B)
        return self._report(model_BV, best_B, chosen_B, rows)

    def _plainly(self, ids: Sequence[int], rows: Sequence[Row]) -> Sampled:
        """These ids are what comes, and nobody asks for more."""
        for row, i in zip(rows, ids, strict=True):
            row.note(i)
        nothing = (None,) * len(rows)
        return Sampled(self._send(ids), tuple(ids), nothing, nothing, {})

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

    def _edited(self, logits_BV: Tensor, rows: Sequence[Row], mask_BW: Tensor | None) -> Tensor:
        """Logits after all that looks at single tokens; the caller's are left as they are."""
        editing = [(b, row) for b, row in enumerate(rows) if row.edits.n]
        forbidden = [b * self.n_vocab + i for b, row in enumerate(rows) for i in row.forbidden()]
        if not editing and not forbidden and mask_BW is None:
            return logits_BV
        out_BV = logits_BV.clone() if mask_BW is None else logits_BV + self._bars(mask_BW)
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

    def _bars(self, mask_BW: Tensor) -> Tensor:
        """0 where the mask allows, -inf elsewhere (B, V): added, because choosing by a mask of no pattern is 10 times slower on a CPU."""
        expected = (torch.int32, -(-self.n_vocab // WORD))
        assert (mask_BW.dtype, mask_BW.shape[1]) == expected, f"a mask of {mask_BW.dtype}, {tuple(mask_BW.shape)}; expected {expected}"
        octets = mask_BW.to(self.device).contiguous().view(torch.uint8)  # little-endian: bit i of a word is bit i % 8 of its byte i // 8
        return self._bars_256x8.index_select(0, octets.int().flatten()).view(len(mask_BW), -1)[:, : self.n_vocab]

    def _draw(self, logits_CV: Tensor, rows: Sequence[Row]) -> Tensor:
        """One id a row (C,) from logits whose largest is 0."""
        chosen_C = torch.empty(len(rows), dtype=torch.int64, device=self.device)
        for places, weights_GV in self.weights(logits_CV, rows):
            u_G1 = torch.tensor([[rows[c].u(len(rows[c].output_ids))] for c in places], dtype=torch.float64)
            chosen_C[self._send(places)] = invert(weights_GV, u_G1, self.wide)[:, 0]
        return chosen_C

    def weights(self, logits_CV: Tensor, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensor]]:
        """What temperature, top-k, top-p and min-p leave of logits whose largest is 0: places of rows, and their weights (G, V), the largest 1.

        Rows that want as many of the likeliest looked at come together. One whose top-p needs more comes again with more: the last time counts.
        """
        waiting: dict[int, list[int]] = {}
        for c, row in enumerate(rows):
            waiting.setdefault(row.width, []).append(c)
        while waiting:
            width, places = waiting.popitem()
            places.sort()  # those that came again are last: all of them, in another order, are not the rows as they are
            group = [rows[c] for c in places]
            settings = torch.tensor([row.settings for row in group], dtype=torch.float32, device=self.device)  # which counts exactly to 2**24
            temperature_G1, top_k_G1, top_p_G1, floor_G1 = settings[:, :, None].unbind(1)
            logits_GV = (logits_CV if len(places) == len(rows) else logits_CV[self._send(places)]) / temperature_G1
            weights_GV = logits_GV.exp()
            cut = None
            if width:
                cut = Cut(logits_GV, weights_GV, width, top_k_G1, top_p_G1 if any(row.sampling.top_p < 1 for row in group) else None)
                floor_G1 = torch.maximum(floor_G1, cut.floor_G1)
            if width or any(row.sampling.min_p for row in group):
                weights_GV *= torch.ge(logits_GV, floor_G1, out=torch.empty_like(weights_GV))  # as numbers at once: a third of the time of bools
            if cut is not None:
                short, tied = cut.told()
                if tied:
                    cut.untie(logits_GV, weights_GV, self._send(tied), floor_G1)
                if short:
                    waiting.setdefault(min(8 * HEAD, self.n_vocab) if width == HEAD else self.n_vocab, []).extend(places[g] for g in short)
            yield places, weights_GV

    def _send(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def _failure(model: float, edited: float) -> PellucidError:
    """Why a row has no next token, from its largest logit as the model computed it and as the settings left it."""
    if not math.isfinite(model):
        return not_numbers(f"logits that are not numbers (largest: {model})")
    if edited == -math.inf:
        return PellucidError("the constraint, bad_words and min_tokens leave no token that may come next: no output meets all of them. Relax one")
    return PellucidError(f"logit_bias and repetition_penalty took logits past what float32 holds (largest: {edited}). Choose smaller ones")


def not_numbers(what: str) -> PellucidError:
    """The error for what cannot be used."""
    return PellucidError(f"the model computed {what}. Weights that overflow float16 do this: try another dtype (--dtype float32); keys and values do that "
                         f"reach 65,520 where pages are float16: try cache_dtype='same' (--cache-dtype same); and check the files' sha256 (pellucid show)")


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
    """Sums of rows (B, 1): the same bits in any company, and rounding that grows with log N.

    On a CPU numpy's, which adds a row in pairs of pairs, and each by itself; elsewhere `halved`.
    """
    return torch.from_numpy(weights_BN.numpy().sum(-1, keepdims=True)) if weights_BN.device.type == "cpu" else halved(weights_BN)


def halved(weights_BN: Tensor) -> Tensor:
    """Sums of rows (B, 1) by adding the second half to the first until one is left: only additions of pairs, which any device rounds alike."""
    while (n := weights_BN.shape[1]) > 1:
        half = n // 2
        weights_BN = torch.cat((weights_BN[:, :half] + weights_BN[:, half : 2 * half], weights_BN[:, 2 * half :]), dim=1)
    return weights_BN


def repetition(logits_N: Tensor, seen_N: Tensor, penalty_N: Tensor) -> Tensor:
    """Seen tokens' logits divided by the penalty where positive, multiplied where negative."""
    return torch.where(seen_N, torch.where(logits_N > 0, logits_N / penalty_N, logits_N * penalty_N), logits_N)


def presence_and_frequency(logits_N: Tensor, counts_N: Tensor, presence_N: Tensor, frequency_N: Tensor) -> Tensor:
    """logit -= presence * (count > 0) + frequency * count."""
    return logits_N - presence_N * (counts_N > 0) - frequency_N * counts_N


class Cut:
    """Where top-k and top-p (2 = all) cut rows whose largest logit is 0, from the `width` likeliest: a floor (G, 1), and how many that equal it stay."""

    def __init__(self, logits_GV: Tensor, weights_GV: Tensor, width: int, top_k_G1: Tensor, top_p_G1: Tensor | None) -> None:
        n_vocab = logits_GV.shape[1]
        values_GN = highest(logits_GV, width)
        kept_GN = torch.arange(width, device=logits_GV.device) < top_k_G1
        self.short_G = torch.zeros_like(kept_GN[:, 0])
        if top_p_G1 is not None:
            # Shares are shares of what top-k leaves: of these, or of all where it leaves more.
            here_G1, share_GN = top_k_G1 <= width, values_GN.exp() * kept_GN
            share_GN = share_GN / torch.where(here_G1, total(share_GN), total(weights_GV))
            mass_GN = share_GN.cumsum(-1)
            self.short_G = (~here_G1 & (mass_GN[:, -1:] < top_p_G1))[:, 0] & (width < n_vocab)
            kept_GN[:, 1:] &= mass_GN[:, :-1] < top_p_G1
        n_kept_G1 = kept_GN.sum(-1, keepdim=True)
        self.floor_G1 = values_GN.gather(1, n_kept_G1 - 1)
        self.n_tied_G1 = n_kept_G1 - (values_GN > self.floor_G1).sum(-1, keepdim=True)
        equal_G1 = (values_GN == self.floor_G1).sum(-1, keepdim=True)
        self.tied_G = ((equal_G1 > self.n_tied_G1) | ((values_GN[:, -1:] == self.floor_G1) & (width < n_vocab)))[:, 0]

    def told(self) -> tuple[list[int], list[int]]:
        """Which rows need a larger width, and in which the floor may have equals that do not stay."""
        short, tied = torch.stack((self.short_G, self.tied_G)).tolist()
        return [g for g, yes in enumerate(short) if yes], [g for g, yes in enumerate(tied) if yes]

    def untie(self, logits_GV: Tensor, weights_GV: Tensor, at_A: Tensor, floor_G1: Tensor) -> None:
        """Of those that equal the floor only the first stay; where min-p's floor is higher, nothing does."""
        equal_AV = (logits_GV[at_A] == self.floor_G1[at_A]) & (self.floor_G1[at_A] == floor_G1[at_A])
        weights_GV[at_A] *= ~(equal_AV & (equal_AV.cumsum(-1, dtype=torch.int32) > self.n_tied_G1[at_A]))


def highest(logits_GV: Tensor, n: int) -> Tensor:
    """The n largest values in falling order (G, n). On a CPU by numpy: torch takes three times as long for a few and 20 times for all."""
    if logits_GV.device.type != "cpu":
        return logits_GV.topk(n).values
    array_GV = logits_GV.numpy()
    if n < array_GV.shape[1]:
        array_GV = np.partition(array_GV, array_GV.shape[1] - n)[:, -n:]
    return torch.from_numpy(np.sort(array_GV)[:, ::-1].copy())


def invert(weights_BN: Tensor, u_B1: Tensor, wide: torch.dtype = torch.float64) -> Tensor:
    """Where the cumulative distribution of the weights passes u in [0, 1): (B, 1), int64. A weight of 0 is never met, unless a row has no other.

    A block first, and then a place in it, each from running sums in `wide`. The sum of a block alone is rounded to the weights' own precision, and
    by that little its share is off, not by more where it is small.
    """
    n = weights_BN.shape[1]
    u_B1 = u_B1.to(weights_BN.device, wide)
    if n <= PLAIN:
        return passed(weights_BN.cumsum(-1, dtype=wide), u_B1)
    blocks_BMK = torch.nn.functional.pad(weights_BN, (0, -n % BLOCK)).view(len(weights_BN), -1, BLOCK)
    sums_BMK = blocks_BMK
    while (half := sums_BMK.shape[-1] // 2) > 0:
        sums_BMK = sums_BMK[..., :half] + sums_BMK[..., half:]
    cdf_BM = sums_BMK[..., 0].cumsum(-1, dtype=wide)
    block_B1 = passed(cdf_BM, u_B1)
    before_B1 = cdf_BM.gather(1, (block_B1 - 1).clamp(min=0)) * (block_B1 > 0)
    within_B1 = (u_B1 * cdf_BM[:, -1:] - before_B1) / (cdf_BM.gather(1, block_B1) - before_B1)
    block_BK = blocks_BMK.gather(1, block_B1[:, :, None].expand(-1, 1, BLOCK))[:, 0]
    return (block_B1 * BLOCK + passed(block_BK.cumsum(-1, dtype=wide), within_B1)).clamp(max=n - 1)


def passed(cdf_BN: Tensor, u_B1: Tensor) -> Tensor:
    """The first place (B, 1) whose running sum is above u times the total."""
    # A u that was rounded up to 1 would be past the last place of any weight; below 1, no product rounds up to the total.
    u_B1 = u_B1.clamp(max=1 - torch.finfo(cdf_BN.dtype).eps / 2)
    place_B1 = torch.searchsorted(cdf_BN, u_B1 * cdf_BN[:, -1:], right=True)
    return place_B1.clamp(max=cdf_BN.shape[1] - 1)  # past the end only where a row is not numbers


def joined(parts: Sequence[Sampled]) -> Sampled:
    """The samples of one batch's pieces, as of the whole."""
    errors, n = {}, 0
    for part in parts:
        errors |= {n + b: error for b, error in part.errors.items()}
        n += len(part.ids)
    return Sampled(torch.cat([part.ids_B for part in parts]), sum((part.ids for part in parts), ()), sum((part.logprobs for part in parts), ()),
                   sum((part.top_logprobs for part in parts), ()), errors)
