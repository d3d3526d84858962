"""Plots as SVG, drawn here: axes with round ticks, bars and lines in the colors of the page they stand in. No script, no file beside it."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 760, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 12, 38
Scale = Callable[[float], float]


def bars(values: Sequence[float], *, x: str, y: str, span: tuple[float, float], titles: Sequence[str], log_x: bool = False, percent: bool = False) -> str:
    """A bar for each value, side by side over `span` of the x axis. titles: what pointing at a bar says."""
    top = max(values, default=0) or 1.0
    across, up = _scale(*span, LEFT, WIDTH - RIGHT, log=log_x), _scale(0, top, HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    shapes = [f'<rect class="bar" x="{LEFT + i * step:.1f}" y="{up(value):.1f}" width="{max(0.5, step - (1 if step > 3 else 0)):.1f}" '
              f'height="{HEIGHT - BOTTOM - up(value):.1f}"><title>{escape(title)}</title></rect>'
              for i, (value, title) in enumerate(zip(values, titles, strict=True))]
    return _plot(shapes, _x_axis(span, across, x, log=log_x), _y_axis((0, top), up, y, percent=percent))


def lines(series: Sequence[tuple[str, Sequence[float]]], *, x: str, y: str, at: Sequence[float]) -> str:
    """One line a series over the places `at`, y logarithmic; (class, values) pairs, drawn in their order. Zeros lie on the axis."""
    seen = [value for _, values in series for value in values if value > 0]
    low, high = (min(seen), max(seen)) if seen else (0.1, 1.0)
    low, high = low / 1.3, high * 1.3
    span = (at[0], at[-1] if at[-1] > at[0] else at[0] + 1)
    across, up = _scale(*span, LEFT, WIDTH - RIGHT), _scale(low, high, HEIGHT - BOTTOM, TOP, log=True)
    shapes = [f'<polyline class="{name}" points="{" ".join(f"{across(i):.1f},{up(max(v, low)):.1f}" for i, v in zip(at, values, strict=True))}"/>'
              for name, values in series]
    return _plot(shapes, _x_axis(span, across, x), _y_axis((low, high), up, y, log=True))


def rows(items: Sequence[tuple[str, float, str]], *, x: str) -> str:
    """Horizontal bars, (label, value, what stands at its end), the first on top; labels in a column of their own."""
    left, step = 250, 17
    height = TOP + step * len(items) + BOTTOM
    top = max((value for _, value, _ in items if math.isfinite(value)), default=0) or 1.0
    across = _scale(0, top, left, WIDTH - 110)
    shapes = []
    for i, (label, value, note) in enumerate(items):
        y, end = TOP + i * step, across(min(value, top))
        shapes.append(f'<text class="label" x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
                      f'<rect class="bar" x="{left}" y="{y + 2}" width="{max(0.0, end - left):.1f}" height="{step - 4}"/>'
                      f'<text class="tick" x="{end + 6:.1f}" y="{y + 12}">{escape(note)}</text>')
    return _plot(shapes, [f'<text class="name" x="{left}" y="{height - 12}">{escape(x)}</text>'], [], height=height)


def nice(low: float, high: float, n: int = 5) -> list[float]:
    """About n round numbers from low to high: 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if raw <= factor * power * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, thinned to at most eight."""
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**p for p in powers[:: -(-len(powers) // 8) or 1]]


def _scale(low: float, high: float, start: float, stop: float, *, log: bool = False) -> Scale:
    if log:
        a, b = math.log(low), math.log(high)
        return lambda v: start + (math.log(v) - a) / (b - a) * (stop - start)
    return lambda v: start + (v - low) / (high - low) * (stop - start)


def _ticks(span: tuple[float, float], log: bool) -> list[float]:
    if not log:
        return nice(*span)
    found = decades(*span)
    # Where the span holds hardly a power of ten, round numbers say more.
    return found if len(found) > 1 else nice(*span, 4)


def _x_axis(span: tuple[float, float], across: Scale, name: str, *, log: bool = False) -> list[str]:
    y = HEIGHT - BOTTOM
    ticks = [f'<line class="axis" x1="{across(t):.1f}" x2="{across(t):.1f}" y1="{y}" y2="{y + 4}"/>'
             f'<text class="tick" x="{across(t):.1f}" y="{y + 16}" text-anchor="middle">{number(t)}</text>' for t in _ticks(span, log)]
    return [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>', *ticks,
            f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(name)}</text>']


def _y_axis(span: tuple[float, float], up: Scale, name: str, *, log: bool = False, percent: bool = False) -> list[str]:
    ticks = [t for t in _ticks(span, log) if span[0] <= t <= span[1]]
    shown = [f"{100 * t:.3g} %" if percent else number(t) for t in ticks]
    middle = (HEIGHT - BOTTOM + TOP) / 2
    return [*(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(t):.1f}" y2="{up(t):.1f}"/>'
              f'<text class="tick" x="{LEFT - 6}" y="{up(t) + 4:.1f}" text-anchor="end">{text}</text>' for t, text in zip(ticks, shown, strict=True)),
            f'<text class="name" x="12" y="{middle:.0f}" transform="rotate(-90 12 {middle:.0f})" text-anchor="middle">{escape(name)}</text>']


def _plot(shapes: Sequence[str], under: Sequence[str], behind: Sequence[str], *, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join([*behind, *shapes, *under])}</svg>'


def number(value: float) -> str:
    """Three digits: 12,300, 0.045, 1e-06."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
