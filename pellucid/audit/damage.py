"""What becomes of a model's predictions when its weights change: two models side by side on the same tokens.

At each token: how likely each model held it, the Kullback-Leibler divergence from the first model's distribution to the second's, and whether their first
choices differ. Logits of both are held for a few tokens at a time; what is kept of a token are a few numbers. Shape letters as in model/decoder.py;
N counts scored tokens.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pellucid.audit.held_out import Window
from pellucid.audit.intervals import Interval, Resampled
from pellucid.errors import BadCheckpoint, UnsupportedModel
from pellucid.model.decoder import Decoder

AT_ONCE = 1 << 21  # numbers of logits in float64 at once, of each model: 16 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Of each scored token, (N,): its id and place in the text, KL(A||B) in nats, log-probabilities, first choices and what each is held for."""

    ids: Tensor
    places: Tensor
    kl: Tensor
    logprob_a: Tensor
    logprob_b: Tensor
    first_a: Tensor
    first_b: Tensor
    share_a: Tensor
    share_b: Tensor

    @property
    def flipped(self) -> Tensor:
        return self.first_a != self.first_b


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """The numbers of a comparison, each with its interval; logarithms are natural, KL is in nats a token, `flips` and its kind are shares of the tokens."""

    n_tokens: int
    n_bytes: int
    perplexity_a: Interval
    perplexity_b: Interval
    perplexity_ratio: Interval
    bits_per_byte_a: Interval
    bits_per_byte_b: Interval
    kl_mean: Interval
    kl_median: Interval
    kl_p99: Interval
    flips: Interval
    logprob_difference: Interval
    logprob_spread: Interval


def check_pair(a: Decoder, b: Decoder, names: tuple[str, str] = ("A", "B")) -> None:
    """Raises UnsupportedModel for models whose distributions are not over the same ids, or that continue nothing."""
    if a.spec.n_vocab != b.spec.n_vocab:
        raise UnsupportedModel(f"{names[0]!r} has logits for {a.spec.n_vocab:,} ids and {names[1]!r} for {b.spec.n_vocab:,}: distributions over different ids "
                               f"are not compared. Compare models with the same vocabulary, padded to the same length")
    for name, decoder in zip(names, (a, b), strict=True):
        if not decoder.spec.causal:
            raise UnsupportedModel(f"{name!r} continues nothing: its tokens see what follows them, so it has no distribution to compare. Compare generators")


@torch.inference_mode()
def look(a: Decoder, b: Decoder, texts: Sequence[Window], report: Callable[[int], None] = lambda n: None,
         names: tuple[str, str] = ("A", "B")) -> Seen:
    """Both models on all windows. report: is told of every so many tokens that were scored. Raises BadCheckpoint where a model computes no numbers."""
    parts: list[tuple[Tensor, ...]] = []
    for window in texts:
        ids_N = torch.tensor(window.scored)
        before = slice(window.n_context - 1, len(window.ids) - 1)  # each is told by the position before it
        hidden = [decoder(torch.tensor(window.ids, device=device_of(decoder)))[before] for decoder in (a, b)]
        n = max(1, AT_ONCE // a.spec.n_vocab)
        for start in range(0, len(ids_N), n):
            rows = slice(start, start + n)
            a_NV, b_NV = (_logs(decoder, hidden_ND[rows], name) for decoder, hidden_ND, name in zip((a, b), hidden, names, strict=True))
            parts.append(told(a_NV, b_NV, ids_N[rows]))
            report(len(ids_N[rows]))
    places = torch.cat([torch.arange(window.start, window.start + len(window.scored)) for window in texts])
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    ids = torch.cat([torch.tensor(window.scored) for window in texts])
    return Seen(ids=ids, places=places, **dict(zip([field.name for field in fields(Seen)][2:], columns, strict=True)))


def told(a_NV: Tensor, b_NV: Tensor, ids_N: Tensor) -> tuple[Tensor, ...]:
    """What Seen keeps of two log-distributions, float64: kl, both log-probabilities of the ids, both first choices, and what each is held for."""
    share_NV = a_NV.exp()
    kl_N = torch.where(share_NV > 0, share_NV * (a_NV - b_NV), 0.0).sum(-1).clamp_(min=0)  # rounding may leave -1e-17 where they are equal
    (best_a, first_a), (best_b, first_b) = a_NV.max(-1), b_NV.max(-1)
    at = ids_N[:, None]
    return kl_N, a_NV.gather(1, at)[:, 0], b_NV.gather(1, at)[:, 0], first_a, first_b, best_a.exp(), best_b.exp()


def measure(seen: Seen, n_bytes_N: Tensor, seed: int = 0) -> tuple[Damage, Resampled]:
    """The numbers of what was seen. n_bytes_N: of text that each token spells."""
    draws = Resampled(len(seen.ids), seed)
    difference = seen.logprob_b - seen.logprob_a
    loss_a, loss_b = draws.mean(-seen.logprob_a), draws.mean(-seen.logprob_b)
    bits_a, bits_b = (draws.ratio(-logprob, n_bytes_N).mapped(1 / math.log(2)) for logprob in (seen.logprob_a, seen.logprob_b))
    square = draws.mean(difference.square())
    spread = Interval(*(math.sqrt(each) for each in (square.value, square.low, square.high)))
    damage = Damage(
        n_tokens=len(seen.ids), n_bytes=int(n_bytes_N.sum()), perplexity_a=loss_a.exp(), perplexity_b=loss_b.exp(),
        perplexity_ratio=draws.mean(-difference).exp(), bits_per_byte_a=bits_a, bits_per_byte_b=bits_b, kl_mean=draws.mean(seen.kl),
        kl_median=draws.percentile(seen.kl, 0.5), kl_p99=draws.percentile(seen.kl, 0.99), flips=draws.mean(seen.flipped),
        logprob_difference=draws.mean(difference), logprob_spread=spread)
    return damage, draws


def device_of(decoder: Decoder) -> torch.device:
    return decoder.embed.weight.device


def log_softmax(decoder: Decoder, hidden_ND: Tensor) -> Tensor:
    """The log-distributions (N, V) after these hidden states, in float64."""
    logs_NV: Tensor = decoder.unembed(hidden_ND).double().log_softmax(-1)
    return logs_NV


def _logs(decoder: Decoder, hidden_ND: Tensor, name: str) -> Tensor:
    logs_NV = log_softmax(decoder, hidden_ND).cpu()
    if not bool(logs_NV.isfinite().all()):
        raise BadCheckpoint(f"{name!r} computes NaN or infinity on this text, so it has no distribution to compare. Do the weights, or the dtype, overflow? "
                            f"Try --dtype float32, and check the files' sha256 (pellucid show)")
    return logs_NV
