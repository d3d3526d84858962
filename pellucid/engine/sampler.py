"""Logits -> the next token of every row, as each row's Sampling asks. Rows never touch one another.

The order in which settings act, the same as transformers 5.23 has (generation/utils.py: processors, then warpers) and vLLM's V1 sampler
where the two agree:

    bias ─ repetition ─ presence, frequency ─ argmax where greedy, else: ─ / temperature ─ top-k ─ top-p ─ min-p ─ draw

- bias: added to the logit. https://platform.openai.com/docs/api-reference/completions/create#logit_bias
- repetition: logits of tokens in prompt or output are divided by it where positive, multiplied where negative. https://arxiv.org/abs/1909.05858
- presence, frequency: logit -= presence * (count > 0) + frequency * count, counted over the output alone, as OpenAI and vLLM have it.
- top-k: exactly k tokens; transformers keeps all that tie with the k-th.
- top-p: the fewest likeliest tokens whose share of what top-k left sums to at least p. https://arxiv.org/abs/1904.09751
- min-p: tokens at least min_p times as likely as the likeliest. https://arxiv.org/abs/2407.01082

The draw inverts the cumulative distribution at one uniform number from the row's own generator, on the CPU: a seed
means the same numbers on every device, and whoever shares the batch.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.engine.request import Request, check_vocabulary
from pellucid.errors import PellucidError

HEAD = 256  # tokens sorted first for top-p: nearly always enough, and 25 times cheaper than sorting 150,000


class Sampler:
    """Chooses the next token for a batch of requests, one row each, and remembers what it chose where a penalty needs it.

    Raises BadRequest if a request names a token outside the vocabulary.
    """

    def __init__(self, requests: Sequence[Request], n_vocab: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        settings = [r.sampling for r in requests]
        for request in requests:
            check_vocabulary(request.prompt_ids, n_vocab, "prompt")
            check_vocabulary(request.sampling.logit_bias, n_vocab, "logit_bias")
        self.generators = [None if s.greedy else torch.Generator().manual_seed(s.seed) for s in settings]
        self._greedy_B = self._column([s.greedy for s in settings], torch.bool)[:, 0]
        self._all_greedy = all(s.greedy for s in settings)
        self._wide = torch.float32 if self.device.type == "mps" else torch.float64  # mps has no float64
        self._any_greedy = any(s.greedy for s in settings)
        self._temperature_B1 = self._column([s.temperature or 1.0 for s in settings])
        self._truncate = Truncation([s.top_k for s in settings], [s.top_p for s in settings], [s.min_p for s in settings], n_vocab, self.device)
        self._bias_BV = self._biases(requests, n_vocab)
        self._repetition_B1 = self._column([s.repetition_penalty for s in settings])
        self._presence_B1 = self._column([s.presence_penalty for s in settings])
        self._frequency_B1 = self._column([s.frequency_penalty for s in settings])
        self._seen_BV = self._counts_BV = None
        if any(s.penalizes for s in settings):
            self._counts_BV = torch.zeros(len(requests), n_vocab, device=self.device)
            self._seen_BV = torch.zeros(len(requests), n_vocab, dtype=torch.bool, device=self.device)
            for b, request in enumerate(requests):
                self._seen_BV[b, list(request.prompt_ids)] = True

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The chosen ids (B,), int64. Raises PellucidError where a row's logits hold NaN or nothing finite."""
        logits_BV = logits_BV.float()
        if self._bias_BV is not None:
            logits_BV = logits_BV + self._bias_BV
        if self._counts_BV is not None and self._seen_BV is not None:
            logits_BV = repetition(logits_BV, self._seen_BV, self._repetition_B1)
            logits_BV = presence_and_frequency(logits_BV, self._counts_BV, self._presence_B1, self._frequency_B1)
        best_B, chosen_B = logits_BV.max(-1)
        if not all(map(math.isfinite, best_B.tolist())):  # NaN is the maximum wherever there is one
            raise PellucidError(f"the model computed logits that are not numbers (largest: {best_B.tolist()}). Weights that overflow float16 do this: "
                                f"try another dtype (--dtype float32), and check the files' sha256 (pellucid show)")
        if not self._all_greedy:
            drawn_B = self._draw(logits_BV - best_B[:, None])
            chosen_B = torch.where(self._greedy_B, chosen_B, drawn_B) if self._any_greedy else drawn_B
        if self._counts_BV is not None and self._seen_BV is not None:
            self._counts_BV.scatter_add_(1, chosen_B[:, None], torch.ones_like(self._temperature_B1))
            self._seen_BV.scatter_(1, chosen_B[:, None], True)
        return chosen_B

    def _draw(self, logits_BV: Tensor) -> Tensor:
        """One id a row (B,) from logits whose largest is 0."""
        logits_BN, ids_BN = self._truncate(logits_BV / self._temperature_B1)
        u = [0.0 if g is None else torch.rand(1, dtype=torch.float64, generator=g).item() for g in self.generators]
        place_B1 = invert(logits_BN, torch.tensor(u, dtype=torch.float64)[:, None], self._wide)
        return (place_B1 if ids_BN is None else ids_BN.gather(1, place_B1))[:, 0]

    def _biases(self, requests: Sequence[Request], n_vocab: int) -> Tensor | None:
        if not any(r.sampling.logit_bias for r in requests):
            return None
        bias_BV = torch.zeros(len(requests), n_vocab)
        for b, request in enumerate(requests):
            for i, value in request.sampling.logit_bias.items():
                bias_BV[b, i] = value
        return bias_BV.to(self.device)

    def _column(self, values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)[:, None]


def repetition(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Seen tokens' logits divided by the penalty where positive, multiplied where negative."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1), logits_BV)


def presence_and_frequency(logits_BV: Tensor, counts_BV: Tensor, presence_B1: Tensor, frequency_B1: Tensor) -> Tensor:
    """logit -= presence * (count > 0) + frequency * count."""
    return logits_BV - presence_B1 * (counts_BV > 0) - frequency_B1 * counts_BV


class Truncation:
    """Top-k, top-p and min-p of a batch of rows. What depends on the settings alone is decided here, once, so that a step asks no device for it."""

    def __init__(self, top_k: Sequence[int], top_p: Sequence[float], min_p: Sequence[float], n_vocab: int, device: torch.device) -> None:
        ks = [min(k or n_vocab, n_vocab) for k in top_k]
        self.n_vocab, self.k_max = n_vocab, max(ks)
        self.ks_differ, self.all_top_k = min(ks) < self.k_max, self.k_max < n_vocab
        self.any_top_p, self.any_min_p = min(top_p) < 1, max(min_p) > 0
        self.ordered = self.any_top_p or min(ks) < n_vocab
        # A row without top-p wants every token that top-k leaves, however little they weigh.
        self.wants_all = any(p == 1 and k > HEAD for k, p in zip(ks, top_p, strict=True))
        self.top_k_B1 = torch.tensor(ks, device=device)[:, None]
        self.top_p_B1 = torch.tensor([p if p < 1 else 2.0 for p in top_p], device=device)[:, None]  # 2: no rounded sum of shares reaches it
        self.enough_B1 = torch.tensor([p if p < 1 else 0.0 for p in top_p], device=device)[:, None]
        self.min_p_log_B1 = torch.tensor(min_p, device=device)[:, None].log()
        self.place_1N = torch.arange(self.k_max, device=device)[None]

    def __call__(self, logits_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """The candidates' logits (B, N), what is dropped at -inf, and their ids (B, N).

        Where nothing needs an order the candidates are all tokens in place, and the ids None.
        """
        logits_BN, ids_BN = self._likeliest(logits_BV) if self.ordered else (logits_BV, None)
        if self.any_min_p:
            floor_B1 = logits_BN.amax(-1, keepdim=True) + self.min_p_log_B1
            logits_BN = logits_BN.masked_fill(logits_BN < floor_B1, -torch.inf)
        return logits_BN, ids_BN

    def _likeliest(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest in order, cut by top-k and top-p. Sorts no more of a wide vocabulary than the top-p of all rows need."""
        n = self.k_max if self.all_top_k or self.wants_all else min(HEAD, self.k_max)
        while True:
            logits_BN, ids_BN = logits_BV.topk(n)
            if self.ks_differ:
                logits_BN = logits_BN.masked_fill(self.place_1N[:, :n] >= self.top_k_B1, -torch.inf)
            if not self.any_top_p:
                return logits_BN, ids_BN
            share_BN = (logits_BN - self._total(logits_BV, logits_BN)).exp()
            mass_BN = share_BN.cumsum(-1)
            if n == self.k_max or bool((mass_BN[:, -1:] >= self.enough_B1).all()):
                return logits_BN.masked_fill(mass_BN - share_BN >= self.top_p_B1, -torch.inf), ids_BN
            n = min(8 * n, self.k_max)

    def _total(self, logits_BV: Tensor, logits_BN: Tensor) -> Tensor:
        """The logarithm of the mass that top-k leaves, (B, 1): shares are shares of that."""
        n = logits_BN.shape[1]
        if self.all_top_k or n == self.n_vocab:
            return logits_BN.logsumexp(-1, keepdim=True)
        whole_B1 = logits_BV.logsumexp(-1, keepdim=True)  # of rows that share their mass with tokens not among the n
        return torch.where(self.top_k_B1 <= n, logits_BN.logsumexp(-1, keepdim=True), whole_B1) if self.ks_differ else whole_B1


def invert(logits_BN: Tensor, u_B1: Tensor, wide: torch.dtype = torch.float64) -> Tensor:
    """Where the cumulative distribution of softmax(logits), summed in `wide`, passes u in [0, 1): (B, 1), int64.

    The largest logit of a row must be near 0. A candidate at -inf is never met.
    """
    cdf_BN = logits_BN.exp().cumsum(-1, dtype=wide)
    # A narrower u may have rounded up to 1, past the last candidate with any share; below 1, no product rounds up to the total.
    u_B1 = u_B1.to(cdf_BN).clamp(max=1 - torch.finfo(wide).eps / 2)
    return torch.searchsorted(cdf_BN, u_B1 * cdf_BN[:, -1:], right=True)
