"""The books of one group's pages: who uses which, which are named, which goes first when room is needed."""
from __future__ import annotations

import random

import pytest

from pellucid.engine.group import PAGE, Group


def furnished(n_pages: int, *, window: int | None = None, chunk: int | None = None) -> Group:
    group = Group([0], window, chunk, 100)
    group.furnish(n_pages)
    return group


def named(group: Group, *names: bytes) -> list[int]:
    """So many pages that are taken, named and given back."""
    pages = [group.take(None) for _ in names]
    for page, name in zip(pages, names, strict=True):
        group.name(page, name)
    for page in pages:
        group.give_back(page)
    return pages


def test_pages_follow_one_another_where_they_can_and_are_the_lowest_where_they_cannot():
    group = furnished(6)
    first = [group.take(None)]
    first.append(group.take(first[-1]))
    second = [group.take(None)]
    assert (first, second) == ([0, 1], [2])
    assert group.take(first[-1]) == 3  # 2 is taken
    group.give_back(1)
    assert group.take(0) == 1
    group.give_back(0)
    assert group.take(3) == 4  # what follows comes before what is lowest
    assert group.take(4) == 5
    assert group.take(5) == 0  # and nothing follows the last
    assert group.n_available == 0


def test_a_page_is_free_when_its_last_user_gives_it_back():
    group = furnished(2)
    page = group.take(None)
    group.name(page, b"x")
    group.share(page)
    assert group.users[page] == 2
    group.give_back(page)
    assert (group.users[page], page in group.idle, group.n_available) == (1, False, 1)
    group.give_back(page)
    assert (group.users[page], page in group.idle, group.n_available) == (0, True, 2)
    group.share(page)
    assert (group.users[page], page in group.idle, group.n_available) == (1, False, 1)


def test_the_longest_unused_page_goes_first_and_its_name_with_it():
    group = furnished(3)
    a, b, c = named(group, b"a", b"b", b"c")
    group.share(a)
    group.give_back(a)  # used again: now the youngest
    assert [group.take(None) for _ in range(3)] == [b, c, a]
    assert (group.named, group.names, list(group.idle)) == ({}, [None] * 3, [])


def test_free_pages_go_before_named_ones():
    group = furnished(4)
    [a] = named(group, b"a")
    assert a == 0
    assert [group.take(None) for _ in range(3)] == [1, 2, 3]
    assert group.named == {b"a": a}
    assert group.take(None) == a


def test_of_two_pages_that_hold_the_same_the_first_keeps_the_name():
    group = furnished(3)
    first, second = group.take(None), group.take(None)
    group.name(first, b"x")
    group.name(second, b"x")
    assert (group.named, group.names) == ({b"x": first}, [b"x", None, None])
    group.give_back(second)
    assert list(group.idle) == []  # nobody could find it
    group.give_back(first)
    assert list(group.idle) == [first]


def test_forgotten_pages_are_free_and_have_no_names():
    group = furnished(3)
    named(group, b"a", b"b")
    group.forget_idle()
    assert (group.named, group.names, list(group.idle), group.n_available) == ({}, [None] * 3, [], 3)
    assert [group.take(None) for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(("window", "chunk", "position", "first"), [
    (None, None, 1000, 0), (48, None, 0, 0), (48, None, 47, 0), (48, None, 48, 1), (48, None, 100, 53), (1, None, 7, 7),
    (None, 40, 39, 0), (None, 40, 40, 40), (None, 40, 119, 80)])
def test_what_a_query_and_all_later_ones_see_begins_at(window, chunk, position, first):
    assert furnished(1, window=window, chunk=chunk).first_seen(position) == first


@pytest.mark.parametrize(("window", "chunk"), [(1, None), (32, None), (33, None), (100, None), (None, 1), (None, 32), (None, 40), (None, 96)])
def test_no_row_holds_more_pages_than_one_row_may(window, chunk):
    """From what the next block sees to the end of the step, at every length and for every step."""
    group = furnished(1, window=window, chunk=chunk)
    for step in (1, 31, 32, 33, 100):
        most = max(-(-(length + step) // PAGE) - group.first_seen(length // PAGE * PAGE) // PAGE for length in range(400))
        assert most <= group.pages_of_one(step) <= most + 3
    assert furnished(1).pages_of_one(5) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_books_balance_whatever_happens(seed):
    rng, group, held = random.Random(seed), furnished(7), []
    for i in range(3000):
        named_pages = [page for page in range(7) if group.names[page] is not None]
        what = rng.choice(["take", "give", "name", "share", "forget" if rng.random() < 0.02 else "give"])
        if what == "take" and group.n_available:
            held.append(group.take(rng.choice([None, *held])))
        elif what == "give" and held:
            group.give_back(held.pop(rng.randrange(len(held))))
        elif what == "name" and (plain := [page for page in held if group.names[page] is None]):
            group.name(rng.choice(plain), b"%d" % (i % 11))
        elif what == "share" and named_pages:
            held.append(rng.choice(named_pages))
            group.share(held[-1])
        elif what == "forget":
            group.forget_idle()
        assert group.users == [held.count(page) for page in range(7)]
        assert group.n_available == 7 - len(set(held))
        assert {page: name for name, page in group.named.items()} == {page: name for page, name in enumerate(group.names) if name is not None}
        assert set(group.idle) == {page for page in range(7) if group.names[page] is not None and page not in held}
        assert len(group._lowest) <= 7  # a page is in it once at most
