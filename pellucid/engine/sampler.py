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
from collections.abc import Callable, Sequence

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
        self._temperature_B1 = self._column([s.temperature or 1.0 for s in settings])
        self._truncate = None if self._all_greedy else truncation(
            self._column([min(s.top_k or n_vocab, n_vocab) for s in settings], torch.int64),
            self._column([s.top_p for s in settings]), self._column([s.min_p for s in settings]))
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
            chosen_B = torch.where(self._greedy_B, chosen_B, drawn_B)
        if self._counts_BV is not None and self._seen_BV is not None:
            self._counts_BV.scatter_add_(1, chosen_B[:, None], torch.ones_like(self._temperature_B1))
            self._seen_BV.scatter_(1, chosen_B[:, None], True)
        return chosen_B

    def _draw(self, logits_BV: Tensor) -> Tensor:
        """One id a row (B,) from logits whose largest is 0."""
        assert self._truncate is not None
        logits_BN, ids_BN = self._truncate(logits_BV / self._temperature_B1)
        u = [0.0 if g is None else torch.rand(1, dtype=torch.float64, generator=g).item() for g in self.generators]
        place_B1 = invert(logits_BN, torch.tensor(u, dtype=torch.float64)[:, None])
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


Truncate = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def truncation(top_k_B1: Tensor, top_p_B1: Tensor, min_p_B1: Tensor) -> Truncate:
    """A function from logits (B, V) to the candidates' logits (B, N) and their ids (B, N); what is dropped is -inf.

    Where nothing needs an order the candidates are all tokens in place, and the ids None.
    What depends on the settings alone is decided here, once, so that a step asks no device for it.
    """
    k_max, p_min, min_p_max = int(top_k_B1.max()), float(top_p_B1.min()), float(min_p_B1.max())
    short_B1 = (top_p_B1 == 1) & (top_k_B1 > HEAD)  # wants more than HEAD tokens, whatever their share

    def truncate(logits_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        n_vocab, ids_BN = logits_BV.shape[1], None
        logits_BN = logits_BV
        if k_max < n_vocab or p_min < 1:
            n = k_max if k_max < n_vocab else min(HEAD, n_vocab)
            logits_BN, ids_BN, mass_B1 = _likeliest(logits_BV, n, top_k_B1, top_p_B1)
            if k_max > n and bool((short_B1 | (mass_B1 < top_p_B1)).any()):
                logits_BN, ids_BN, _ = _likeliest(logits_BV, n_vocab, top_k_B1, top_p_B1)
        if min_p_max > 0:
            floor_B1 = logits_BN.amax(-1, keepdim=True) + min_p_B1.log()
            logits_BN = logits_BN.masked_fill(logits_BN < floor_B1, -torch.inf)
        return logits_BN, ids_BN

    return truncate


def _likeliest(logits_BV: Tensor, n: int, top_k_B1: Tensor, top_p_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The n likeliest in order, (B, n) twice, cut by top-k and top-p; and how much of what top-k leaves those n hold, (B, 1)."""
    logits_BN, ids_BN = logits_BV.topk(n)
    logits_BN = logits_BN.masked_fill(torch.arange(n, device=logits_BN.device) >= top_k_B1, -torch.inf)
    # A row that asks for more than n candidates shares its mass with tokens that are not among them.
    total_B1 = torch.where(top_k_B1 <= n, logits_BN.logsumexp(-1, keepdim=True), logits_BV.logsumexp(-1, keepdim=True))
    share_BN = (logits_BN - total_B1).exp()
    mass_BN = share_BN.cumsum(-1)
    return logits_BN.masked_fill((mass_BN - share_BN >= top_p_B1) & (top_p_B1 < 1), -torch.inf), ids_BN, mass_BN[:, -1:]


def invert(logits_BN: Tensor, u_B1: Tensor) -> Tensor:
    """Where the cumulative distribution of softmax(logits) passes u in [0, 1): (B, 1), int64. A candidate at -inf is never met."""
    wide = torch.float32 if logits_BN.device.type == "mps" else torch.float64  # mps has no float64
    cdf_BN = logits_BN.to(wide).exp().cumsum(-1)
    total_B1 = cdf_BN[:, -1:]
    # u * total may round up to the total itself, past the last candidate with any share.
    at_B1 = torch.minimum(u_B1.to(cdf_BN) * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    return torch.searchsorted(cdf_BN, at_B1, right=True)
