"""How the learning rate moves over a run, as a share of its highest."""
from __future__ import annotations

import math

from pellucid.train.recipe import OptimPart


def share(step: int, steps: int, optim: OptimPart) -> float:
    """Of the highest rate at a step, counted from 0, of so many. The rate rises linearly through the warm-up, then follows its schedule.

    wsd holds it and lets it fall in the last part: https://arxiv.org/abs/2404.06395, section 4.2; linearly, as https://arxiv.org/abs/2405.18392 found best.
    """
    warm = warmup_steps(steps, optim)
    if step < warm:
        return (step + 1) / warm
    at = (step - warm) / max(1, steps - warm)  # 0 after the warm-up; the last step is one short of 1
    match optim.schedule:
        case "constant":
            left = 1.0
        case "linear":
            left = 1 - at
        case "cosine":
            left = (1 + math.cos(math.pi * at)) / 2
        case "wsd":
            falling = round(optim.decay * steps)
            left = 1.0 if step < steps - falling else (steps - step) / (falling + 1)
    return optim.final + (1 - optim.final) * left


def warmup_steps(steps: int, optim: OptimPart) -> int:
    """At least 1 is steps, below it a share of all."""
    return min(steps, round(optim.warmup if optim.warmup >= 1 else optim.warmup * steps))
