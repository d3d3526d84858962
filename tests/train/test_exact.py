"""Exact match counts the answers that are the row's own, as values where they are JSON."""
from __future__ import annotations

import pytest

import pellucid
from pellucid.api import Model
from pellucid.data.example import Comparison, Example
from pellucid.errors import BadRequest
from pellucid.train.exact import exact_match, same


@pytest.fixture(scope="module")
def model() -> Model:
    return pellucid.load("shipped", cache_bytes=1 << 24)


def row(model: Model, prompt: str, answer: list[int], origin: str) -> Example:
    ids = model.prompt_ids(prompt)
    return Example((*ids, *answer), (False,) * len(ids) + (True,) * len(answer), origin)


def test_what_the_model_says_is_a_hit_and_anything_else_is_none(model: Model) -> None:
    own = list(model.generate("It was a dark", max_tokens=6, temperature=0).token_ids)
    items = [row(model, "It was a dark", own, "a:1"), row(model, "She said that", model.tokenizer.encode(" zebra zebra"), "a:2")]
    found = exact_match(model, items, max_tokens=6)
    assert (found.how, found.hits, found.share, found.valid) == ("free", 1, 0.5, None)
    assert [answer.origin for answer in found.answers if answer.hit] == ["a:1"]
    assert found.answers[0].prompt == "It was a dark"
    assert found.answers[1].expected == "zebra zebra" != found.answers[1].said


def test_the_token_that_ends_an_answer_is_no_part_of_it(model: Model) -> None:
    (end,) = model.stop_ids()
    found = exact_match(model, [row(model, "So", [*model.tokenizer.encode('"a"'), end], "a:1")], schema={"enum": ["a"]})
    assert (found.how, found.answers[0].expected, found.answers[0].said, found.hits, found.valid) == ("schema", '"a"', '"a"', 1, 1)


def test_json_is_compared_as_values_and_valid_json_is_counted(model: Model) -> None:
    items = [row(model, "So", model.tokenizer.encode('{"b": 2, "a": 1}'), "a:1")]
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["a", "b"], "additionalProperties": False}
    found = exact_match(model, items, schema=schema)
    assert found.answers[0].said == '{"a":1,"b":2}'
    assert (found.hits, found.valid) == (1, 1)
    free = exact_match(model, items, max_tokens=4)
    assert (free.hits, free.valid) == (0, 0)


@pytest.mark.parametrize(("said", "expected", "hit"), [
    ('{"a": [1, 2]}', '{"a":[1,2]}', True), ('{"a": [2, 1]}', '{"a":[1,2]}', False), ("1.0", "1", True), ("null", "null", True), ("null", "nul", False),
    ("yes", "yes", True), ("Yes", "yes", False), ('{"a":1', '{"a":1}', False), ('"yes"', "yes", False)])
def test_same(said: str, expected: str, hit: bool) -> None:
    assert same(said, expected) is hit


def test_rows_that_are_no_prompt_with_an_answer_are_refused(model: Model) -> None:
    one = Example((5, 6, 7, 8), (False, True, False, True), "a:3")
    with pytest.raises(BadRequest, match=r"a:3 has learned tokens elsewhere"):
        exact_match(model, [one])
    with pytest.raises(BadRequest, match=r"a:4 is a comparison"):
        exact_match(model, [Comparison(one, one, "a:4")])
