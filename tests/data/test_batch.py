"""Rows lie one after another, and a target is the next token of the same row."""
from __future__ import annotations

import pytest
import torch

from pellucid.data.batch import IGNORED, Batch, micro
from pellucid.data.example import Comparison, Example, Verdict, n_tokens


def example(*ids: int, learned: str) -> Example:
    return Example(ids, tuple(flag == "x" for flag in learned), "test:1")


def test_a_target_is_the_next_token_of_its_row_where_that_is_learned() -> None:
    batch = Batch.of([example(5, 6, 7, learned=".xx"), example(8, 9, learned=".."), example(3, learned=".")])
    assert batch.tokens_T.tolist() == [5, 6, 7, 8, 9, 3]
    assert batch.target_T.tolist() == [6, 7, IGNORED, IGNORED, IGNORED, IGNORED]
    assert batch.lengths == (3, 2, 1)
    assert batch.tokens_T.dtype == batch.target_T.dtype == torch.int64


def test_a_comparison_is_two_rows_and_a_verdict_one() -> None:
    a, b = example(1, 2, learned=".x"), example(1, 3, 4, learned=".xx")
    batch = Batch.of([Comparison(a, b, "t"), Verdict(b, True, "t")])
    assert batch.lengths == (2, 3, 3)
    assert n_tokens(batch.items[0]) == 5


def test_parts_hold_what_fits_and_keep_the_order() -> None:
    items = [example(*range(n), learned="." * n) for n in (3, 3, 5, 9, 1)]
    parts = micro(items, 6)
    assert [[len(item.ids) for item in part] for part in parts] == [[3, 3], [5], [9], [1]]
    assert [item for part in parts for item in part] == items


@pytest.mark.parametrize(("ids", "learned"), [((), ()), ((1,), (True,)), ((1, 2), (False,))])
def test_an_example_whose_flags_cannot_be_is_none(ids: tuple[int, ...], learned: tuple[bool, ...]) -> None:
    with pytest.raises(ValueError, match="test:1"):
        Example(ids, learned, "test:1")
