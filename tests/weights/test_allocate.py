"""The best formats within a budget, held against every allocation there is."""
from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import BadRequest
from pellucid.weights.allocate import Choice, allocate, hull

CHOICES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 1000)), min_size=1, max_size=4).map(
    lambda pairs: [Choice(f"f{i}", n, d / 8) for i, (n, d) in enumerate(pairs)])


@settings(max_examples=150, deadline=None)
@given(st.lists(CHOICES, min_size=1, max_size=5), st.integers(0, 260))
def test_no_allocation_that_fits_is_below_the_bound_and_ours_fits(several: list[list[Choice]], budget: int) -> None:
    named = {f"t{i}": choices for i, choices in enumerate(several)}
    fitting = [found for found in itertools.product(*several) if sum(choice.n_bytes for choice in found) <= budget]
    if not fitting:
        with pytest.raises(BadRequest, match="no mix fits"):
            allocate(named, budget)
        return
    found = allocate(named, budget)
    best = min(sum(choice.damage for choice in each) for each in fitting)
    assert found.n_bytes <= budget
    assert found.bound <= best + 1e-9
    assert best <= found.damage + 1e-9
    # What a greedy step leaves unused is worth no more than one step.
    steps = [a.damage - b.damage for choices in several for a, b in itertools.pairwise(hull(choices))]
    assert found.damage - best <= max(steps, default=0) + 1e-9


def test_a_budget_that_ends_between_steps_is_used_exactly_best() -> None:
    """At every budget that the greedy steps themselves reach, nothing is better."""
    noise = random.Random(0)
    named = {f"t{i}": [Choice(f, n, noise.random() / n) for f, n in (("a", 2), ("b", 3), ("c", 5))] for i in range(5)}
    for budget in range(10, 26):
        found = allocate(named, budget)
        best = min(sum(c.damage for c in each) for each in itertools.product(*named.values()) if sum(c.n_bytes for c in each) <= budget)
        assert found.damage <= best * 1.15
        if found.damage == pytest.approx(found.bound):
            assert found.damage == pytest.approx(best)


def test_the_hull_keeps_what_no_mixture_beats() -> None:
    choices = [Choice("tiny", 1, 10.0), Choice("above the line", 2, 9.0), Choice("good", 3, 2.0), Choice("worse and larger", 4, 2.5), Choice("large", 9, 0.0)]
    assert [choice.format for choice in hull(choices)] == ["tiny", "good", "large"]


def test_what_is_left_goes_to_a_choice_off_the_hull() -> None:
    named = {"t": [Choice("tiny", 1, 10.0), Choice("between", 2, 9.0), Choice("good", 3, 2.0)]}
    assert [allocate(named, n).chosen["t"].format for n in (1, 2, 3, 100)] == ["tiny", "between", "good", "good"]


def test_a_budget_nothing_fits_is_an_error_that_says_the_least() -> None:
    with pytest.raises(BadRequest, match=r"^no mix fits 6 bytes: with every matrix in its smallest format they are 7 bytes\. Give a larger --fit"):
        allocate({"a": [Choice("x", 3, 1.0)], "b": [Choice("y", 4, 1.0), Choice("z", 8, 0.0)]}, 6)
