"""Numbers -> blocks of ggml's formats, the inverse of unpack.py and codebooks.py: x and its weights w, (N, numbers of a block) -> bytes (N, bytes of a block).

Each function finds scales and levels by search.py or nested.py, with starts and rounds chosen where more of them brought less than a hundredth of the
error (docs/LOG.md), and lays them out as the structs of ggml-common.h, llama.cpp at aca2e6ce7909064dbfbf3bd168e9ad3db1826e6c.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pellucid.ops.bits import as_bits, as_half, as_planes
from pellucid.ops.codebooks import IQ4
from pellucid.ops.quantize.nested import fit_lines, fit_scales
from pellucid.ops.quantize.search import Best, book, even, fit_line, fit_scale, inverse, lost, settle, stored, whole
from pellucid.ops.unpack import E2M1

Pack = Callable[[Tensor, Tensor], Tensor]


def _spread(level: int, *factors: float) -> list[float]:
    return [level * factor for factor in factors]


# Levels that the farthest number may go to; beyond the last one it is cut off, and before it a step is smaller than it need be. Wide apart, because with
# importance the farthest number may count little; of both signs where one side is longer by one level of a few.
_FOUR = [*_spread(-8, 0.72, 0.8, 0.87, 0.93, 0.98, 1.02, 1.07, 1.13, 1.22, 1.35), *_spread(7, 0.75, 0.85, 0.95, 1.02, 1.1, 1.2)]
_FIVE = [*_spread(-16, 0.82, 0.89, 0.93, 0.96, 0.98, 1.0, 1.02, 1.045, 1.08, 1.14), *_spread(15, 0.88, 0.95, 0.98, 1.0, 1.03, 1.08)]
_EIGHT = _spread(-127, 0.9, 0.92, 0.94, 0.955, 0.97, 0.98, 0.987, 0.993, 0.997, 1.0, 1.003, 1.006, 1.01, 1.015)
_SIX = _spread(-32, 0.86, 0.91, 0.94, 0.96, 0.975, 0.99, 1.005, 1.02, 1.04, 1.07, 1.12)
_THREE = [sign * factor for factor in (0.7, 0.8, 0.87, 0.93, 0.98, 1.03, 1.09, 1.17, 1.28) for sign in (-4, 4)]
_UNEVEN = [level * factor for factor in (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1) for level in (-127, 113)]


def _cuts(*percent: float) -> list[tuple[float, float]]:
    """Each of these at either end; below zero there is room beyond the farthest number."""
    return [(below / 100, above / 100) for below in percent for above in percent]


_CUTS, _CUTS_OF_FIVE, _CUTS_NESTED, _CUTS_OF_TWO = _cuts(-1, 1, 3, 6), _cuts(-1, 0.3, 1.5, 3.2, 5.5), _cuts(-0.5, 2, 5), _cuts(0, 5, 10, 16)
_NEAREST_UNEVEN, _NEAREST_E2M1 = book(IQ4), book(sorted(set(E2M1)))


def _scaled(low: int, high: int, starts: list[float], lay: Callable[[Tensor], list[Tensor]]) -> Pack:
    """One float16 scale for whole levels."""
    levels = even(low, high)

    def pack(x: Tensor, w: Tensor) -> Tensor:
        d, level = settle(x, w, levels, fit_scale(x, w, levels, starts))
        return torch.cat([as_half(*whole(x, w, d * level, d)), *lay(level)], -1)
    return pack


def _lined(top: int, cuts: list[tuple[float, float]], lay: Callable[[Tensor], list[Tensor]]) -> Pack:
    """A float16 scale and a float16 minimum."""
    def pack(x: Tensor, w: Tensor) -> Tensor:
        d, m = (stored(found) for found in fit_line(x, w, top, cuts, n_follow=2, free=True))
        q = (x + m).mul_(inverse(d)).round_().clamp_(0, top)
        d, m = whole(x, w, d * q - m, d, m)
        return torch.cat([as_half(d), as_half(-m), *lay(q)], -1)
    return pack


def _nibbles(q: Tensor) -> list[Tensor]:
    """(N, 32), from 0 to 15: the first half in the low bits."""
    return [as_planes(q.byte().view(-1, 2, 16), 4)]


def _fives(q: Tensor) -> list[Tensor]:
    """(N, 32), from 0 to 31: the fifth bits apart."""
    q = q.byte()
    return [as_bits((q >> 4).view(-1, 4, 8), 1), *_nibbles(q & 15)]


def _q2_k(x: Tensor, w: Tensor) -> Tensor:
    unit, unit_m, scale, least, q = fit_lines(x.view(-1, 16, 16), w.view(-1, 16, 16), 3, _CUTS_OF_TWO, 15)
    scales = scale[..., 0].byte() | least[..., 0].byte() << 4
    return torch.cat([scales, _quarters(q.byte()), as_half(unit[:, 0]), as_half(unit_m[:, 0])], -1)


def _q3_k(x: Tensor, w: Tensor) -> Tensor:
    unit, scale, q = fit_scales(x.view(-1, 16, 16), w.view(-1, 16, 16), even(-4, 3), _THREE, -32, 31)
    number, scales = (q + 4).byte(), (scale[..., 0] + 32).byte()
    parts = as_planes((scales & 15).view(-1, 2, 8), 4), as_planes((scales >> 4).view(-1, 4, 4), 2)
    return torch.cat([as_planes((number >> 2).view(-1, 8, 32), 1), _quarters(number & 3), *parts, as_half(unit[:, 0])], -1)


def _q4_k(x: Tensor, w: Tensor) -> Tensor:
    unit, unit_m, scale, least, q = fit_lines(x.view(-1, 8, 32), w.view(-1, 8, 32), 15, _CUTS_NESTED, 63)
    return torch.cat([as_half(unit[:, 0]), as_half(unit_m[:, 0]), _sixes(scale, least), _halves(q.byte())], -1)


def _q5_k(x: Tensor, w: Tensor) -> Tensor:
    unit, unit_m, scale, least, q = fit_lines(x.view(-1, 8, 32), w.view(-1, 8, 32), 31, _CUTS_NESTED, 63)
    q = q.byte()
    return torch.cat([as_half(unit[:, 0]), as_half(unit_m[:, 0]), _sixes(scale, least), as_planes(q >> 4, 1), _halves(q & 15)], -1)


def _q6_k(x: Tensor, w: Tensor) -> Tensor:
    unit, scale, q = fit_scales(x.view(-1, 16, 16), w.view(-1, 16, 16), even(-32, 31), _SIX, -128, 127)
    number = (q + 32).byte()
    low = as_planes((number & 15).view(-1, 2, 2, 64), 4).flatten(1)
    return torch.cat([low, _quarters(number >> 4), scale[..., 0].to(torch.int8).view(torch.uint8), as_half(unit[:, 0])], -1)


def _iq4_nl(x: Tensor, w: Tensor) -> Tensor:
    d, level = settle(x, w, _NEAREST_UNEVEN, fit_scale(x, w, _NEAREST_UNEVEN, _UNEVEN))
    return torch.cat([as_half(*whole(x, w, d * level, d)), *_nibbles(_codes(IQ4, level))], -1)


def _iq4_xs(x: Tensor, w: Tensor) -> Tensor:
    unit, scale, level = fit_scales(x.view(-1, 8, 32), w.view(-1, 8, 32), _NEAREST_UNEVEN, _UNEVEN, -32, 31)
    scales, code = (scale[..., 0] + 32).byte(), _codes(IQ4, level)
    high, low = as_bits((scales >> 4).view(-1, 2, 4), 2), as_bits((scales & 15).view(-1, 4, 2), 4)
    return torch.cat([as_half(unit[:, 0]), high, low, as_planes(code.view(-1, 8, 2, 16), 4).flatten(1)], -1)


def _mxfp4(x: Tensor, w: Tensor) -> Tensor:
    """The scale is a power of two, so there are few: the one by which the farthest number is just cut off at 6, and those beside it."""
    _, exponent = torch.frexp(x.abs().amax(-1, keepdim=True))  # the farthest number is below 2 ** exponent, and not below half of it
    best = Best(torch.full_like(exponent, torch.inf, dtype=torch.float32), exponent, torch.zeros_like(x))
    near = torch.ldexp(x, -exponent)  # no square of which overflows
    for step in (-3, -2, -1):  # 6 is written as 12, its unit halved: 8 to 16, 4 to 8 or 2 to 4 is the farthest
        at = (exponent + step).clamp(-127, 127)
        level = _NEAREST_E2M1(torch.ldexp(x, 1 - at))
        best.hear(lost(near, w, torch.ldexp(level, at - 1 - exponent)), at, level)
    at, level = best.facts
    codes = torch.tensor([E2M1.index(value) for value in range(-12, 13) if value in E2M1], dtype=torch.uint8)
    return torch.cat([(at + 127).byte(), *_nibbles(codes[_codes(sorted(set(E2M1)), level).int()])], -1)


def _codes(values: tuple[int, ...] | list[int], level: Tensor) -> Tensor:
    """Which of the values, ascending, each level is."""
    at = torch.zeros(int(values[-1] - values[0]) + 1, dtype=torch.uint8)
    at[torch.tensor(values) - values[0]] = torch.arange(len(values), dtype=torch.uint8)
    return at[(level - values[0]).int()]


def _quarters(q: Tensor) -> Tensor:
    """Two bits a number: 256 -> 64 bytes, of each half's numbers the first 32 in the lowest bits, then the next."""
    return as_planes(q.reshape(-1, 2, 4, 32), 2).flatten(1)


def _halves(q: Tensor) -> Tensor:
    """Four bits a number, of parts of 32 two beside each other: (N, 8, 32) -> (N, 128)."""
    return as_planes(q.view(-1, 4, 2, 32), 4).flatten(1)


def _sixes(scale: Tensor, least: Tensor) -> Tensor:
    """Eight scales and eight minima of six bits in twelve bytes; of the last four of each, the upper two bits beside the first four."""
    s, m = scale[..., 0].byte(), least[..., 0].byte()
    return torch.cat([s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | m[:, 4:] << 4], -1)


PACK: Mapping[str, Pack] = {
    "F32": lambda x, w: x.contiguous().view(torch.uint8), "F16": lambda x, w: as_half(x),
    "BF16": lambda x, w: x.bfloat16().contiguous().view(torch.uint8),
    "Q4_0": _scaled(-8, 7, _FOUR, lambda q: _nibbles(q + 8)), "Q4_1": _lined(15, _CUTS, _nibbles),
    "Q5_0": _scaled(-16, 15, _FIVE, lambda q: _fives(q + 16)), "Q5_1": _lined(31, _CUTS_OF_FIVE, _fives),
    "Q8_0": _scaled(-127, 127, _EIGHT, lambda q: [q.to(torch.int8).view(torch.uint8)]),
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
}
