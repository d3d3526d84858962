"""OpenAI's API over a real socket: the same words as the Python API, whole and in pieces; every fault has its status and names its field."""
from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid
from pellucid.api import Model
from pellucid.serve.exchange import Limits
from tests.api.scripted import scripted_model
from tests.api.test_adapters import turning

from .conftest import Running

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}},
                                                                          "required": ["city"], "additionalProperties": False}}}


def test_a_completion_is_what_the_model_writes(server: Running, shipped: Model) -> None:
    answer = server.post("/v1/completions", model="shipped", prompt="It was a dark", max_tokens=12, seed=5)
    mine = shipped.generate("It was a dark", max_tokens=12, seed=5, temperature=1.0)
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["seed"]) == (mine.text, "length", 5)
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["prompt_tokens"] == mine.usage.prompt_tokens


@pytest.mark.parametrize("prompt", ["a", [64], ["a", "b"], [[64], [65]]], ids=str)
def test_prompts_are_text_or_ids_one_or_several(server: Running, abc: Model, prompt: Any) -> None:
    assert abc.tokenizer.encode("ab") == [64, 65]
    answer = server.post("/v1/completions", model="abc", prompt=prompt, max_tokens=50, temperature=0)
    texts = ["bcdefghijkl", "cdefghijkl"] if len(prompt) == 2 else ["bcdefghijkl"]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"stop"}
    assert answer["usage"]["prompt_tokens"] == sum(len(abc.prompt_ids(one)) for one in (prompt if len(prompt) == 2 else [prompt]))


def test_pieces_put_together_are_the_whole(server: Running) -> None:
    asked = dict(model="shipped", prompt="Once upon", max_tokens=30, seed=3, n=2, logprobs=2)
    whole = server.post("/v1/completions", **asked)
    *events, end = server.events("/v1/completions", **asked, stream_options={"include_usage": True})
    assert end == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 60
    assert chunks[-1]["choices"] == []
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [p for c in mine if c["logprobs"] for p in c["logprobs"]["token_logprobs"]] == choice["logprobs"]["token_logprobs"]
        assert [(c["finish_reason"], c["seed"], c["stop_reason"]) for c in mine if c["finish_reason"]] == [("length", choice["seed"], None)]


def test_an_echo_comes_with_the_prompts_log_probabilities(server: Running, shipped: Model) -> None:
    answer = server.post("/v1/completions", model="shipped", prompt="Once upon", max_tokens=2, echo=True, logprobs=1, temperature=0)
    [choice] = answer["choices"]
    mine = shipped.generate("Once upon", max_tokens=2, temperature=0, logprobs=True, prompt_logprobs=0)
    assert choice["text"] == "Once upon" + mine.text
    told = choice["logprobs"]["token_logprobs"]
    assert told[0] is None
    assert told[1:] == pytest.approx([*mine.prompt_logprobs, *mine.logprobs], abs=1e-2)


@pytest.mark.parametrize("prompt", ["Once upon", [1, 500, 600]], ids=["text", "ids"])
def test_an_echo_in_pieces_has_the_prompts_log_probabilities_too(server: Running, prompt: Any) -> None:
    asked = dict(model="shipped", prompt=prompt, max_tokens=3, echo=True, logprobs=1, seed=1, n=2)
    whole = server.post("/v1/completions", **asked)["choices"]
    events = [json.loads(event)["choices"][0] for event in server.events("/v1/completions", **asked)[:-1]]
    for choice in whole:
        mine = [event for event in events if event["index"] == choice["index"]]
        assert "".join(event["text"] for event in mine) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for event in mine if event["logprobs"] for value in event["logprobs"][name]] == values
        starts = choice["logprobs"]["text_offset"]
        assert [choice["text"][at:].startswith(token) for at, token in zip(starts, choice["logprobs"]["tokens"], strict=True)].count(False) == 1  # the begin
    assert len(whole) == 2


@pytest.mark.parametrize(("path", "asked"), [("/v1/completions", {"prompt": "Once upon"}), ("/v1/chat/completions", {"messages": HELLO})], ids=["text", "chat"])
def test_a_prompts_log_probabilities_come_whole_and_in_pieces(server: Running, path: str, asked: dict) -> None:
    asked = dict(asked, model="shipped", max_tokens=2, prompt_logprobs=1, seed=1)
    answer = server.post(path, **asked)
    [choice] = answer["choices"]
    told = choice["prompt_logprobs"]
    assert (len(told), told[0]) == (answer["usage"]["prompt_tokens"], None)
    assert all(one["logprob"] <= one["top_logprobs"][0]["logprob"] for one in told[1:])
    assert json.loads(server.events(path, **asked)[-2])["choices"][0]["prompt_logprobs"] == told


def test_a_chat_is_what_the_model_answers(server: Running, shipped: Model) -> None:
    answer = server.post("/v1/chat/completions", messages=HELLO, max_tokens=16, seed=4, logprobs=True, top_logprobs=2)
    [choice] = answer["choices"]
    mine = shipped.chat(HELLO, max_tokens=16, seed=4, temperature=1.0)
    assert choice["message"] == {"role": "assistant", "content": mine.text, "refusal": None}
    assert len(choice["logprobs"]["content"]) == 16
    assert b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"]).decode(errors="replace") == mine.text
    assert all(len(one["top_logprobs"]) == 2 for one in choice["logprobs"]["content"])


def test_a_chat_in_pieces_is_the_whole(server: Running) -> None:
    asked = dict(messages=HELLO, max_tokens=16, seed=4, n=2)
    whole = server.post("/v1/chat/completions", **asked)
    *events, end = server.events("/v1/chat/completions", **asked)
    chunks = [json.loads(event)["choices"][0] for event in events]
    assert end == "[DONE]"
    for choice in whole["choices"]:
        mine = [chunk for chunk in chunks if chunk["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(chunk["delta"].get("content", "") for chunk in mine) == choice["message"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_always_parses(server: Running, caller: Model, serve: Callable[..., Running], choice: Any, stream: bool) -> None:
    asked = dict(messages=HELLO, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=60, seed=1)
    running = serve(caller=caller)
    if stream:
        deltas = [json.loads(event)["choices"][0] for event in running.events("/v1/chat/completions", **asked)[:-1]]
        [call] = [call for delta in deltas for call in delta["delta"].get("tool_calls", [])]
        reason = deltas[-1]["finish_reason"]
    else:
        [answer] = running.post("/v1/chat/completions", **asked)["choices"]
        assert answer["message"]["content"] is None
        [call], reason = answer["message"]["tool_calls"], answer["finish_reason"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Rome")
    assert reason == "tool_calls"


def test_a_call_of_a_strict_tool_follows_its_schema_though_the_model_chose_it(server: Running, shipped: Model) -> None:
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    [brace], words = shipped.tokenizer.encode("{"), shipped.tokenizer.words
    once = {str(i): -100 for i in range(shipped.spec.n_vocab) if b";" in (words.bytes_of(i) or b"")}  # so small a model would call without end
    asked = dict(messages=HELLO, max_tokens=80, seed=2, tools=[strict])
    calling = server.post("/v1/chat/completions", **asked, logit_bias={**once, str(brace): 100})["choices"][0]
    [call] = calling["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Bern", "Rome")
    talking = server.post("/v1/chat/completions", **asked, logit_bias={str(brace): -100})["choices"][0]
    assert "tool_calls" not in talking["message"]
    assert talking["message"]["content"]


def test_a_model_that_may_call_once_calls_once(server: Running, shipped: Model) -> None:
    [brace] = shipped.tokenizer.encode("{")
    asked = dict(messages=HELLO, max_tokens=80, seed=2, tools=[{"type": "function", "function": {**TOOL["function"], "strict": True}}])
    several, one = (server.post("/v1/chat/completions", **asked, logit_bias={str(brace): 100}, parallel_tool_calls=parallel)["choices"][0]
                    for parallel in (True, False))
    assert several["finish_reason"] == "length"  # so small a model calls without end
    assert len(one["message"]["tool_calls"]) == 1
    assert one["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_of_its_schema_or_a_call(caller: Model, serve: Callable[..., Running], stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "object", "properties": {"ok": {"enum": ["yes", "no"]}}, "required": ["ok"],
                                                                           "additionalProperties": False}}}
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    running, kinds = serve(caller=caller), set()
    for seed in range(12):
        asked = dict(messages=HELLO, tools=[strict], response_format=form, max_tokens=200, seed=seed, temperature=2)
        if stream:
            choices = [json.loads(event)["choices"][0] for event in running.events("/v1/chat/completions", **asked)[:-1]]
            content, end = "".join(choice["delta"].get("content") or "" for choice in choices), choices[-1]
            calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
        else:
            [end] = running.post("/v1/chat/completions", **asked)["choices"]
            content, calls = end["message"]["content"], end["message"].get("tool_calls", [])
        kinds.add(end["finish_reason"])
        if end["finish_reason"] == "tool_calls":
            assert not content
            assert {json.loads(call["function"]["arguments"])["city"] for call in calls} <= {"Bern", "Rome"}
            assert "verdict" not in end
        elif end["finish_reason"] == "stop":
            assert json.loads(content)["ok"] in ("yes", "no")
            assert end["verdict"] == {"status": "valid", "reason": ""}
        else:
            assert end["verdict"]["status"] == "cut"
    assert kinds >= {"tool_calls", "stop"}


def test_a_response_is_of_its_schema_or_a_call(caller: Model, serve: Callable[..., Running]) -> None:
    form = {"type": "json_schema", "name": "it", "schema": {"enum": ["yes", "no"]}}
    running, kinds = serve(caller=caller), set()
    for seed in range(12):
        answer = running.post("/v1/responses", input="Hi", tools=[{"type": "function", **TOOL["function"], "strict": True}], text={"format": form},
                              max_output_tokens=200, seed=seed, temperature=2)
        for item in answer["output"]:
            kinds.add(item["type"])
            if item["type"] == "message":
                assert json.loads(item["content"][0]["text"]) in ("yes", "no")
                assert answer["verdict"]["status"] == "valid"
    assert kinds == {"message", "function_call"}


def test_tools_a_template_does_not_read_are_refused(server: Running) -> None:
    answer = server.post("/v1/chat/completions", model="abc", messages=HELLO, tools=[TOOL])
    assert "never reads 'tools'" in answer["error"]["message"]


def test_an_output_is_held_to_a_schema_and_says_so(server: Running) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    [choice] = server.post("/v1/chat/completions", messages=HELLO, response_format=form, max_tokens=40, seed=1)["choices"]
    assert list(json.loads(choice["message"]["content"])) == ["ok"]
    assert choice["verdict"] == {"status": "valid", "reason": ""}
    [cut] = server.post("/v1/chat/completions", messages=HELLO, response_format=form, max_tokens=1, seed=1)["choices"]
    assert (cut["finish_reason"], cut["verdict"]["status"]) == ("length", "cut")


def test_embeddings_are_the_models_own(server: Running, shipped: Model) -> None:
    plain = server.post("/v1/embeddings", model="shipped", input=["a dark night", "snow"])
    packed = server.post("/v1/embeddings", model="shipped", input=["a dark night", "snow"], encoding_format="base64")
    mine = shipped.embed(["a dark night", "snow"])
    for i in range(2):
        assert plain["data"][i]["embedding"] == pytest.approx(mine[i].tolist(), abs=1e-3)
        data = base64.b64decode(packed["data"][i]["embedding"])
        assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(mine[i].tolist(), abs=1e-3)


def test_texts_are_read_between_the_steps_of_others(serve: Callable[..., Running], shipped: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    running = serve(max_waiting=0, shipped=shipped)
    texts, slices, embed = [[400 + i] * 300 for i in range(10)], [], shipped.embed

    def watched(some: Any, **how: Any) -> Any:
        slices.append(sum(map(len, some)))
        return embed(some, **how)
    monkeypatch.setattr(shipped, "embed", watched)
    answer = running.post("/v1/embeddings", input=texts)
    assert slices == [900, 900, 900, 300]
    vectors = torch.tensor([one["embedding"] for one in answer["data"]])
    torch.testing.assert_close(vectors, embed(texts), atol=1e-6, rtol=0)
    assert answer["usage"]["prompt_tokens"] == 3000


def test_vectors_wait_in_the_same_queue(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(max_waiting=0, shipped=shipped)
    with running.client.stream("POST", "/v1/completions", json={"prompt": "Once", "max_tokens": 1000, "n": 64, "ignore_eos": True, "stream": True}):
        wait_for(lambda: running.engine().report().n_running > 0)
        answer = running.client.post("/v1/embeddings", json={"input": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")


def test_a_long_text_is_read_while_others_are_answered(server: Running, shipped: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, text = type(shipped.tokenizer), " ".join(f"word{i}" for i in range(150_000))
    encode, begun, ended = kind.encode, threading.Event(), threading.Event()

    def watched(*args: Any, **how: Any) -> Any:
        begun.set()
        ids = encode(*args, **how)
        ended.set()
        return ids
    monkeypatch.setattr(kind, "encode", watched)
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(server.post("/tokenize", prompt=text)))
    first.start()
    assert begun.wait(30)
    assert server.client.get("/health").status_code == 200
    assert not ended.is_set()
    first.join()
    assert answers[0]["count"] > 300_000


def test_tokens_come_and_go(server: Running, shipped: Model) -> None:
    told = server.post("/tokenize", prompt="a dark night")
    assert told["tokens"] == shipped.tokenizer.encode("a dark night")
    assert server.post("/detokenize", tokens=told["tokens"]) == {"prompt": "a dark night"}
    assert server.post("/tokenize", messages=HELLO)["tokens"] == shipped.chat_prompt_ids(HELLO)


def test_it_says_what_it_serves_and_how_it_is(server: Running) -> None:
    assert [card["id"] for card in server.client.get("/v1/models").json()["data"]][:2] == ["shipped", "abc"]
    assert server.client.get("/v1/models/abc").json()["id"] == "abc"
    assert server.client.get("/health").json() == {"status": "ok"}
    assert set(server.client.get("/version").json()) == {"version"}
    assert 'pellucid_output_tokens_total{model="shipped"}' in server.client.get("/metrics").text


def test_an_adapter_is_asked_for_by_its_name(serve: Callable[..., Running], tmp_path: Path) -> None:
    model = pellucid.load(scripted_model(tmp_path / "abc", [list("abcd")]), adapters={"to-z": turning(tmp_path / "z", "b", "z")})
    running = serve(abc=model)
    answers = {name: running.post("/v1/completions", model=name, prompt="a", max_tokens=3, temperature=0)["choices"][0]["text"] for name in ("abc", "to-z")}
    assert answers == {"abc": "bcd", "to-z": "bz"}
    assert {card["id"]: card["parent"] for card in running.client.get("/v1/models").json()["data"]} == {"abc": None, "to-z": "abc"}


@pytest.mark.parametrize(("path", "body", "status", "words", "param"), [
    ("chat/completions", {"messages": HELLO, "temprature": 1}, 400, "Did you mean temperature", "temprature"),
    ("chat/completions", {"messages": []}, 400, "at least 1 item", "messages"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "reads text only", "messages"),
    ("chat/completions", {"messages": HELLO, "temperature": -1}, 400, "temperature=-1.0 is out of range", "temperature"),
    ("chat/completions", {"messages": HELLO, "model": "gpt-4"}, 404, "Served: shipped, abc", None),
    ("chat/completions", {"messages": HELLO, "tool_choice": "required"}, 400, "there are no tools", "tool_choice"),
    ("chat/completions", {"messages": HELLO, "max_tokens": 2, "max_completion_tokens": 3}, 400, "Leave one out", "max_tokens"),
    ("chat/completions", {"messages": HELLO, "stream_options": {"include_usage": True}}, 400, "stream is not true", "stream_options"),
    ("chat/completions", {"messages": HELLO, "response_format": {"type": "json_schema"}}, 400, "has no json_schema.schema", "response_format"),
    ("chat/completions", {"messages": HELLO, "regex": "(a+"}, 400, "regex", "regex"),
    ("completions", {"prompt": "a", "max_tokens": 0}, 400, "at least 1", "max_tokens"),
    ("completions", {"prompt": "a", "max_tokens": 5000}, 400, "together 5,002; this model holds 1,024", "prompt"),
    ("completions", {"prompt": "a " * 2000}, 400, "context holds 1,024", "prompt"),
    ("completions", {"prompt": [9999999]}, 400, "vocabulary", "prompt"),
    ("completions", {"prompt": []}, 400, "empty list", "prompt"),
    ("completions", {"prompt": "a", "n": 500}, 400, "at most 128", "n"),
    ("completions", {"prompt": "a", "best_of": 3, "stream": True}, 400, "cannot wait for", "best_of"),
    ("completions", {"prompt": "a", "logit_bias": {"x": 1}}, 400, "expected a token id", "logit_bias"),
    ("embeddings", {"input": "a", "dimensions": 3}, 400, "dimensions=3", "dimensions"),
    ("embeddings", {"input": []}, 400, "input is an empty list", "input"),
    ("embeddings", {"input": [[1, 99999999]]}, 400, "vocabulary", "input"),
    ("embeddings", {"input": "a " * 2000}, 400, "context holds 1,024", "input"),
    ("completions", {"prompt": "a " * 2000, "max_tokens": 3}, 400, "this model holds 1,024. Shorten the prompt by ", "prompt"),
    ("responses", {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}, 400,
     "input.0.arguments: input should be a valid string, got {}", "input"),
    ("responses", {"input": "a", "include": ["x"]}, 400, "include: nothing of the kind is done here, and it is ['x']. Leave it out", "include"),
    ("responses", {"input": [{"role": "user", "content": "a", "mood": 1}]}, 400, "input.0.mood: this is not a field of the request. Leave it out", "input"),
    ("responses", {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "x"}]}]}, 400, "reads text only",
     "input"),
    ("responses", {"input": "a", "max_output_tokens": 0}, 400, "greater than or equal to 1, got 0", "max_output_tokens"),
    ("responses", {"input": [{"type": "image"}]}, 400, "input.0: an item is a message, function_call, function_call_output or reasoning, got", "input"),
    ("completions", {"prompt": "a", "grammar": "start: x"}, 400, "unknown name", "grammar"),
    ("chat/completions", {"messages": HELLO, "response_format": {"type": "json_object"}, "regex": "a"}, 400, "response_format and regex are both", "regex"),
    ("chat/completions", {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"typ": 1}}}}, 400, "typ",
     "response_format"),
    ("chat/completions", {"messages": HELLO, "tools": [TOOL], "response_format": {"type": "json_object"}}, 400, "nothing tells them apart", "response_format"),
    ("chat/completions", {"messages": HELLO, "tools": [TOOL], "regex": "a"}, 400, "no call could be written", "regex"),
    ("chat/completions", {"messages": HELLO, "tools": [TOOL], "tool_choice": "required", "regex": "a"}, 400, "the call tool_choice asks for", "regex"),
    ("chat/completions", {"messages": HELLO, "tools": [TOOL, TOOL]}, 400, "tools[1].function.name: 'weather' is the name of another tool", "tools"),
    ("chat/completions", {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]}, 400,
     "tools[0].function.parameters: arguments are an object, and its type is 'string'", "tools"),
    ("chat/completions", {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "objec"}, "strict": True}}]}, 400,
     "arguments are an object, and its type is 'objec'", "tools"),
    ("chat/completions", {"messages": HELLO, "tool_choice": "required", "tools": [{"type": "function", "function": {
        "name": "a", "parameters": {"properties": {"x": {"type": "strin"}}}}}]}, 400, "tools[0].function.parameters at #/properties/x/type: 'strin'", "tools"),
    ("chat/completions", {"messages": [{"role": "user", "content": "Hi", "name": "bob"}]}, 400, "messages[0].name: this model's chat template shows no names",
     "messages"),
    ("chat/completions", {"messages": [{"role": "user", "content": "Hi", "tool_call_id": "a"}]}, 400, "only one of the role 'tool' may", "messages"),
    ("chat/completions", {"messages": [{"role": "user", "content": "Hi", "reasoning_content": "a"}]}, 400, "only one of the role 'assistant' may", "messages"),
    ("chat/completions", {"messages": HELLO, "response_format": {"type": "json_object", "json_schema": {"name": "a", "schema": {}}}}, 400,
     "of type json_object and has a json_schema, which nobody would read", "response_format"),
    ("responses", {"input": "a", "text": {"format": {"type": "json_object", "schema": {}}}}, 400, "of type json_object and has schema, which nobody", "text"),
    ("responses", {"input": [{"type": "reasoning", "summary": ["a"]}, {"role": "user", "content": "a"}]}, 400, "input.0.summary",
     "input"),
    ("completions?shoe=1", {"prompt": "a"}, 400, "shoe: a request has its fields in its body", "shoe"),
    ("chat/completions", {"messages": [{"role": "assistant"}]}, 400, "has no content, and calls no tool", "messages"),
], ids=lambda value: str(value)[:50])
def test_a_fault_has_its_status_and_names_its_field(server: Running, path: str, body: dict, status: int, words: str, param: str | None) -> None:
    answer = server.client.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert words in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_client_is_not_told_where_a_model_lies(serve: Callable[..., Running], tmp_path: Path, path: str) -> None:
    running = serve(mine=pellucid.load(scripted_model(tmp_path / "secret", [list("abc")], template=None)))
    message = running.post(path, messages=[{"role": "user", "content": "a"}], max_tokens=3)["error"]["message"]
    assert "the model 'mine' has no chat template" in message
    assert "secret" not in message


def test_what_is_no_request_is_answered_in_the_same_shape(server: Running) -> None:
    for answer, status in ((server.client.post("/v1/completions", content=b"{"), 400), (server.client.get("/nowhere"), 404),
                           (server.client.get("/v1/completions"), 405), (server.client.post("/v1/completions", content=b"[1]"), 400)):
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("deep", [900, 990, 1010, 1023, 5000])  # the two readers of JSON that look at a body go to different depths
def test_a_body_nested_too_deep_is_the_clients_fault(server: Running, deep: int) -> None:
    answer = server.client.post("/v1/completions", content=b'{"prompt": ' + b"[" * deep + b"]" * deep + b"}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_field_that_stands_twice_is_refused_at_any_depth(server: Running) -> None:
    for body in (b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "a", "stream_options": {"include_usage": true, "include_usage": false}}'):
        answer = server.client.post("/v1/completions", content=body)
        assert answer.status_code == 400
        assert "twice in one object" in answer.json()["error"]["message"]


NAMED = "{% for m in messages %}{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}: {{ m.content }}\n{% endfor %}assistant: "


def test_a_name_that_the_template_shows_is_read(serve: Callable[..., Running], tmp_path: Path) -> None:
    running = serve(named=pellucid.load(scripted_model(tmp_path / "named", [["a", "b", "c"]], template=NAMED)))
    said = [{"role": "user", "content": "a", "name": "b"}]
    named, bare = (running.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2}).json()
                   for messages in (said, [{"role": "user", "content": "a"}]))
    assert named["usage"]["prompt_tokens"] == bare["usage"]["prompt_tokens"] + len(" b")


def test_what_is_left_out_is_told(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(Limits(allow_unknown_fields=True), shipped=shipped)
    asked = {"messages": [{"role": "user", "content": "Hi", "name": "bob"}], "max_tokens": 1, "shoe_size": 43}
    answer = running.client.post("/v1/chat/completions", json=asked)
    assert (answer.status_code, answer.headers["x-ignored-fields"]) == (200, "shoe_size, messages[0].name")


def test_a_long_body_is_refused_while_it_comes(serve: Callable[..., Running], abc: Model) -> None:
    running = serve(Limits(max_body_bytes=1000, allow_unknown_fields=True), abc=abc)
    answer = running.client.post("/v1/completions", json={"prompt": "a" * 2000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    known = running.client.post("/v1/completions", json={"prompt": "a", "shoe_size": 43})
    assert (known.status_code, known.headers["x-ignored-fields"]) == (200, "shoe_size")


def test_what_takes_too_long_is_ended_and_told(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(Limits(request_seconds=0.2, body_seconds=0.2), shipped=shipped)
    asked = {"prompt": "Once", "max_tokens": 900, "n": 16, "ignore_eos": True}
    answer = running.client.post("/v1/completions", json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")
    assert '"code":"timeout"' in running.events("/v1/completions", **asked)[-2]
    wait_for(lambda: running.engine().report().n_running == 0)
    with socket.create_connection(("127.0.0.1", running.port)) as wire:
        wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert wire.recv(200).startswith(b"HTTP/1.1 408")


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_pages(server: Running, stream: bool) -> None:
    engine = server.engine("shipped")
    before = engine.report()
    body = json.dumps({"model": "shipped", "prompt": "Once", "max_tokens": 1000, "n": 4, "stream": stream, "ignore_eos": True}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as wire:
        wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        wait_for(lambda: engine.report().n_running == 4)
    wait_for(lambda: engine.report().n_cancelled == before.n_cancelled + 4)
    assert engine.report().n_running == 0
    assert engine.cache.used_share == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_nobody_meant_tells_the_log_and_not_the_client(serve: Callable[..., Running], shipped: Model, caplog: pytest.LogCaptureFixture,
                                                                monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    running = serve(shipped=shipped)
    asked = {"prompt": "A word that nobody else says: xylograph", "max_tokens": 4, "seed": 1, "stream": stream}

    def fails() -> None:
        raise RuntimeError("in /the/house")
    with caplog.at_level("DEBUG"):
        with monkeypatch.context() as patch:
            patch.setattr(running.engine(), "step", fails)
            failed = running.client.post("/v1/completions", json=asked)
        assert running.client.post("/v1/completions", json=asked).status_code == 200  # and the server goes on
    assert failed.status_code == 500
    assert "the server failed (RuntimeError); its log says more" in failed.text
    assert "house" not in failed.text
    assert "Traceback" not in failed.text
    assert "in /the/house" in caplog.text
    assert "xylograph" not in caplog.text


def test_a_slow_reader_holds_up_nobody_and_loses_nothing(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(shipped=shipped)
    running.buffers(16_384)
    body = json.dumps({"prompt": "Once", "max_tokens": 300, "n": 4, "stream": True, "ignore_eos": True, "seed": 7}).encode()
    with socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", running.port))
        wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        wait_for(lambda: running.engine().report().n_running == 4)
        assert running.post("/v1/completions", prompt="Once", max_tokens=5, seed=1)["usage"]["completion_tokens"] == 5
        wait_for(lambda: running.engine().report().n_running == 0)  # written to the end, and its pages free, while nothing was read
        assert running.engine().cache.used_share == 0
        desk = running.served.find(None)[1]
        assert desk.n_under_way == 4  # it waits for its reader
        answer = b"".join(iter(lambda: wire.recv(1 << 20), b"")).decode()
    events = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    assert "data: [DONE]" in answer
    whole = running.post("/v1/completions", prompt="Once", max_tokens=300, n=4, ignore_eos=True, seed=7)["choices"]
    assert ["".join(event["choices"][0]["text"] for event in events if event["choices"][0]["index"] == i) for i in range(4)] == [one["text"] for one in whole]
    wait_for(lambda: desk.n_under_way == 0)


def test_too_many_are_told_when_to_come_again(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(max_waiting=0, shipped=shipped)
    asked = {"prompt": "Once", "max_tokens": 60, "n": 64, "ignore_eos": True}
    first = threading.Thread(target=lambda: running.client.post("/v1/completions", json=asked))
    first.start()
    wait_for(lambda: running.engine().report().n_running > 0)
    answer = running.client.post("/v1/completions", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    first.join()
    assert running.client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_a_stopping_server_ends_what_is_under_way_first(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(shipped=shipped)
    answers = []
    first = threading.Thread(target=lambda: answers.append(running.client.post("/v1/completions", json={"prompt": "Once", "max_tokens": 300,
                                                                                                         "ignore_eos": True})))
    first.start()
    wait_for(lambda: running.engine().report().n_running == 1)
    running.ask_to_stop()
    first.join()
    assert answers[0].json()["usage"]["completion_tokens"] == 300
    running.stop()


def test_one_bad_request_among_others_fails_alone(server: Running) -> None:
    answers: list[Any] = []
    bodies = [{"model": "shipped", "prompt": "Once", "max_tokens": 20, "seed": i} for i in range(6)] + [{"prompt": "Once", "regex": "("}]
    threads = [threading.Thread(target=lambda body=body: answers.append((body, server.client.post("/v1/completions", json=body)))) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for _, answer in answers) == [200] * 6 + [400]
    for body, answer in answers:
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["text"] == server.post("/v1/completions", **body)["choices"][0]["text"]
