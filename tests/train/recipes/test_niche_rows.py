"""The niche recipe's rows: every answer is true to the schema, and what the test has was never learned."""
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import jsonschema
import pytest

from pellucid.train.recipes import niche_rows
from pellucid.train.recipes.niche_rows import CONVERSIONS, EVENTS, FIRST, GOODS, KIND, LAST, PLACE, SCHEMA, TOPIC, rows


@pytest.fixture(scope="module")
def made() -> dict[str, list[dict[str, Any]]]:
    return {"train": list(rows("train", 4000, 0)), "test": list(rows("test", 1500, 0))}


def values(row: dict[str, Any]) -> Iterator[str]:
    """Names, goods and what else an answer copies or works out, as texts."""
    def walk(value: Any, key: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            yield from chain.from_iterable(walk(each, name) for name, each in value.items())
        elif isinstance(value, list):
            yield from chain.from_iterable(walk(each, key) for each in value)
        elif key in ("who", "of", "what", "where"):
            yield value
    return walk(json.loads(row["messages"][1]["content"]))


def test_every_answer_is_compact_json_of_the_schema(made: dict[str, list[dict[str, Any]]]) -> None:
    judge = jsonschema.Draft202012Validator(SCHEMA)
    for row in chain(made["train"], made["test"]):
        answer = row["messages"][1]["content"]
        judge.validate(json.loads(answer))
        assert answer == json.dumps(json.loads(answer), ensure_ascii=False, separators=(",", ":"))


def test_there_are_forty_ways_to_say_it_and_each_is_used(made: dict[str, list[dict[str, Any]]]) -> None:
    templates = EVENTS + niche_rows.ORDERS + CONVERSIONS
    assert len(set(templates)) == len(templates) == 42
    for template in templates:
        pattern = "(?i)^" + re.sub(r"\\\{\w+\\\}", ".+", re.escape(template)) + "$"
        assert any(re.match(pattern, row["messages"][0]["content"]) for row in made["test"]), template


def test_no_word_of_the_test_is_learned(made: dict[str, list[dict[str, Any]]]) -> None:
    """Of the wide lists: names, topics, places, goods and what they are like. Closed ones (months, units, Hall, meeting) are in both."""
    wide = {*FIRST, *LAST, *TOPIC, *PLACE, *GOODS, *KIND}
    used = {split: {word for row in made[split] for value in values(row) for word in value.split() if word in wide} for split in made}
    assert not used["train"] & used["test"]
    assert len(used["test"]) > 120
    assert len(used["train"]) > 450
    sentences = {split: {row["messages"][0]["content"] for row in made[split]} for split in made}
    assert not sentences["train"] & sentences["test"]


def test_no_date_time_or_number_of_the_test_is_learned(made: dict[str, list[dict[str, Any]]]) -> None:
    def found(split: str, key: str) -> set[Any]:
        answers = [json.loads(row["messages"][1]["content"]) for row in made[split]]
        if key == "n":  # above what words say: words for numbers are few, and in both
            return {item["n"] for answer in answers for item in answer.get("items", ()) if item["n"] > max(niche_rows.NUMBERS.values())}
        return {int(answer[key]) if key == "value" else answer[key] for answer in answers if key in answer and not str(answer[key]).endswith("day")}

    for key in ("on", "by", "at", "n", "value"):
        assert found("test", key), key
        assert not found("train", key) & found("test", key), key


def test_a_value_stands_in_its_sentence_word_for_word(made: dict[str, list[dict[str, Any]]]) -> None:
    for row in chain(made["train"], made["test"]):
        for value in values(row):
            assert value.lower() in row["messages"][0]["content"].lower()


def test_the_same_seed_makes_the_same_rows_and_another_makes_others() -> None:
    assert list(rows("train", 50, 3)) == list(rows("train", 50, 3)) != list(rows("train", 50, 4))
    assert list(rows("train", 50, 3)) == list(rows("train", 80, 3))[:50]
