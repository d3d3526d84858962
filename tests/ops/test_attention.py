"""Attention's own kernels: every variant over rows long enough for several softmaxes, and results that no company changes by a bit."""
from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid.ops.fused import Fused
from pellucid.ops.interface import Pages
from pellucid.ops.native import Native
from pellucid.ops.panels import native
from pellucid.ops.reference import Reference
from tests.test_ops import near, random

pytestmark = pytest.mark.native

N = 32
H, K, C, V = 6, 3, 18, 21  # no width is whole vectors of any processor
# queries, keys, tokens of the first page that are skipped: inside of a tile, at its borders, past one softmax and past several
ROWS = [(1, 1, 0), (1, 31, 1), (1, 256, 0), (3, 257, 5), (1, 700, 31), (40, 300, 3), (33, 33, 0)]
HOW = {"scale": 0.4, "window": None, "softcap": None}


WHOLE = (32, 48)  # of keys and values: whole vectors of every processor, which few queries read where they lie


def paged(rows: list[tuple[int, int, int]], dtype: torch.dtype = torch.float32, widths: tuple[int, int] = (C, V)) -> tuple[Tensor, Tensor, Tensor, Pages]:
    """Queries, pools and pages of such rows; pages in no order."""
    counts = [-(-(offset + keys) // N) for _, keys, offset in rows]
    order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(4)).tolist()
    tables = [tuple(order[stop - count : stop]) for count, stop in zip(counts, itertools.accumulate(counts), strict=True)]
    q_lengths, lengths, offsets = zip(*rows, strict=True)
    k, v = (random(len(order), N, K, width, dtype=dtype, seed=seed) for width, seed in zip(widths, (1, 2), strict=True))
    return random(sum(q_lengths), H, widths[0], dtype=dtype), k, v, Pages(N, tuple(tables), offsets, lengths, q_lengths)


@pytest.mark.parametrize("variant", native.variants() if native else [])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("widths", [(C, V), WHOLE], ids=str)
def test_long_rows_by_every_variant(variant: str, dtype: torch.dtype, widths: tuple[int, int]) -> None:
    q, k, v, pages = paged(ROWS, dtype, widths)
    sinks, slopes = random(H, seed=3), random(H, seed=5).abs() / 30
    for facts in ({}, {"window": 40}, {"window": 300}, {"chunk": 64}, {"softcap": 2.0}, {"sinks_H": sinks}, {"slopes_H": slopes},
                  {"window": 290, "softcap": 3.0, "sinks_H": sinks, "slopes_H": slopes}):
        how: dict[str, Any] = HOW | facts
        found, expected = Native(variant=variant).attend_pages(q, k, v, pages, **how), Reference().attend_pages(q.float(), k.float(), v.float(), pages, **how)
        near(found, expected, dtype, 2)


@pytest.mark.parametrize("variant", native.variants() if native else [])
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16], ids=str)
def test_keys_and_values_may_be_shorter_than_queries(variant: str, kept: torch.dtype) -> None:
    """What they mean is what counts: the same bits as of the same numbers in float32. By torch's kernels, too, to rounding."""
    q, k, v, pages = paged(ROWS)
    k, v = k.to(kept), v.to(kept)
    expected = Reference().attend_pages(q, k.float(), v.float(), pages, **HOW)
    found = Native(variant=variant).attend_pages(q, k, v, pages, **HOW)
    assert found.dtype == torch.float32
    assert torch.equal(found, Native(variant=variant).attend_pages(q, k.float(), v.float(), pages, **HOW))
    for ops in (Native(variant=variant), Fused(), Reference()):
        near(ops.attend_pages(q, k, v, pages, **HOW), expected, torch.float32, 2)
        singles = Pages(N, pages.tables[:3], pages.offsets[:3], pages.lengths[:3], (1, 1, 1))  # torch computes several decoding rows together
        near(ops.attend_pages(q[:3], k, v, singles, **HOW), expected[:3], torch.float32, 2)


@pytest.mark.parametrize("variant", native.variants() if native else [])
@pytest.mark.parametrize("facts", [{}, {"softcap": 2.0}, {"sinks_H": torch.zeros(H)}], ids=lambda facts: "-".join(facts) or "plain")
def test_a_key_that_is_no_number_is_seen_by_every_query_that_sees_it(variant: str, facts: dict[str, Any]) -> None:
    q, k, v, pages = paged([(5, 40, 3)])
    k[pages.tables[0][-1], (3 + 37) % N, 1, 2] = torch.nan  # key 37: the last three queries', of the second head of keys
    seen = Native(variant=variant).attend_pages(q, k, v, pages, **HOW | facts).isnan()
    expected = torch.zeros_like(seen)
    expected[2:, 2:4] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("variant", native.variants() if native else [])
@pytest.mark.parametrize("widths", [(C, V), WHOLE], ids=str)
def test_a_query_does_not_depend_on_its_company(variant: str, widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One query reads keys where they lie, and many turn them around first: the same bits."""
    ops, (q, k, v, pages) = Native(variant=variant), paged(ROWS, widths=widths)
    for facts in ({}, {"window": 270, "softcap": 2.0, "slopes_H": random(H).abs()}, {"sinks_H": random(H)}):
        whole = ops.attend_pages(q, k, v, pages, **HOW | facts)
        for n in (2, 5):
            monkeypatch.setattr("pellucid.ops.attention.n_threads", lambda n=n: n)
            assert torch.equal(ops.attend_pages(q, k, v, pages, **HOW | facts), whole)
        first = 0
        for table, offset, keys, queries in zip(pages.tables, pages.offsets, pages.lengths, pages.q_lengths, strict=True):
            for t in {0, queries // 2, queries - 1}:  # each alone, as if the row ended there
                alone = Pages(N, (table,), (offset,), (keys - queries + t + 1,), (1,))
                assert torch.equal(ops.attend_pages(q[first + t : first + t + 1], k, v, alone, **HOW | facts), whole[first + t : first + t + 1])
            first += queries


def test_keys_that_are_no_tokens_of_the_row_are_not_read() -> None:
    q, k, v, pages = paged(ROWS)
    expected = Native().attend_pages(q, k, v, pages, **HOW)
    seen = {(table[i // N], i % N) for table, offset, n in zip(pages.tables, pages.offsets, pages.lengths, strict=True) for i in range(offset, offset + n)}
    for page, place in itertools.product(range(len(k)), range(N)):
        if (page, place) not in seen:
            k[page, place] = v[page, place] = torch.nan
    assert torch.equal(Native().attend_pages(q, k, v, pages, **HOW), expected)


def test_what_does_not_go_together_is_refused_before_memory_is_read() -> None:
    q, k, v, pages = paged([(1, 40, 0)])
    ops = Native()
    for table in ((0,), (0, len(k)), (-1, 0)):
        with pytest.raises(ValueError, match="pages of 32 up to number"):
            ops.attend_pages(q, k, v, Pages(N, (table,), (0,), (40,), (1,)), **HOW)
    with pytest.raises(ValueError, match="1 queries, pages of 16 up to number"):
        ops.attend_pages(q, k, v, Pages(16, pages.tables, (0,), (20,), (1,)), **HOW)
    with pytest.raises(ValueError, match=r"queries \(1, 5, 18\) do not go with keys"):
        ops.attend_pages(q[:, :5], k, v, pages, **HOW)
    with pytest.raises(ValueError, match="sinks and slopes are one number for each of 6 heads"):
        ops.attend_pages(q, k, v, pages, sinks_H=torch.zeros(5), **HOW)
    with pytest.raises(ValueError, match="rows of 1 queries and 41 keys, and 1 and 40 are there"):
        ops.attend(q, k.flatten(0, 1)[:40], v.flatten(0, 1)[:40], q_lengths=[1], k_lengths=[41], **HOW)


def test_gradients_are_left_to_torch() -> None:
    q, k, v = random(4, H, C), random(4, K, C, seed=1), random(4, K, V, seed=2)
    q.requires_grad_()
    out = Native().attend(q, k, v, q_lengths=[4], k_lengths=[4], **HOW)
    out.sum().backward()
    assert q.grad is not None
    near(out.detach(), Native().attend(q.detach(), k, v, q_lengths=[4], k_lengths=[4], **HOW), torch.float32, 2)
