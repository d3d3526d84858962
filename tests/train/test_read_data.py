"""A recipe's sets become items: of which none is learned from and held out, and files are told apart."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import pellucid
from pellucid.api import Model
from pellucid.cli._options import SHIPPED
from pellucid.errors import BadData
from pellucid.train.recipe import read_recipe
from pellucid.train.sft import NextToken
from pellucid.train.tuning import Data, read_data
from tests.hub.fixtures import hub
from tests.hub.server import Hub, Repo

__all__ = ["hub"]


@pytest.fixture(scope="module")
def shipped() -> Model:
    return pellucid.load(SHIPPED)


def rows(names: Sequence[str]) -> str:
    return "".join(json.dumps({"prompt": f"{name}:", "completion": f" the {name}"}) + "\n" for name in names)


def data_of(model: Model, sources: list[str], **facts: Any) -> Data:
    recipe = read_recipe({"model": {"path": SHIPPED}, "data": {"sources": [{"path": path} for path in sources], **facts}, "out": {"folder": "out"}})
    return read_data(recipe, model, NextToken())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_held_out_of_one_set_is_not_learned_from_another(shipped: Model, here: Path) -> None:
    names = [f"word {n}" for n in range(30)]
    (here / "a.jsonl").write_text(rows(names))
    (here / "b.jsonl").write_text(rows([*names, "else"]))
    data = data_of(shipped, ["a.jsonl", "b.jsonl"], held_out=20)
    apart = {item.ids for item in data.held_out}  # type: ignore[union-attr]
    assert len(data.held_out) >= 20
    assert not apart & {item.ids for source in data.stock.sources for item in source.items}  # type: ignore[union-attr]


def test_a_file_of_held_out_rows_that_are_learned_from_is_an_error(shipped: Model, here: Path) -> None:
    (here / "a.jsonl").write_text(rows(["one", "two", "three"]))
    (here / "test.jsonl").write_text(rows(["four", "two"]))
    with pytest.raises(BadData, match=r"1 rows of a.jsonl say what rows of data.held_out=test.jsonl say, first a.jsonl:2 and test.jsonl:2"):
        data_of(shipped, ["a.jsonl"], held_out="test.jsonl")
    (here / "test.jsonl").write_text(rows(["four", "five"]))
    data = data_of(shipped, ["a.jsonl"], held_out="test.jsonl")
    assert [item.origin for item in data.held_out] == ["test.jsonl:1", "test.jsonl:2"]
    assert data.learned.n_items == 3


def test_files_of_one_name_in_two_folders_are_both_recorded(shipped: Model, here: Path) -> None:
    for n, folder in enumerate("xy"):
        (here / folder).mkdir()
        (here / folder / "rows.jsonl").write_text(rows([f"row {n}"]))
    data = data_of(shipped, ["."])
    assert sorted(data.files) == ["data 0/x/rows.jsonl", "data 0/y/rows.jsonl"]
    assert len({file.sha256 for file in data.files.values()}) == 2


def test_a_set_of_the_hub_is_read_like_one_of_this_disk(shipped: Model, hub: Hub) -> None:
    hub.repos["datasets/acme/words"] = Repo({"README.md": b"# Words", "train.jsonl": rows(["one", "two"]).encode(), "test.jsonl": rows(["three"]).encode()})
    recipe = read_recipe({"model": {"path": SHIPPED}, "data": {"sources": [{"hub": "acme/words", "split": "test"}]}, "out": {"folder": "out"}})
    data = read_data(recipe, shipped, NextToken())
    assert (data.learned.n_items, list(data.files)) == (1, ["data 0/test.jsonl"])


def test_a_set_of_another_kind_than_the_method_learns_from_is_an_error(shipped: Model, here: Path) -> None:
    (here / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    with pytest.raises(BadData, match=r"pairs.jsonl:1 is a comparison, and method sft learns from examples"):
        data_of(shipped, ["pairs.jsonl"])
