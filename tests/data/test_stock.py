"""The order of the data is a function of seed and step alone; sets keep their shares; what is held out is never learned from."""
from __future__ import annotations

from collections import Counter

import pytest

from pellucid.data.example import Example
from pellucid.data.stock import Source, Stock, held_out


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


@pytest.mark.parametrize("begin", [1020, 5000])
def test_a_mixture_far_into_a_run_is_the_walk_from_its_beginning(begin: int) -> None:
    def made() -> Stock:
        return Stock([Source("a", items("a", 7), 0.3), Source("b", items("b", 5), 2.1), Source("c", items("c", 3), 1)], batch=10, seed=1)
    walked = made()
    whole = [walked.step(n) for n in range(begin // 10 + 3)]
    assert [made().step(n) for n in range(begin // 10, begin // 10 + 3)] == whole[-3:]
    shares = Counter(item.origin[0] for step in whole for item in step)
    assert {name: shares[name] / sum(shares.values()) for name in "abc"} == pytest.approx({"a": 0.3 / 3.4, "b": 2.1 / 3.4, "c": 1 / 3.4}, abs=2e-3)


def test_what_is_held_out_is_the_same_for_a_seed_and_shares_no_row() -> None:
    all_items = [item for item in items("a", 20) for _ in range(1 + (item.ids[-1] < 5))]  # rows of several items
    learn, apart = held_out(all_items, 6, seed=4)
    assert list(held_out(all_items, 6, seed=4)[1]) == list(apart)
    assert len(apart) >= 6
    assert not {i.origin for i in learn} & {i.origin for i in apart}
    assert len(learn) + len(apart) == len(all_items)
    assert [len(part) for part in held_out(all_items, 0, seed=4)] == [25, 0]


def test_rows_that_say_what_a_held_out_row_says_are_held_out_too() -> None:
    said = [Example((1, 2, i % 10), (False, True, True), f"r:{i}") for i in range(30)]
    for seed in range(5):
        learn, apart = held_out(said, 4, seed)
        assert not {item.ids for item in learn} & {item.ids for item in apart}
        assert len(apart) % 3 == 0
