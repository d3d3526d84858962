"""A real trained model against text nobody here wrote: stories260k's published greedy continuation."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pellucid
from pellucid.api import Model
from pellucid.api.replay import replay
from pellucid.records import Record

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "stories260k"


@pytest.fixture(scope="module")
def golden(folder: Path) -> dict:
    return json.loads((folder / "golden_greedy.json").read_text())


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return pellucid.load(folder)


def test_the_greedy_continuation_is_the_published_one(model, golden):
    ids = golden["token_ids"]
    done = model.generate("", temperature=0, max_tokens=len(ids) - 1)
    assert list(done.prompt_ids) == ids[:1]
    assert list(done.token_ids) == ids[1:]
    assert done.text == golden["expected_text"]
    assert done.finish_reason == "length"


def test_streamed_pieces_join_to_the_published_text(model, golden):
    pieces = list(model.stream("", temperature=0, max_tokens=len(golden["token_ids"]) - 1))
    assert "".join(pieces) == golden["expected_text"]
    assert len(pieces) > 150


def test_without_a_cache_every_argmax_is_the_published_token(model, golden):
    ids = golden["token_ids"]
    assert model.logits(ids[:-1]).argmax(-1).tolist() == ids[1:]


def test_without_a_cache_step_by_step_the_text_is_the_same(model, golden):
    ids = golden["token_ids"][:1]
    for _ in range(40):
        ids.append(int(model.logits(ids)[-1].argmax()))
    assert ids == golden["token_ids"][:41]


@pytest.mark.parametrize("how", [{"ops": "reference"}, {"deterministic": True}, {"dtype": "float64"}])
def test_every_way_of_computing_writes_the_published_text(folder, golden, how):
    model = pellucid.load(folder, **how)
    done = model.generate("", temperature=0, max_tokens=len(golden["token_ids"]) - 1)
    assert list(done.token_ids) == golden["token_ids"][1:]


def test_a_text_prompt_gets_bos_and_goes_on_as_published(model, golden):
    text = golden["expected_text"]
    prompt = text[: text.index(" She")]
    done = model.generate(prompt, temperature=0, max_tokens=64)
    assert done.prompt_ids[0] == model.tokenizer.bos_id
    assert text.startswith(prompt + done.text)
    assert done.text.startswith(" She loved")  # the space between is the output's


def test_a_record_replays_to_the_same_ids(model, golden, tmp_path):
    done = model.generate("Once upon a time", seed=11, max_tokens=40)
    model.record(done).save(tmp_path / "r.json")
    found = replay(Record.read(tmp_path / "r.json"))
    assert found.same
    assert found.completion.token_ids == done.token_ids


@pytest.fixture(scope="module")
def theirs(folder: Path):
    from transformers import LlamaForCausalLM
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(("ours", "hf"), [
    ({}, {}), ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}), ({"repetition_penalty": 0.8}, {"repetition_penalty": 0.8}),
    ({"logit_bias": {403: -50.0, 432: 2.0}}, {"sequence_bias": {(403,): -50.0, (432,): 2.0}})])
def test_greedy_generation_equals_transformers_generate(model, theirs, ours, hf):
    """Token by token, where penalties look back at prompt and output."""
    prompt = model.prompt_ids("Lily and Tom went to the")
    done = model.generate(prompt, temperature=0, max_tokens=120, **ours)
    expected = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=120, eos_token_id=2, pad_token_id=0, **hf)[0, len(prompt):]
    assert list(done.token_ids) == expected.tolist()


def test_logits_equal_transformers(theirs, model, golden):
    ids = torch.tensor(golden["token_ids"])
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    torch.testing.assert_close(model.logits(ids), expected, rtol=2e-4, atol=2e-4)
