"""Rows that are the same or contradict each other are told; the numbers of a set are what one counts by hand."""
from __future__ import annotations

import pytest

from pellucid.data.example import Comparison, Example, Item, Verdict
from pellucid.data.statistics import Statistics


def answer(last: int, origin: str = "r:1", n: int = 3) -> Example:
    return Example((*range(1, n), last), (*(False,) * (n - 1), True), origin)


def test_rows_that_are_the_same_or_answer_otherwise_are_told() -> None:
    told = Statistics.of([answer(3, "r:1"), answer(3, "r:2"), answer(4, "r:3"), answer(4, "r:4", n=6)])
    assert (told.n_items, told.n_tokens, told.n_learned, list(told.lengths)) == (4, 15, 4, [3, 3, 3, 6])
    assert (told.duplicates, told.n_duplicates) == ((("r:1", "r:2"),), 1)
    assert (told.conflicting, told.n_conflicting) == ((("r:1", "r:3"),), 1)


@pytest.mark.parametrize(("first", "second", "against"), [
    (Comparison(answer(3), answer(4), "r:1"), Comparison(answer(4, "r:2"), answer(3, "r:2"), "r:2"), True),
    (Comparison(answer(3), answer(4), "r:1"), Comparison(answer(3, "r:2"), answer(5, "r:2"), "r:2"), False),  # a ranking's other pair
    (Verdict(answer(3), True, "r:1"), Verdict(answer(3, "r:2"), False, "r:2"), True),
    (Verdict(answer(3), True, "r:1"), Verdict(answer(4, "r:2"), False, "r:2"), False),
    (Example((1, 2, 3), (False, True, True), "r:1"), Example((1, 2, 4), (False, True, True), "r:2"), False),  # texts ask nothing
], ids=["turned round", "another pair", "another verdict", "another answer", "texts"])
def test_what_contradicts_a_row_depends_on_its_kind(first: Item, second: Item, against: bool) -> None:
    told = Statistics.of([first, second])
    assert (told.conflicting, told.duplicates) == ((("r:1", "r:2"),) if against else (), ())


def test_lengths_are_told_in_powers_of_two_and_by_shares() -> None:
    told = Statistics.of([answer(3, f"r:{n}", n) for n in (2, 2, 3, 4, 5, 8, 9, 100)])
    assert told.histogram() == [(2, 2), (4, 2), (8, 2), (16, 1), (128, 1)]
    assert (told.length_at(0), told.length_at(0.5), told.length_at(1)) == (2, 5, 100)
    plain = told.plain()
    assert (plain["tokens"], plain["learned"], plain["lengths"]["most"]) == (133, 8, 100)
    assert told.learned_share == 8 / 133
