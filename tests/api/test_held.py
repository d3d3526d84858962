"""Outputs held to schemas, expressions, choices and grammars, asked for in the model's own words."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid
from pellucid.api import Model
from pellucid.api.replay import replay
from pellucid.engine.verdict import Verdict
from pellucid.records import Record
from tests.api.conftest import THOUGHT
from tests.api.scripted import scripted_model

PAIR = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"enum": ["x", None]}}, "required": ["a", "b"],
        "additionalProperties": False}
ASK = [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(("options", "text"), [
    ({"schema": PAIR}, '{"a":0,"b":"x"}'), ({"schema": json.dumps(PAIR)}, '{"a":0,"b":"x"}'), ({"choice": ["no", "bcd"]}, "bcd"),
    ({"regex": "[xyz]{3}"}, "xyx"),
    ({"lark": 'start: "bc" /[0-9]/ "!"'}, "bc0!"), ({"gbnf": 'root ::= "b" [c-d]+ "."'}, "bcd.")])
def test_the_output_is_what_was_asked_and_otherwise_what_the_model_would_say(abc: Model, options: dict, text: str) -> None:
    """The model says the alphabet; what no script goes on from is a tie, of which the lowest id comes."""
    done = abc.generate("a", temperature=0, **options)
    assert done.verdict == Verdict("valid")
    assert done.finish_reason == "stop"
    assert (len(done.text) == 3 and not set(done.text) - set("xyz")) if "regex" in options else done.text == text
    assert done.as_dict()["verdict"] == {"status": "valid", "reason": ""}


def test_an_output_held_to_nothing_has_no_verdict(abc: Model) -> None:
    done = abc.generate("a", temperature=0)
    assert done.verdict is None
    assert "verdict" not in done.as_dict()


def test_an_output_cut_short_says_so(abc: Model) -> None:
    done = abc.generate("a", temperature=0, schema=PAIR, max_tokens=5)
    assert (done.text, done.finish_reason) == ('{"a":', "length")
    assert done.verdict == Verdict("cut", "max_tokens was reached before the schema was complete")
    done = abc.generate("a", temperature=0, schema=PAIR, stop='"b"')
    assert (done.text, done.stopped_by) == ('{"a":0,', '"b"')
    assert done.verdict == Verdict("cut", """'"b"' ended it before the schema was known to be complete""")


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**40), n=st.integers(1, 3))
def test_any_seed_meets_the_schema_alone_and_in_company(abc: Model, seed: int, n: int) -> None:
    for done in abc.batch(["a", "b"], schema=PAIR, seed=seed, n=n, temperature=300.0, logit_bias=dict.fromkeys(range(220, 225), -50)):
        for one in done.choices or (done,):
            assert one.verdict == Verdict("valid")
            assert set(json.loads(one.text)) == {"a", "b"}


def test_thinking_that_the_template_began_comes_first(tmp_path: Path) -> None:
    for think in ("special", "plain"):
        model = pellucid.load(scripted_model(tmp_path / think, [THOUGHT], think=think))
        first = model.chat(ASK, template_args={"think_first": True}, temperature=0, choice=["ok", "no"])
        assert (first.thinking, first.text, first.verdict) == ("hm", "ok", Verdict("valid"))
        cut = model.chat(ASK, template_args={"think_first": True}, temperature=0, choice=["ok", "no"], max_tokens=1)
        assert cut.verdict == Verdict("cut", "max_tokens was reached before the choice was complete")
        none = model.chat(ASK, temperature=0, choice=["ok", "no"])  # nothing was begun, and what was asked for begins at once
        assert (none.thinking, none.verdict) == (None, Verdict("valid"))


def test_a_record_repeats_what_it_was_held_to(abc: Model, tmp_path: Path) -> None:
    done = abc.generate("a", schema=PAIR, seed=4, temperature=300.0)
    abc.record(done).save(tmp_path / "r.json")
    read = Record.read(tmp_path / "r.json")
    assert read.settings["request"]["schema"] == PAIR
    found = replay(read, abc)
    assert found.same
    assert found.completion.verdict == done.verdict


def test_a_grammar_is_made_ready_once(abc: Model) -> None:
    streams = [abc.stream("a", schema=schema, temperature=0) for schema in (PAIR, dict(PAIR), {"type": "null"})]
    same, too, other = (stream.generation.request.constraint for stream in streams)
    assert same is too
    assert other is not same
    for stream in streams:
        assert stream.result.verdict == Verdict("valid")
