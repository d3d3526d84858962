"""The search for scales: by what a block is divided, so that the numbers it then stands for lose least.

What is lost is the sum of w (x - number)^2. A scale decides which level each number goes to, and the levels decide by least squares which scale is
best for them; one follows the other in turn and ends in the nearest of many hollows. So several starts are tried and the best is followed.

llama.cpp looks for scales as well (make_qx_quants, make_qkx2_quants, make_qkx3_quants):
https://github.com/ggml-org/llama.cpp/blob/36491e4024b3016e6e2d21afc140add042b44bec/ggml/src/ggml-quants.c. What is done beyond that here: cuts at either
end of a range alone, scales of both signs, and every scale is judged as it will be stored, rounded, by the numbers that follow from it.

Shapes: N blocks of B numbers (nested.py has J parts between); a scale is (N, 1). All float32.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Levels = Callable[[Tensor], Tensor]  # numbers in units of the scale -> the nearest that can be said, in memory that may be written to
_SMALLEST = 1e-37  # above the smallest normal float32: what is smaller divides nothing


def even(low: int, high: int) -> Levels:
    """The whole numbers from low to high."""
    return lambda t: t.round().clamp_(low, high)


def book(values: Sequence[float]) -> Levels:
    """The values of a codebook, ascending, whose midpoints are whole or halves: so a table of halves says which is nearest."""
    level, low = torch.tensor(values, dtype=torch.float32), 2 * int(values[0])
    middle = (level[1:] + level[:-1]) / 2
    assert torch.equal((2 * middle).round(), 2 * middle)
    table = level[torch.bucketize(torch.arange(low, 2 * int(values[-1]) + 1) / 2 + 0.25, middle)]

    def nearest(t: Tensor) -> Tensor:
        at = (t * 2).floor_().sub_(low).clamp_(0, len(table) - 1).int()
        return table.index_select(0, at.flatten()).view_as(t)  # three times as fast as table[at]
    return nearest


def inverse(d: Tensor) -> Tensor:
    """1/d; 0 for a d of 0, or so near that nothing can be divided by it."""
    return torch.where(d.abs() < _SMALLEST, 0.0, 1 / d)


def stored(d: Tensor) -> Tensor:
    """A scale as float16 has it."""
    return d.half().float()


def beside(d: Tensor, *, above: bool) -> Tensor:
    """The float16 number that is d or next to it, on the side away from zero (above) or towards it. Small weights have scales of few bits."""
    half = d.half()
    wrong = half.float().abs() < d.abs() if above else half.float().abs() > d.abs()
    return (half.view(torch.int16) + (wrong.short() if above else -wrong.short())).view(torch.float16).float()


def lost(x: Tensor, w: Tensor, of: Tensor) -> Tensor:
    """What is lost where x is taken for `of`, summed over the last axis, which stays with length 1."""
    e = x - of
    return e.mul_(e).mul_(w).sum(-1, keepdim=True)


def whole(x: Tensor, w: Tensor, of: Tensor, *d: Tensor) -> tuple[Tensor, ...]:
    """The scales d of the numbers `of`, drawn out so that these are as long along x as x is, and rounded to float16.

    Least squares leaves what is lost at right angles to the numbers, so these are too short: by 0.6 % of their length in four bits, 7 % in two. That
    is the same for every row and adds up from layer to layer, where what is lost at random does not: docs/LOG.md has what it costs.
    """
    dims = tuple(range(1, x.ndim))
    wx = w * x
    along = (wx * of).sum(dims, keepdim=True)
    by = torch.where(along > 0, (wx.mul_(x)).sum(dims, keepdim=True) * inverse(along), 1.0).clamp_(1, 1.5)
    return tuple(stored(each * by) for each in d)


class Best:
    """The candidates that lost least until now, each block's own."""

    def __init__(self, lost: Tensor, *facts: Tensor) -> None:
        self.lost, self.facts = lost, facts

    def hear(self, lost: Tensor, *facts: Tensor) -> None:
        found = lost < self.lost
        self.lost = torch.where(found, lost, self.lost)
        self.facts = tuple(torch.where(found, new, old) for new, old in zip(facts, self.facts, strict=True))


def fit_scale(x: Tensor, w: Tensor, levels: Levels, starts: Iterable[float], n_follow: int = 2, *, positive: bool = False) -> Tensor:
    """The scale d for which d * level loses least, as far as was looked. starts: levels that the number farthest from zero may go to.

    positive: it goes to the one of its own sign, so that d is not negative.
    """
    wx, unit = w * x, inverse(x.abs().amax(-1, keepdim=True) if positive else x.gather(-1, x.abs().argmax(-1, keepdim=True)))
    best = Best(torch.full_like(unit, torch.inf), torch.zeros_like(unit))

    def hear(by: Tensor) -> None:
        v = levels(x * by)
        d = (v * wx).sum(-1, keepdim=True) * inverse((v * v).mul_(w).sum(-1, keepdim=True))
        best.hear(lost(x, w, v.mul_(d)), d)
    for start in starts:
        hear(unit * start)
    for _ in range(n_follow):
        hear(inverse(best.facts[0]))
    return best.facts[0]


def settle(x: Tensor, w: Tensor, levels: Levels, d: Tensor) -> tuple[Tensor, Tensor]:
    """(d, level), d the one of the two float16 numbers next to it that loses less."""
    def of(near: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = levels(x * inverse(near))
        return lost(x, w, v * near), near, v
    best = Best(*of(beside(d, above=True)))
    best.hear(*of(beside(d, above=False)))
    return best.facts[0], best.facts[1]


def fit_line(x: Tensor, w: Tensor, top: int, cuts: Iterable[tuple[float, float]], *, n_follow: int = 1, free: bool = False) -> tuple[Tensor, Tensor]:
    """(d, m) for which d * level - m loses least, levels whole from 0 to top, as far as was looked; m is not negative unless it is `free`.

    cuts: how much of the range from the smallest number to the largest is cut off below and above.
    """
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    low = low if free else low.clamp(max=0)
    span, wx = high - low, w * x
    sw, sx = w.sum(-1, keepdim=True), wx.sum(-1, keepdim=True)
    best = Best(torch.full_like(low, torch.inf), torch.zeros_like(low), torch.zeros_like(low))

    def hear(by: Tensor, least: Tensor) -> None:
        q = (x + least).mul_(by).round_().clamp_(0, top)
        wq = w * q
        sq, sqx = wq.sum(-1, keepdim=True), (q * wx).sum(-1, keepdim=True)
        sqq = wq.mul_(q).sum(-1, keepdim=True)
        spread = sw * sqq - sq * sq
        flat = spread <= 1e-6 * sw * sqq  # all on one level, to which no line belongs but a constant
        m = torch.where(flat, -sx / sw, (sq * sqx - sqq * sx) * inverse(spread))
        d = torch.where(flat, 0.0, (sw * sqx - sx * sq) * inverse(spread))
        if not free:  # the best line with m < 0 is not to be had, and that with m = 0 is next to it
            d, m = torch.where(m < 0, sqx * inverse(sqq), d), m.clamp(min=0)
        best.hear(lost(x, w, q.mul_(d).sub_(m)), d, m)
    for below, above in cuts:
        hear(inverse((1 - below - above) * span) * top, -(low + below * span))
    for _ in range(n_follow):
        hear(inverse(best.facts[0]), best.facts[1])
    return best.facts[0], best.facts[1]
