"""Intervals hold what they say, and closed forms come out."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pellucid.audit.intervals import LEAST_BLOCK, MOST_BLOCKS, Interval, Resampled


def test_a_constant_is_known_exactly() -> None:
    draws = Resampled(2000)
    assert draws.mean(torch.full((2000,), 0.25)) == Interval(0.25, 0.25, 0.25)
    assert draws.percentile(torch.full((2000,), 0.25), 0.99) == Interval(0.25, 0.25, 0.25)


def test_the_interval_of_independent_tokens_is_the_normal_one() -> None:
    """Of a mean of n: 1.96 standard deviations, over the root of n, to either side."""
    n = 20_000
    found = Resampled(n, seed=1).mean(3 + 2 * torch.randn(n, generator=torch.Generator().manual_seed(0)))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 2 / math.sqrt(n), rel=0.2)


def test_an_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    """Of tokens that come in stretches of like ones, which is where an interval by single tokens would be too short."""
    n, trials, held, naive = 3_000, 200, 0, 0
    noise = torch.Generator().manual_seed(0)
    for trial in range(trials):
        values = torch.randn(n // 20, generator=noise).repeat_interleave(20) + 0.5 * torch.randn(n, generator=noise) + 7
        found = Resampled(n, seed=trial, draws=400).mean(values)
        held += found.low <= 7 <= found.high
        naive += abs(values.mean().item() - 7) <= 1.96 * values.std().item() / math.sqrt(n)
    assert 0.89 <= held / trials <= 0.98
    assert naive / trials < 0.6


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_pass() -> None:
    values = torch.randn(4_321, generator=torch.Generator().manual_seed(0)).exp().double()
    for share in (0.5, 0.9, 0.99):
        found = Resampled(len(values)).percentile(values, share)
        assert found.value == np.quantile(values.numpy(), share, method="inverted_cdf")
        assert found.low < found.value < found.high


def test_a_percentile_is_drawn_as_sorting_what_was_drawn_would_give_it() -> None:
    values = torch.randn(700, generator=torch.Generator().manual_seed(0)).double()
    draws = Resampled(700, seed=5, draws=40)
    expected = []
    for times in draws._times.long().tolist():
        drawn = np.concatenate([np.tile(values[draws.of_token == block].numpy(), n) for block, n in enumerate(times)])
        expected.append(np.quantile(drawn, 0.9, method="inverted_cdf"))
    low, high = np.quantile(expected, [0.025, 0.975])
    found = draws.percentile(values, 0.9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios() -> None:
    above, below = torch.tensor([1.0, 5.0] * 64), torch.tensor([1.0, 1.0] * 64)
    assert Resampled(128).ratio(above, below * 2).value == 1.5


def test_blocks_are_long_where_there_is_much_text_and_the_rest_belongs_to_the_last() -> None:
    assert (Resampled(1_100).block, Resampled(1_100).n_blocks) == (LEAST_BLOCK, 17)
    assert Resampled(1_100).of_token[-1] == 16
    assert Resampled(100_000).n_blocks <= MOST_BLOCKS
    assert Resampled(2_000).shown == "95% intervals from 1,000 resamplings of 31 blocks of 64 tokens, seed 0"


def test_a_seed_draws_the_same_blocks() -> None:
    values = torch.randn(2_000, generator=torch.Generator().manual_seed(0))
    assert Resampled(2_000, seed=3).mean(values) == Resampled(2_000, seed=3).mean(values) != Resampled(2_000, seed=4).mean(values)
