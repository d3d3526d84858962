"""The books of a cache: what rows share, what they hold, what waits for whom, how memory is shared out. No decoder computes here."""
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.engine.group import PAGE
from pellucid.engine.pages import Names, PagedCache, chain
from pellucid.errors import OutOfMemoryBudget
from pellucid.spec import Attention, DecoderSpec, Dynamic, FeedForward, Layer, Norm, Rope

FULL, WINDOW, CHUNK, LONG = {}, {"window": 40}, {"chunk": 48}, {"chunk": 80}
STEP = 64
BYTES = PAGE * 2 * 3 * 4 * 4  # of a page of one layer: keys and values, 3 heads of 4 channels, float32


def spec(*layers: dict, n_ctx: int = 200, scaling: Dynamic | None = None) -> DecoderSpec:
    rope = Rope(theta=10_000.0, d_rotary=4, scaling=scaling)
    mixers = [Attention(n_heads=6, n_kv_heads=3, d_head=4, scale=0.5, rope=rope, **how) for how in layers]
    return DecoderSpec(family="llama", n_vocab=61, n_ctx=n_ctx, d_model=24, layers=tuple(Layer(mixer=m, mlp=FeedForward(d_ff=32)) for m in mixers),
                       norm=Norm(eps=1e-5))


def cache(*layers: dict, n_pages: int = 12, max_rows: int = 8, **how) -> PagedCache:
    """With so many pages in every group, where no window lets it do with less."""
    return PagedCache(spec(*(layers or (FULL,)), **how), n_bytes=n_pages * len(layers or (FULL,)) * BYTES, max_rows=max_rows, step_tokens=STEP,
                      dtype=torch.float32)


def computed(pages: PagedCache, ids: list[int], *, end: int | None = None, reuse: int | None = None) -> int:
    """A row of these ids, computed in steps."""
    slot = pages.open(ids, len(ids) if end is None else end, reuse=reuse)
    assert slot is not None
    goes_on(pages, slot, ids)
    return slot


def goes_on(pages: PagedCache, slot: int, ids: list[int]) -> None:
    while pages.lengths[slot] < len(ids):
        n = min(len(ids), pages.lengths[slot] + STEP)
        assert pages.reserve(slot, n)
        pages.settle(slot, ids, n)


def nobody_holds_any(pages: PagedCache) -> bool:
    return all(group.users == [0] * group.n_pages and group.n_available == group.n_pages for group in pages.groups) and not pages._coming


IDS = [3 + i % 7 for i in range(150)]  # 4 full pages and 22 tokens


def test_layers_that_see_equally_far_are_one_group():
    pages = cache(FULL, WINDOW, FULL, CHUNK, WINDOW)
    assert [(list(g.layers), g.window, g.chunk, g.bytes_per_page // BYTES) for g in pages.groups] == [
        ([0, 2], None, None, 2), ([1, 4], 40, None, 2), ([3], None, 48, 1)]


def test_names_are_of_everything_up_to_a_pages_end():
    names = chain(b"", IDS)
    assert len(names) == 4 == len(set(names))
    assert chain(b"", IDS[:-1])[:4] == names == chain(b"", IDS, names[:2])
    other = [*IDS[:33], 60, *IDS[34:]]
    assert [a == b for a, b in zip(chain(b"", other), names, strict=True)] == [True, False, False, False]
    assert not set(chain(b"other turns", IDS)) & set(names)
    kept = Names()
    assert kept.of(b"", IDS) == names
    assert kept.of(b"", IDS[:70]) == names[:2]
    assert kept.of(b"t", IDS) == chain(b"t", IDS)


def test_a_row_begins_with_the_pages_of_one_that_began_alike():
    pages = cache()
    first = computed(pages, IDS)
    table = pages._rows[first].tables[0]
    second = pages.open([*IDS[:100], 50, 51], 102)
    assert (pages.lengths[second], pages._rows[second].tables[0]) == (96, table[:3])
    assert pages.groups[0].users[: len(table)] == [2, 2, 2, 1, 1]
    pages.close(first)
    pages.close(second)
    assert nobody_holds_any(pages)


@pytest.mark.parametrize(("n_ids", "reuse", "taken"), [(150, None, 128), (129, None, 128), (128, None, 96), (150, 127, 96), (150, 128, 128), (150, 0, 0),
                                                    (31, None, 0)])
def test_the_last_token_is_computed_anew_and_no_more_is_taken_over_than_asked(n_ids, reuse, taken):
    pages = cache()
    pages.close(computed(pages, IDS))
    assert pages.lengths[pages.open(IDS[:n_ids], n_ids, reuse=reuse)] == taken


def test_pages_are_reserved_all_or_none():
    pages = cache(FULL, WINDOW, n_pages=5)
    slot = pages.open([1] * 10, 200)
    assert pages.reserve(slot, 33)
    assert [len(table) for table in pages._rows[slot].tables] == [2, 2]
    assert pages.reserve(slot, 64)  # has them already
    assert not pages.reserve(slot, 5 * PAGE + 1)
    assert not pages.reserve(slot, 5 * PAGE, spare=1)
    assert [group.n_available for group in pages.groups] == [3, 3]
    assert pages.reserve(slot, 64, spare=99)  # wants nothing
    assert pages.reserve(slot, 5 * PAGE)
    assert [group.n_available for group in pages.groups] == [0, 0]


def test_pages_of_a_row_lie_one_after_another():
    pages = cache()
    a, b = pages.open([1] * 40, 200), pages.open([2] * 40, 200)
    for slot in (a, b):
        assert pages.reserve(slot, 2 * PAGE)
    pages.close(a)
    assert pages.reserve(b, 5 * PAGE)
    assert pages._rows[b].tables[0] == [2, 3, 4, 5, 6]


def test_windows_and_chunks_give_back_what_no_later_query_sees():
    pages = cache(FULL, WINDOW, CHUNK)
    slot = pages.open(IDS, 200)
    for length, first in [(32, [0, 0, 0]), (64, [0, 0, 1]), (95, [0, 0, 1]), (96, [0, 1, 3]), (128, [0, 2, 3]), (150, [0, 2, 3])]:
        assert pages.reserve(slot, length)
        pages.settle(slot, IDS, length)
        row = pages._rows[slot]
        # A window of 40 sees from length - 39 on, where the length is rounded down to a page; chunks of 48 begin at 0, 48, 96 and 144.
        assert row.first == first
        assert [at + len(table) for at, table in zip(row.first, row.tables, strict=True)] == [-(-length // PAGE)] * 3
    pages.close(slot)
    assert nobody_holds_any(pages)


@pytest.mark.parametrize(("how", "lost", "taken"), [
    (WINDOW, [], 4), (WINDOW, [0], 4), (WINDOW, [0, 1], 4), (WINDOW, [2], 2), (WINDOW, [3], 3), (WINDOW, [1, 3], 1), (WINDOW, [0, 1, 2, 3], 0),
    (LONG, [], 4), (LONG, [0, 1], 4), (LONG, [3], 3), (LONG, [2], 2), (LONG, [0, 3], 3), (LONG, [1, 2], 1), (LONG, [0, 2], 0), (FULL, [2], 2), (FULL, [0], 0)])
def test_a_prefix_is_known_where_every_group_has_what_comes_after_it_sees(how, lost, taken):
    """Four pages were computed and some are lost. Before a page, a window of 40 sees two others; a second chunk of 80 begins inside of page 2."""
    pages = cache(FULL, how)
    names = chain(b"", IDS)
    pages.close(computed(pages, IDS))
    group = pages.groups[-1]
    for i in lost:
        group.forget_name(group.named[names[i]])
    assert pages._known(names) == taken


def test_who_comes_while_the_beginning_is_computed_waits_for_it():
    pages = cache()
    first = pages.open(IDS, 150)
    assert pages.open(IDS, 150) is None
    assert pages.open([9] * 40, 40) is not None  # begins otherwise
    assert pages.reserve(first, 64)
    pages.settle(first, IDS, 64)
    assert pages.open([*IDS[:64], 9, 9], 66) is not None  # all that it shares is there
    assert pages.open(IDS, 150) is None  # two pages more are coming
    goes_on(pages, first, IDS)
    assert pages.lengths[pages.open(IDS, 150)] == 128


def test_nobody_waits_for_one_that_gave_up():
    pages = cache()
    first = pages.open(IDS, 150)
    assert pages.reserve(first, 64)
    pages.settle(first, IDS, 64)
    assert pages.open(IDS, 150) is None
    pages.close(first)
    second = pages.open(IDS, 150)
    assert pages.lengths[second] == 64
    assert pages.open(IDS, 150) is None  # now for this one
    pages.close(second)
    assert not pages._coming


def test_one_that_takes_nothing_over_waits_for_nobody_and_is_waited_for_by_nobody():
    pages = cache()
    first = pages.open(IDS, 150)
    alone = pages.open(IDS, 150, reuse=0)
    assert alone is not None
    pages.close(alone)
    assert pages.open(IDS, 150) is None  # the first one still computes it
    alone = pages.open(IDS, 150, reuse=0)
    pages.close(first)
    second = pages.open(IDS, 150)
    assert second is not None
    for slot in (alone, second):
        goes_on(pages, slot, IDS)
    assert len(pages.groups[0].named) == 4  # whoever was first
    pages.close(alone)
    pages.close(second)
    assert nobody_holds_any(pages)


def test_the_end_of_a_prefix_goes_before_its_beginning_and_old_ones_before_new_ones():
    pages = cache(n_pages=8)
    other = [40 + i % 5 for i in range(100)]
    for ids in (IDS[:100], other):
        pages.close(computed(pages, ids))  # 3 named pages each, and 2 are free
    taker = pages.open([1] * 10, 200)
    for n, left, others_left in [(3, 2, 3), (4, 1, 3), (5, 0, 3), (6, 0, 2)]:
        assert pages.reserve(taker, n * PAGE)
        assert (pages._known(chain(b"", IDS[:100])), pages._known(chain(b"", other))) == (left, others_left)


def test_what_is_used_again_is_the_youngest():
    pages = cache(n_pages=8)
    other = [40 + i % 5 for i in range(100)]
    for ids in (IDS[:100], other, IDS[:100]):
        pages.close(computed(pages, ids))
    assert pages.reserve(pages.open([1] * 10, 200), 5 * PAGE)
    assert (pages._known(chain(b"", IDS[:100])), pages._known(chain(b"", other))) == (3, 0)


def test_what_is_forgotten_is_not_taken_over_and_rows_that_are_open_go_on():
    pages = cache()
    pages.close(computed(pages, IDS))
    row = pages.open(IDS, 150)
    pages.forget()
    assert pages.lengths[row] == 128
    goes_on(pages, row, IDS)
    pages.close(row)
    pages.forget()
    assert pages.lengths[pages.open(IDS, 150)] == 0


def test_what_is_scrubbed_is_zero_and_what_others_use_stays():
    pages = cache(FULL, WINDOW)
    pages.close(computed(pages, IDS[:64]))
    innocent = pages.open(IDS[:70], 200)
    faulty = computed(pages, IDS)
    for layer in (0, 1):
        for pool in pages.pools[layer]:
            pool.fill_(math.nan)
    tables = [(list(table), list(pages._rows[innocent].tables[g])) for g, table in enumerate(pages._rows[faulty].tables)]
    pages.close(faulty, scrub=True)
    for (held, shared), layer in zip(tables, (0, 1), strict=True):
        own = [page for page in held if page not in shared]
        assert own
        for pool in pages.pools[layer]:
            assert not pool[own].any()
            assert pool[shared].isnan().all()
    assert pages._known(chain(b"", IDS)) == 2  # of the others'


def test_a_row_that_would_turn_otherwise_is_opened_anew():
    pages = cache(scaling=Dynamic(original=64, factor=2.0))
    slot = computed(pages, IDS[:60], end=90)
    assert pages.planned_lengths([slot], [1]) == [60]
    assert pages.replan(slot, 64, 90)
    assert pages.planned_lengths([slot], [1]) == [64]
    assert pages.replan(slot, 62, 90)
    assert pages.planned_lengths([slot], [1]) == [64]  # drafts that were wrong: what was computed was planned for more
    assert not pages.replan(slot, 65, 90)
    assert pages.planned_lengths([slot], [1]) == [64]
    pages.close(slot)
    longer = pages.open(IDS[:70], 90)
    assert pages.lengths[longer] == 0  # the page that was named turns otherwise
    assert pages.planned_lengths([longer], [1]) == [90]
    assert pages.replan(longer, 90, 90)
    goes_on(pages, longer, IDS[:70])
    assert pages.lengths[pages.open(IDS[:70], 90)] == 64
    assert pages.lengths[pages.open(IDS[:70], 91)] == 0  # turns by its own end
    plain = cache()
    slot = plain.open(IDS[:60], 90)
    assert plain.replan(slot, 150, 190)


@pytest.mark.parametrize(("layers", "n_pages", "capacity"), [
    ([FULL], 3, 96), ([FULL], 6, 192), ([FULL], 7, 200), ([FULL, WINDOW], 4, 128),
    ([WINDOW], 5, 160), ([WINDOW], 6, 200),  # 40 + 64 tokens lie in 6 pages at most
    ([CHUNK], 5, 160), ([CHUNK], 6, 200)])
def test_the_longest_row_is_what_the_pages_and_the_context_hold(layers, n_pages, capacity):
    pages = cache(*layers, n_pages=n_pages)
    assert [group.n_pages for group in pages.groups] == [n_pages] * len(layers)
    assert pages.capacity(STEP) == capacity
    slot = pages.open([1], capacity)
    goes_on(pages, slot, [1] * capacity)
    assert pages.lengths[slot] == capacity


@settings(max_examples=60, deadline=None)
@given(n_bytes=st.integers(0, 200 * BYTES), max_rows=st.integers(1, 4), layers=st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=4))
def test_a_budget_is_shared_out_as_far_as_it_goes_and_no_further(n_bytes, max_rows, layers):
    whole = spec(*([FULL, WINDOW, CHUNK][i] for i in layers))
    counts = {i: layers.count(i) for i in dict.fromkeys(layers)}  # layers of each group
    most = {0: math.inf, 1: 6 * max_rows, 2: 6 * max_rows}  # ceil((40 + 64) / 32) + 2, ceil((48 + 64) / 32) + 2

    def cost(n: int) -> int:
        return sum(min(n, most[i]) * count * BYTES for i, count in counts.items())

    n = max(n for n in range(max_rows * 7 + 1) if cost(n) <= n_bytes)  # 7 pages are a whole context
    if n == 0:
        with pytest.raises(OutOfMemoryBudget, match=r"one page of 32 tokens takes .* Give it more") as raised:
            PagedCache(whole, n_bytes=n_bytes, max_rows=max_rows, step_tokens=STEP, dtype=torch.float32)
        assert (raised.value.needed_bytes, raised.value.available_bytes) == (cost(1), n_bytes)
    else:
        pages = PagedCache(whole, n_bytes=n_bytes, max_rows=max_rows, step_tokens=STEP, dtype=torch.float32)
        assert [group.n_pages for group in pages.groups] == [min(n, most[i]) for i in counts]
        assert pages.n_bytes == cost(n) <= n_bytes
        assert sum(pool.nbytes for pools in pages.pools for pool in pools) == pages.n_bytes


def test_int8_keeps_a_byte_a_number_and_a_scale_a_head():
    pages = PagedCache(spec(FULL), n_bytes=10**6, max_rows=1, step_tokens=STEP, dtype=torch.float32, store="int8")
    assert pages.groups[0].bytes_per_page == PAGE * 2 * 3 * (4 + 4)
    assert sum(pool.nbytes for pool in pages.pools[0]) == pages.n_bytes == 7 * PAGE * 2 * 3 * (4 + 4)


def test_a_window_inside_chunks_keeps_whole_chunks():
    pages = cache({"window": 10, "chunk": 160}, n_pages=40, max_rows=1)
    goes_on(pages, pages.open([1] * 200, 200, reuse=0), [1] * 200)


def test_what_is_forgotten_while_it_is_used_is_not_taken_over_either():
    pages = cache()
    slot = computed(pages, IDS)
    pages.forget()
    fresh = pages.open(IDS, 150)
    assert pages.lengths[fresh] == 0
    goes_on(pages, slot, [*IDS, *[9] * 20])  # nor what it goes on to compute
    pages.close(slot)
    pages.close(fresh)
    assert pages.lengths[pages.open([*IDS, *[9] * 20], 190)] == 0
