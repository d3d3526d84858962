"""What a model does on a machine: whether it fits, how fast and how dear it is, by the roofline; and what training one costs. No torch here.

    decode   seconds a step = max(bytes read / bandwidth, FLOPs / rate), of all rows of the batch together
    prefill  seconds        = max(tokens x FLOPs / rate, bytes of the weights once / bandwidth)
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from pellucid import cost
from pellucid.catalog.footprint import DENSE, Footprint
from pellucid.catalog.hardware import Hardware
from pellucid.errors import BadRequest

# Of what a data sheet promises: reading memory, as aiconfigurator corrects it (mem_bw_empirical_scaling_factor of its systems), and arithmetic in prompts
# and training, inference-sim's calibration for an H100 (hardware_config.json, mfuPrefill).
REACHED_BANDWIDTH, REACHED_RATE = 0.8, 0.45
# Of what the read test reads, the kernels of this package reach so much while decoding: benchmarks/plan_cpu_202611.md.
REACHED_DENSE, REACHED_PACKED = 0.67, 0.67
HOUR = 3600.0
# Hoffmann et al., https://arxiv.org/abs/2203.15556: loss(N, D) = E + A / N^a + B / D^b of its approach 3, as they published it, and as
# https://arxiv.org/abs/2404.10102 fitted the same data again. C = 6 N D.
FITS = {"hoffmann": (1.69, 406.4, 410.7, 0.34, 0.28), "besiroglu": (1.8172, 482.01, 2085.43, 0.3478, 0.3658)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second: of all rows together while decoding, of a prompt; and seconds until a prompt's first token. bound: what limits decoding."""

    decode: float
    prefill: float | None
    first_seconds: float | None
    bound: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Of a million tokens decoded: seconds, US dollars, kilowatt-hours, grams of CO2; None where rent or watts are not known.

    break_even: tokens a month from which renting all month costs less than the price a million that was given; None where it never does.
    """

    seconds: float
    dollars: float | None
    kwh: float | None
    co2_grams: float | None
    break_even: float | None


def speed(footprint: Footprint, hardware: Hardware, *, format: str, prompt: int, context: int, batch: int = 1, bytes_per_number: float = 2) -> Speed | None:
    """How fast this runs; None where nobody knows the bandwidth. context: tokens a row has while it decodes; prompt: of one row."""
    if hardware.bandwidth is None:
        return None
    share = REACHED_BANDWIDTH if not hardware.measured else REACHED_DENSE if format.lower() in DENSE else REACHED_PACKED
    bandwidth = hardware.bandwidth * share
    peak = hardware.rates.get("bf16") or hardware.rates.get("f32")
    rate = None if peak is None else peak * (1 if hardware.measured else REACHED_RATE)
    reading = (footprint.read_bytes(format, batch) + batch * footprint.cache_bytes(context, bytes_per_number)) / bandwidth
    computing = 0.0 if rate is None else batch * cost.flops_per_token(footprint.spec, context) / rate
    first = None
    if rate is not None:  # half of the prompt is what a token of it sees on average
        first = max(prompt * cost.flops_per_token(footprint.spec, max(1, prompt // 2)) / rate, footprint.read_bytes(format, prompt) / bandwidth)
    return Speed(decode=batch / max(reading, computing), prefill=None if first is None else prompt / first, first_seconds=first,
                 bound="arithmetic" if computing > reading else "memory")


def price(tokens_per_second: float, hardware: Hardware, *, grams_per_kwh: float, dollars_per_million: float | None = None) -> Price:
    """What a million tokens cost at this speed, and from how many a month on a rented machine is the cheaper one."""
    seconds = 1e6 / tokens_per_second
    dollars = None if hardware.rent is None else seconds / HOUR * hardware.rent
    kwh = None if hardware.watts is None else hardware.watts * seconds / HOUR / 1000
    month = 730 * HOUR
    even = None
    if dollars_per_million and hardware.rent is not None:
        tokens = hardware.rent * 730 / dollars_per_million * 1e6
        even = tokens if tokens <= tokens_per_second * month else None
    return Price(seconds=seconds, dollars=dollars, kwh=kwh, co2_grams=None if kwh is None else kwh * grams_per_kwh, break_even=even)


def training_seconds(footprint: Footprint, hardware: Hardware, *, n_tokens: float, n_seq: int, method: str) -> float | None:
    """Seconds for so many tokens in rows of n_seq; None where nobody knows the rate.

    Forward once and backward twice its arithmetic, less the gradients of frozen weights where only adapters are trained; and forward once more, for
    what was not kept.
    """
    peak = hardware.rates.get("bf16") or hardware.rates.get("f32")
    if peak is None:
        return None
    passes = 4 if method == "full" else 3
    return n_tokens * passes * cost.flops_per_token(footprint.spec, max(1, n_seq // 2)) / (peak * (1 if hardware.measured else REACHED_RATE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """A compute-optimal model: parameters, tokens, FLOPs, the loss the fit predicts; `beyond`: (parameters, tokens, FLOPs) of smaller models of equal loss."""

    fit: str
    parameters: float
    tokens: float
    flops: float
    loss: float
    beyond: tuple[tuple[float, float, float], ...]


def pretraining(flops: float, fit: str = "besiroglu") -> Pretraining:
    """Parameters and tokens of the least loss for so many FLOPs, of FITS; and smaller models that reach it with more tokens (over-training).

    Closed form: N = G (C / 6)^(b / (a + b)), D = (C / 6) / N, G = (a A / (b B))^(1 / (a + b)). Raises BadRequest for a budget that is none.
    """
    if not (flops > 0 and math.isfinite(flops)):
        raise BadRequest(f"a budget of {flops:g} FLOPs trains nothing; a model of 1 B parameters wants some 1e20", field="flops")
    E, A, B, a, b = FITS[fit]
    n = (a * A / (b * B)) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))
    loss = E + A / n ** a + B / (flops / 6 / n) ** b
    beyond = []
    for share in (0.5, 0.25):
        left = loss - E - A / (share * n) ** a
        if left > 0:  # below that no number of tokens makes up for the size
            tokens = (B / left) ** (1 / b)
            beyond.append((share * n, tokens, 6 * share * n * tokens))
    return Pretraining(fit=fit, parameters=n, tokens=flops / 6 / n, flops=flops, loss=loss, beyond=tuple(beyond))
