"""Blocks of 256 whose parts have scales of a few bits each, in units of one float16: the parts are fitted alone, then all together.

A part's scale is a whole number, so its neighbours are tried as well, each with the levels that follow from it; then comes the unit that suits all parts
best by least squares; and so again. What is kept is the best that was met. Shapes: N blocks of J parts of B numbers; what a block has once is
(N, 1, 1), what a part has (N, J, 1).
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pellucid.ops.quantize.search import Best, Levels, beside, fit_line, fit_scale, inverse, lost, stored, whole

_AROUND = (0, -1, 1)
_AROUND_LINE = ((0, 0), (-1, -1), (1, 1), (-1, 0), (1, 0), (0, -1), (0, 1))  # a scale and its minimum mostly grow together


def fit_scales(x: Tensor, w: Tensor, levels: Levels, starts: Iterable[float], low: int, high: int, n_rounds: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(unit, scale, level) for x ~ unit * scale * level: scales whole from low to high, the unit what float16 can say."""
    n, j, b = x.shape
    alone = fit_scale(x.reshape(-1, b), w.reshape(-1, b), levels, starts).view(n, j, 1)
    unit = beside(alone.gather(1, alone.abs().argmax(1, keepdim=True)) / low, above=True)  # low is the longer side, and no scale passes it

    def round_of(unit: Tensor, scale: Tensor) -> Best:
        def of(near: Tensor) -> tuple[Tensor, ...]:
            d = unit * near
            v = levels(x * inverse(d))
            return lost(x, w, v * d), near, v
        parts = _best(of((scale + step).clamp_(low, high)) for step in _AROUND)
        return Best(parts.lost.sum(1, keepdim=True), unit, *parts.facts)
    best = round_of(unit, (alone * inverse(unit)).round_())
    for _ in range(n_rounds):
        _, scale, level = best.facts
        v = scale * level
        wv = w * v
        unit = stored(_sum(wv * x) * inverse(_sum(wv.mul_(v))))
        found = round_of(unit, scale)
        best.hear(found.lost, *found.facts)
    unit, scale, level = best.facts
    return *whole(x, w, unit * scale * level, unit), scale, level  # type: ignore[return-value]


def fit_lines(x: Tensor, w: Tensor, top: int, cuts: Sequence[tuple[float, float]], limit: int, n_rounds: int = 2) -> tuple[Tensor, ...]:
    """(unit, unit of minima, scale, minimum, level) for x ~ unit * scale * level - unit of minima * minimum.

    Levels are whole up to top, scales and minima up to limit, nothing is negative, and the units are what float16 can say.
    """
    n, j, b = x.shape
    d, m = (found.view(n, j, 1) for found in fit_line(x.reshape(-1, b), w.reshape(-1, b), top, cuts))
    sw, sx = w.sum(2, keepdim=True), (w * x).sum(2, keepdim=True)

    def round_of(unit: Tensor, unit_m: Tensor, scale: Tensor, least: Tensor) -> Best:
        def of(near: Tensor, near_m: Tensor) -> tuple[Tensor, ...]:
            d, m = unit * near, unit_m * near_m
            q = (x + m).mul_(inverse(d)).round_().clamp_(0, top)
            return lost(x, w, (q * d).sub_(m)), near, near_m, q
        parts = _best(of((scale + step).clamp_(0, limit), (least + step_m).clamp_(0, limit)) for step, step_m in _AROUND_LINE)
        return Best(parts.lost.sum(1, keepdim=True), unit, unit_m, *parts.facts)
    unit, unit_m = (beside(wanted.amax(1, keepdim=True) / limit, above=True) for wanted in (d.clamp(min=0), m))
    best = round_of(unit, unit_m, (d * inverse(unit)).round_(), (m * inverse(unit_m)).round_())
    for _ in range(n_rounds):
        _, _, scale, least, q = best.facts
        found = round_of(*_units(x, w, sw, sx, scale * q, least), scale, least)
        best.hear(found.lost, *found.facts)
    unit, unit_m, scale, least, q = best.facts
    return *whole(x, w, unit * scale * q - unit_m * least, unit, unit_m), scale, least, q


def _units(x: Tensor, w: Tensor, sw: Tensor, sx: Tensor, v: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """The two units that suit given scales times levels, v, and minima best: least squares over the whole block."""
    wv = w * v
    vx, vm, vv = _sum(wv * x), (wv.sum(2, keepdim=True) * least).sum(1, keepdim=True), _sum(wv.mul_(v))
    mm, mx = (sw * least * least).sum(1, keepdim=True), (sx * least).sum(1, keepdim=True)
    spread = vv * mm - vm * vm
    unit, unit_m = (mm * vx - vm * mx) * inverse(spread), (vm * vx - vv * mx) * inverse(spread)
    both = (spread > 1e-6 * vv * mm) & (unit_m > 0)  # else there are no minima, or they say what the levels say
    return stored(torch.where(both, unit, vx * inverse(vv)).clamp(min=0)), stored(torch.where(both, unit_m, 0.0))


def _best(candidates: Iterable[tuple[Tensor, ...]]) -> Best:
    best = None
    for lost_of, *facts in candidates:
        if best is None:
            best = Best(lost_of, *facts)
        else:
            best.hear(lost_of, *facts)
    assert best is not None
    return best


def _sum(t: Tensor) -> Tensor:
    return t.sum((1, 2), keepdim=True)
