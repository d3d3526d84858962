"""A split of a data set on the hub: which files it has, and that they come pinned, once, and without a network when they are here."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download

from pellucid.data.hub_files import chosen, files_of_hub
from pellucid.data.rows import read_rows
from pellucid.errors import BadRequest, ModelNotFound
from tests.hub.fixtures import cache, hub
from tests.hub.server import Hub, Repo

__all__ = ["cache", "hub"]
NAME = "acme/talks"
CARD = b"""---
license: cc-by-4.0
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test-*]
- config_name: hard
  data_files: hard/**/*.jsonl
---
# Talks
"""


def lines(*texts: str) -> bytes:
    return "".join(f'{{"text": "{text}"}}\n' for text in texts).encode()


@pytest.fixture
def talks(hub: Hub) -> Hub:
    files = {"README.md": CARD, "main/train-00000-of-00002.jsonl": lines("a", "b"), "main/train-00001-of-00002.jsonl": lines("c"),
             "main/test-00000-of-00001.jsonl": lines("d"), "hard/x/y.jsonl": lines("e"), "dataset_infos.json": b"{}"}
    hub.repos[f"datasets/{NAME}"] = Repo(files, stored_large=(".jsonl",), license="cc-by-4.0")
    return hub


def texts(files: tuple[Path, ...]) -> list[str]:
    return [read.row["text"] for file in files for read in read_rows(file)]


def test_one_split_is_brought_and_no_more(talks: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = files_of_hub(NAME)
    assert (texts(found.files), found.commit, found.license) == (["a", "b", "c"], "a" * 40, "cc-by-4.0")
    assert not talks.asked("test-00000-of-00001.jsonl")
    talks.requests.clear()
    assert texts(files_of_hub(f"{NAME}@{'a' * 40}").files) == ["a", "b", "c"]
    assert not talks.asked("train-00000-of-00002.jsonl")
    assert texts(files_of_hub(NAME, config="hard").files) == ["e"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert texts(files_of_hub(NAME).files) == ["a", "b", "c"]
    with pytest.raises(BadRequest, match="has no split 'test'"):
        files_of_hub(NAME, split="test")
    # other programs find it where they keep data sets
    assert Path(snapshot_download(NAME, repo_type="dataset", cache_dir=cache, local_files_only=True)) == found.files[0].parent.parent


def test_a_set_that_is_not_there_names_the_nearest_split_or_says_so(talks: Hub) -> None:
    with pytest.raises(BadRequest, match=r"no split 'tests'.*Did you mean test\? It has train, test"):
        files_of_hub(NAME, split="tests")
    with pytest.raises(BadRequest, match=r"configurations main, hard. 'harder' is none of them. Did you mean hard"):
        files_of_hub(NAME, config="harder")
    with pytest.raises(ModelNotFound, match=r"knows no repository 'datasets/acme/walks'.*Did you mean datasets/acme/talks"):
        files_of_hub("acme/walks")
    with pytest.raises(BadRequest, match="expected owner/name"):
        files_of_hub("talks")


@pytest.mark.parametrize(("paths", "splits"), [
    (["data.csv"], {"train": ["data.csv"]}),
    (["train.csv", "test.csv", "validation.csv"], {"train": ["train.csv"], "test": ["test.csv"], "validation": ["validation.csv"]}),
    (["my-train-file.csv", "x/dev_2.csv"], {"train": ["my-train-file.csv"], "validation": ["x/dev_2.csv"]}),
    (["data/train/1.csv", "data/train/2.csv", "data/eval/1.csv"], {"train": ["data/train/1.csv", "data/train/2.csv"], "test": ["data/eval/1.csv"]}),
    (["data/odd-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"], {"odd": ["data/odd-00000-of-00001.parquet"],
                                                                               "train": ["data/train-00000-of-00001.parquet"]}),
    (["trainers.csv", "contest.csv"], {"train": ["contest.csv", "trainers.csv"]}),  # a word of a split has to stand alone
])
def test_files_are_of_the_split_that_their_names_say(paths: list[str], splits: Mapping[str, list[str]]) -> None:
    for split, files in splits.items():
        assert chosen(NAME, paths, [], split, None) == files
    missing = {"train", "test", "validation"} - set(splits)
    for split in missing:
        with pytest.raises(BadRequest, match=f"no split '{split}'"):
            chosen(NAME, paths, [], split, None)


@pytest.mark.parametrize(("configs", "config", "words"), [
    ([{"config_name": "a", "data_files": "a.csv"}, {"config_name": "b", "data_files": "b.csv"}], None, "configurations a, b. Say which"),
    ([], "a", "names no configurations"),
    ([{"config_name": "both", "data_files": ["*"]}], None, r"in several formats \(\.csv, \.jsonl\)"),
])
def test_what_is_not_clear_is_asked(configs: list[dict[str, Any]], config: str | None, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        chosen(NAME, ["a.csv", "b.csv", "c.jsonl"], configs, "train", config)
