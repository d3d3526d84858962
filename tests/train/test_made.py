"""Rows that a Python file makes are written down, and read like any others."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pellucid.errors import BadData, BadRequest
from pellucid.train.made import schema_of, written
from pellucid.train.recipe import Recipe, read_recipe

ROWS = '''
import random
SCHEMA = {"type": "object"}
def rows(split, n, seed):
    draw = random.Random(f"{split} {seed}")
    for i in range(n):
        yield {"prompt": f"{split} {i}", "completion": str(draw.random())}
'''


def recipe(folder: Path, made: str, **facts: Any) -> Recipe:
    return read_recipe({"model": {"path": "m"}, "out": {"folder": str(folder / "out")}, "data": {
        "sources": [{"made": made, "n": 5}], "held_out": {"made": made, "split": "test", "n": 3}}, **facts})


def test_made_rows_become_files_that_are_the_same_for_a_seed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ROWS)
    made = str(tmp_path / "mine.py")
    plain = written(recipe(tmp_path, made))
    assert plain.data.sources[0].made is None
    assert plain.data.sources[0].path == str(tmp_path / "out/rows/mine.train.jsonl")
    assert plain.data.held_out == str(tmp_path / "out/rows/mine.test.jsonl")
    first = (tmp_path / "out/rows/mine.train.jsonl").read_text()
    assert [json.loads(line)["prompt"] for line in first.splitlines()] == [f"train {i}" for i in range(5)]
    written(recipe(tmp_path, made))
    assert (tmp_path / "out/rows/mine.train.jsonl").read_text() == first
    written(recipe(tmp_path, made, seed=1))
    assert (tmp_path / "out/rows/mine.train.jsonl").read_text() != first
    assert sorted(file.name for file in (tmp_path / "out/rows").iterdir()) == ["mine.test.jsonl", "mine.train.jsonl"]


@pytest.mark.parametrize(("text", "words"), [
    ("x = 1", r"makes no rows: it needs a function rows\(split, n, seed\)"),
    ("1 / 0", "cannot be run: ZeroDivisionError"),
    ("rows = lambda split, n, seed: [1] * n", "row 1 of .* is 1, and an object"),
    ("rows = lambda split, n, seed: [{}] * (n - 1)", "made 4 rows of the 5 that the recipe asks for"),
])
def test_a_file_that_makes_no_such_rows_is_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises((BadData, BadRequest), match=words):
        written(recipe(tmp_path, str(tmp_path / "mine.py")))
    assert not list((tmp_path / "out/rows").iterdir())  # nothing half made stays


def test_what_is_not_there_is_told_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"no file at .*none\.py"):
        written(recipe(tmp_path, str(tmp_path / "none.py")))
    with pytest.raises(BadRequest, match="Did you mean niche_rows"):
        written(recipe(tmp_path, "niche_row"))


def test_a_schema_is_a_file_or_what_makes_rows_says(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ROWS)
    (tmp_path / "s.json").write_text('{"type": "string"}')
    (tmp_path / "list.json").write_text("[1]")
    assert schema_of(str(tmp_path / "mine.py")) == {"type": "object"}
    assert schema_of(str(tmp_path / "s.json")) == {"type": "string"}
    assert "anyOf" in schema_of("niche_rows")
    for bad, words in (("none.json", "no JSON Schema can be read"), ("list.json", "holds no JSON Schema")):
        with pytest.raises(BadRequest, match=words):
            schema_of(str(tmp_path / bad))
