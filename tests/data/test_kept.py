"""Items come back as they were given, from memory or from disk, in any order and at little cost."""
from __future__ import annotations

import random
from pathlib import Path

import pytest

from pellucid.data.example import Comparison, Example, Item, Verdict
from pellucid.data.kept import Kept, Some, content


def some_items(n: int, seed: int = 0) -> list[Item]:
    draw = random.Random(seed)

    def example(origin: str) -> Example:
        ids = tuple(draw.randrange(1 << 20) for _ in range(draw.randrange(1, 40)))
        return Example(ids, (False, *(draw.random() < 0.5 for _ in ids[1:])), origin)
    out: list[Item] = []
    for i in range(n):
        origin = f"r\u00f6ws-{i}.jsonl:{i * 7}"
        kind = draw.randrange(3)
        out.append(example(origin) if kind == 0 else Comparison(example(origin), example(origin), origin) if kind == 1 else
                   Verdict(example(origin), draw.random() < 0.5, origin))
    return out


@pytest.mark.parametrize("in_memory", [1 << 20, 1000], ids=["in memory", "on disk"])
def test_items_come_back_as_they_were_given(in_memory: int, tmp_path: Path) -> None:
    given = some_items(200)
    kept = Kept(iter(given), tmp_path, in_memory)
    assert list(kept) == given
    assert [kept[i] for i in (199, 0, 57, -1)] == [given[i] for i in (199, 0, 57, -1)]
    assert kept[20:40:3] == given[20:40:3]
    assert isinstance(kept._bytes, bytes) == (in_memory > 1000)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    with pytest.raises(IndexError):
        kept[200]
    chosen = Some(kept, [3, 1, 50])
    assert (list(chosen), chosen[1:], len(chosen)) == ([given[3], given[1], given[50]], [given[1], given[50]], 3)


def test_content_is_all_but_the_origin() -> None:
    one, two = Example((1, 2), (False, True), "a:1"), Example((1, 2), (False, True), "b:22")
    assert content(one) == content(two)
    others = [Example((1, 3), (False, True), "a:1"), Example((1, 2), (False, False), "a:1"), Verdict(one, True, "a:1"), Verdict(one, False, "a:1"),
              Comparison(one, one, "a:1")]
    assert len({content(each) for each in [one, *others]}) == 6


def test_a_token_takes_little_more_than_four_bytes() -> None:
    kept = Kept([Example(tuple(range(1000)), (False, *(True,) * 999), "a:1")] * 50)
    assert len(kept._bytes) / 50_000 < 4.2
