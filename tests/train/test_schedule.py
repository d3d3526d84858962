"""The rate rises, holds and falls as its schedule says."""
from __future__ import annotations

import math

import pytest

from pellucid.train.recipe import OptimPart
from pellucid.train.schedule import share


def rates(steps: int, **facts: object) -> list[float]:
    return [share(step, steps, OptimPart(**facts)) for step in range(steps)]  # type: ignore[arg-type]


def test_a_warm_up_of_steps_or_of_a_share_rises_to_the_whole_rate() -> None:
    assert rates(100, warmup=4, schedule="constant")[:6] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(100, warmup=0.04, schedule="constant") == rates(100, warmup=4, schedule="constant")
    assert rates(3, warmup=10, schedule="constant") == pytest.approx([1 / 3, 2 / 3, 1])


def test_cosine_and_linear_fall_to_what_is_left_in_the_end() -> None:
    cosine = rates(10, warmup=0, schedule="cosine")
    assert cosine == pytest.approx([(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)])
    assert rates(10, warmup=0, schedule="linear", final=0.5) == pytest.approx([1 - 0.05 * i for i in range(10)])


def test_wsd_holds_and_then_falls() -> None:
    held = rates(10, warmup=0, schedule="wsd", decay=0.3)
    assert held == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_no_rate_is_above_the_highest_or_falls_to_nothing_before_the_end(schedule: str) -> None:
    for steps in (1, 2, 7, 50):
        assert all(0 < rate <= 1 for rate in rates(steps, warmup=0.1, schedule=schedule))
