"""What is told of a model, of its prompt's tokens and of a completion's, for whoever shows them."""
from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import pellucid
from pellucid.api import Model
from pellucid.records import Record
from pellucid.serve.answers import Spelled
from tests.api.scripted import scripted_model
from tests.api.test_adapters import turning

from .conftest import ABC, Running

SHIPPED = Path(pellucid.__file__).parent / "shipped"


def test_a_report_is_what_loading_said(server: Running, shipped: Model) -> None:
    report = server.client.get("/report/shipped").json()
    assert report["lines"] == shipped.report.lines()
    assert report["load"]["stored"] == shipped.report.stored
    assert (report["load"]["family"], report["load"]["license"], report["chat"], report["record"]) == ("llama", "Apache-2.0", True, None)
    assert report["lineage"]["said"] == [{"license": "apache-2.0", "by": "README.md"}]
    assert report["in_force"]["deterministic"] is True


def test_a_report_of_nobody_names_those_there_are(server: Running) -> None:
    answer = server.client.get("/report/shiped")
    assert answer.status_code == 404
    assert "Did you mean shipped?" in answer.json()["error"]["message"]


def test_a_run_record_beside_the_weights_is_told_without_paths_or_prompts(serve: Callable[..., Running], shipped: Model, tmp_path: Path) -> None:
    folder = tmp_path / "secret-place" / "model"
    shutil.copytree(SHIPPED, folder)
    made = shipped.record(shipped.generate("a secret", max_tokens=2, seed=9))
    dataclasses.replace(made, kind="convert").save(folder / "record.json")
    asked = serve(mine=pellucid.load(folder)).client.get("/report/mine")
    record = asked.json()["record"]
    assert (record["kind"], record["seed"]) == ("convert", made.seed)
    assert {file["sha256"] for file in record["inputs"].values()} == {file.sha256 for file in made.inputs.values()}
    for hidden in ("secret", str(SHIPPED.parent)):
        assert hidden not in asked.text
    assert Record.read(folder / "record.json").output  # what is left out was there


def test_a_lineage_that_does_not_hold_is_told_as_such(serve: Callable[..., Running], shipped: Model, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED, folder)
    made = shipped.record(shipped.generate("a", max_tokens=1, seed=1))
    dataclasses.replace(made, output={**made.output, "files": {"model.safetensors": {"sha256": "0" * 64}}}).save(folder / "record.json")
    report = serve(mine=pellucid.load(folder)).client.get("/report/mine").json()
    assert report["lineage"] is None
    assert "was tampered with or replaced" in report["lineage_error"]
    assert str(tmp_path) not in report["lineage_error"]


def test_a_card_says_whether_a_model_can_be_talked_to_and_whose_adapter_it_is(serve: Callable[..., Running], abc: Model, tmp_path: Path) -> None:
    bare = pellucid.load(scripted_model(tmp_path / "bare", [ABC], template=None))
    bare.load_adapter("to-z", turning(tmp_path / "to-z", "b", "z"))
    cards = serve(abc=abc, bare=bare).client.get("/v1/models").json()["data"]
    assert {card["id"]: (card["chat"], card["parent"]) for card in cards} == {"abc": (True, None), "bare": (False, None), "to-z": (False, "bare")}


def test_the_pieces_of_a_prompt_are_its_ids_and_say_which_are_special(server: Running, abc: Model) -> None:
    messages = [{"role": "user", "content": "Hé"}]
    told = server.post("/tokenize", model="abc", messages=messages, pieces=True)
    assert [piece["token_id"] for piece in told["pieces"]] == told["tokens"] == abc.chat_prompt_ids(messages)
    assert b"".join(bytes(piece["bytes"]) for piece in told["pieces"]).decode() == "<|im_start|>user\nHé<|im_end|>\n<|im_start|>assistant\n"
    assert [piece["token"] for piece in told["pieces"] if piece.get("special")] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert "pieces" not in server.post("/tokenize", model="abc", messages=messages)


@pytest.mark.parametrize("field", ["special", "as_prompt"])
def test_what_is_of_prompts_is_refused_beside_messages(server: Running, field: str) -> None:
    answer = server.client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}], field: True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert f"{field} is of prompts" in answer.json()["error"]["message"]


def test_a_prompt_is_tokenized_as_a_completion_would_have_it(server: Running, shipped: Model) -> None:
    assert server.post("/tokenize", model="shipped", prompt="Once", as_prompt=True)["tokens"] == shipped.prompt_ids("Once")
    assert server.post("/tokenize", model="shipped", prompt="Once")["tokens"] == shipped.prompt_ids("Once")[1:]  # without what it begins with


@pytest.mark.parametrize("stream", [False, True])
def test_a_completions_log_probabilities_come_as_a_chats_too(server: Running, stream: bool) -> None:
    asked = dict(model="shipped", prompt="Once upon", max_tokens=5, seed=3, logprobs=2, logprobs_content=True)
    if stream:
        found = [json.loads(event)["choices"][0]["logprobs"] for event in server.events("/v1/completions", **asked)[:-1]]
    else:
        found = [server.post("/v1/completions", **asked)["choices"][0]["logprobs"]]
    whole = [one for each in found if each for one in each["content"]]
    older = [value for each in found if each for value in zip(each["tokens"], each["token_logprobs"], strict=True)]
    assert [(one["token"], one["logprob"]) for one in whole] == older
    assert len(whole) == 5
    assert all(len(one["top_logprobs"]) == 2 for one in whole)


def test_the_first_token_of_an_echo_has_no_probability(server: Running) -> None:
    [choice] = server.post("/v1/completions", model="shipped", prompt="Once upon", max_tokens=1, echo=True, logprobs=0, logprobs_content=True)["choices"]
    content = choice["logprobs"]["content"]
    assert content[0]["logprob"] is None
    assert content[0]["special"] is True
    assert all(one["logprob"] < 0 for one in content[1:])


def test_of_alternatives_spelled_alike_the_older_shape_keeps_the_likeliest(shipped: Model) -> None:
    first, second, letter = (next(i for i in range(shipped.spec.n_vocab) if shipped.tokenizer.words.bytes_of(i) == data) for data in (b"\xe2", b"\xe3", b"a"))
    for alternatives in (((letter, -0.5), (first, -1.5), (second, -2.5)), ((second, -2.5), (first, -1.5), (letter, -0.5))):
        told = Spelled(shipped.tokenizer).completion([(letter, -0.5, alternatives)], content=True)
        assert told["top_logprobs"] == [{"a": -0.5, "\N{REPLACEMENT CHARACTER}": -1.5}]
        assert {tuple(one["bytes"]): one["logprob"] for one in told["content"][0]["top_logprobs"]} == {(0x61,): -0.5, (0xe2,): -1.5, (0xe3,): -2.5}


def test_a_spelling_of_nothing_is_an_error(server: Running) -> None:
    error = server.post("/v1/completions", model="shipped", prompt="a", logprobs_content=True)["error"]
    assert error["param"] == "logprobs_content"
    assert "logprobs asks for none" in error["message"]
