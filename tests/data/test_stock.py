"""The order of the data is a function of seed and step alone; sets keep their shares; what is held out is never learned from."""
from __future__ import annotations

from collections import Counter

import pytest

from pellucid.data.example import Example
from pellucid.data.stock import Source, Statistics, Stock, held_out


def items(name: str, n: int) -> list[Example]:
    return [Example((1, 2, i), (False, True, True), f"{name}:{i}") for i in range(n)]


def origins(stock: Stock, steps: range) -> list[str]:
    return [item.origin for step in steps for item in stock.step(step)]


def test_an_epoch_has_every_item_once_in_another_order_each_time() -> None:
    stock = Stock([Source("a", items("a", 12))], batch=4, seed=3)
    first, second = origins(stock, range(3)), origins(stock, range(3, 6))
    assert sorted(first) == sorted(second) == sorted(item.origin for item in items("a", 12))
    assert first != second
    assert (stock.n_epoch, stock.steps(2)) == (12, 6)
    assert origins(Stock([Source("a", items("a", 12))], batch=4, seed=3, shuffle=False), range(3)) == [f"a:{i}" for i in range(12)]


def test_a_step_is_the_same_whichever_was_asked_for_before() -> None:
    sets = [Source("a", items("a", 7), 1), Source("b", items("b", 5), 2)]
    whole = [[item.origin for item in Stock(sets, batch=3, seed=1).step(n)] for n in range(20)]
    late = Stock(sets, batch=3, seed=1)
    assert [item.origin for item in late.step(17)] == whole[17]
    assert [item.origin for item in late.step(2)] == whole[2]
    assert [item.origin for item in Stock(sets, batch=3, seed=2).step(5)] != whole[5]


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (5, 2)])
def test_sets_keep_their_shares_at_every_step(weights: tuple[int, int]) -> None:
    stock = Stock([Source(name, items(name, 50), weight) for name, weight in zip("ab", weights, strict=True)], batch=sum(weights), seed=0)
    for step in range(8):
        assert Counter(item.origin[0] for item in stock.step(step)) == dict(zip("ab", weights, strict=True))


def test_an_epoch_of_several_sets_ends_when_all_have_been_seen() -> None:
    stock = Stock([Source("a", items("a", 10), 1), Source("b", items("b", 40), 1)], batch=8, seed=0)
    assert stock.n_epoch == 80
    assert {o for o in origins(stock, range(10)) if o[0] == "b"} == {f"b:{i}" for i in range(40)}


def test_what_is_held_out_is_the_same_for_a_seed_and_shares_no_row() -> None:
    all_items = [*items("a", 20), *items("a", 5)]  # rows of several items
    learn, apart = held_out(all_items, 6, seed=4)
    assert held_out(all_items, 6, seed=4) == (learn, apart)
    assert len(apart) >= 6
    assert not {i.origin for i in learn} & {i.origin for i in apart}
    assert len(learn) + len(apart) == len(all_items)
    assert held_out(all_items, 0, seed=4) == (all_items, [])


def test_rows_that_are_the_same_or_answer_otherwise_are_told() -> None:
    rows = [Example((1, 2, 3), (False, False, True), "r:1"), Example((1, 2, 3), (False, False, True), "r:2"), Example((1, 2, 4), (False, False, True), "r:3")]
    told = Statistics.of(rows)
    assert (told.n_items, told.n_tokens, told.n_learned, told.lengths) == (3, 9, 3, (3, 3, 3))
    assert told.duplicates == (("r:1", "r:2"),)
    assert told.conflicting == (("r:1", "r:3"),)
