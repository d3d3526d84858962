"""What a teacher answers is written once, learned in place of the rows' own answers, and its author remembered."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pellucid
from pellucid.errors import BadData, BadRequest
from pellucid.train.outcome import finish
from pellucid.train.tuning import prepare
from tests.train.test_methods import SHIPPED, recipe, run, turn

ASKED, KNOWN = ["Name a fruit.", "Name a color.", "Say hello."], ["Pear.", "Red, or green.", "Hello!"]


def written(place: Path, answers: list[str]) -> str:
    place.write_text("".join(json.dumps({"messages": turn(q, a)}) + "\n" for q, a in zip(ASKED, answers, strict=True)))
    return str(place)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that learned three answers by heart: the shipped one writes books, which have no end."""
    folder = tmp_path_factory.mktemp("teacher")
    tuning, _ = run(recipe(written(folder / "rows.jsonl", KNOWN), folder / "out", "sft", tune={"kind": "full"}, steps=30, optim={"lr": 1e-3, "warmup": 0}))
    return str(finish(tuning).out)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Prompts with answers that the teacher would not give."""
    return written(tmp_path / "rows.jsonl", ["xyzzy"] * 3)


def test_the_teachers_answers_are_learned_in_place_of_the_rows_own(teacher: str, rows: str, tmp_path: Path) -> None:
    tuning, steps = run(recipe(rows, tmp_path / "out", "taught", settings={"teacher": teacher, "max_tokens": 20, "n": 2}))
    lines = [json.loads(line) for line in (tmp_path / "out" / "taught" / "0.jsonl").read_text().splitlines()]
    assert [(row["prompt"][0]["content"], row["completion"][0]["content"].strip()) for row in lines] == list(zip(ASKED, KNOWN, strict=True))
    told = json.loads((tmp_path / "out" / "taught" / "0.json").read_text())
    assert (told["rows"], told["kept"], told["teacher"]) == (3, 3, pellucid.load(teacher).sha256)
    item = tuning.data.stock.sources[0].items[0]
    learned = tuning.model.tokenizer.decode([i for i, own in zip(item.ids, item.learned, strict=True) if own])
    assert learned.strip() == KNOWN[0]
    assert steps[-1].loss < steps[0].loss
    ancestry = json.loads(finish(tuning).record.read_text())["output"]["ancestry"]
    assert [role for role, _ in _parents(ancestry)].count("outputs") == 1


def _parents(node: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(parent["role"], parent) if isinstance(parent, dict) else tuple(parent) for parent in node["parents"]]


def test_answers_are_asked_once_and_never_taken_for_others(teacher: str, rows: str, tmp_path: Path) -> None:
    def asked(**settings: Any) -> int:
        prepare(recipe(rows, tmp_path / "out", "taught", settings={"teacher": teacher, "max_tokens": 20, **settings}))
        return (tmp_path / "out" / "taught" / "0.jsonl").stat().st_mtime_ns
    assert asked() == asked()
    with pytest.raises(BadRequest, match=r"other settings: temperature changed. Delete .*taught"):
        asked(temperature=0.5)


def test_answers_without_an_end_are_not_learned(rows: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"none of 3 answers of .*shipped came to an end within 2 tokens"):
        prepare(recipe(rows, tmp_path / "out", "taught", settings={"teacher": str(SHIPPED), "max_tokens": 2}))
    assert not (tmp_path / "out" / "taught" / "0.jsonl").exists()


def test_a_document_asks_nothing(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "A document."}) + "\n")
    with pytest.raises(BadData, match=r"d.jsonl:1 is a document, which asks nothing that a teacher could answer"):
        prepare(recipe(str(tmp_path / "d.jsonl"), tmp_path / "out", "taught", settings={"teacher": str(SHIPPED)}))
