"""OpenAI's and Anthropic's own clients, unchanged but for their address."""
from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from typing import Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel

from pellucid.api import Model

from .conftest import Running

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat(client: openai.OpenAI, model: Model, name: str) -> None:
    answer = client.chat.completions.create(model=name, messages=HELLO, max_completion_tokens=10, seed=1, top_p=0.9)
    assert answer.choices[0].message.content == model.chat(HELLO, max_tokens=10, seed=1, top_p=0.9).text
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 10


def test_a_chat_in_pieces(client: openai.OpenAI, model: Model, name: str) -> None:
    stream = client.chat.completions.create(model=name, messages=HELLO, max_tokens=10, seed=1, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == model.chat(HELLO, max_tokens=10, seed=1).text
    assert chunks[-1].usage.completion_tokens == 10


def test_many_at_once(server: Running, model: Model, name: str) -> None:
    async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
        answer = await client.completions.create(model=name, prompt="Once upon", max_tokens=10, seed=seed)
        return answer.choices[0].text

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(8)))
    assert asyncio.run(all_of_them()) == [model.generate("Once upon", max_tokens=10, seed=seed).text for seed in range(8)]


def test_a_chat_in_pieces_of_a_client_that_does_not_wait(server: Running, model: Model, name: str) -> None:
    async def said() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(model=name, messages=HELLO, max_tokens=10, seed=1, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert asyncio.run(said()) == model.chat(HELLO, max_tokens=10, seed=1).text


@pytest.mark.curl
def test_curl_as_the_help_has_it(server: Running, model: Model, name: str) -> None:
    def curl(path: str, **body: object) -> str:
        done = subprocess.run(["curl", "-sS", "--fail", "--noproxy", "*", f"{server.url}/v1/{path}", "-d", json.dumps(dict(body, model=name))],
                              capture_output=True, text=True, check=True, timeout=60)
        return done.stdout
    mine = model.generate("Once upon a time", max_tokens=10, seed=1, temperature=1.0).text
    assert json.loads(curl("completions", prompt="Once upon a time", max_tokens=10, seed=1))["choices"][0]["text"] == mine
    *chunks, end = [line.removeprefix("data: ") for line in curl("completions", prompt="Once upon a time", max_tokens=10, seed=1, stream=True).split("\n\n")
                    if line]
    assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == mine
    assert end == "[DONE]"


class Weather(BaseModel):
    city: Literal["Bern", "Rome"]
    rain: bool


def test_an_answer_parsed_into_a_class(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.parse(model=name, messages=HELLO, response_format=Weather, max_tokens=80, seed=1)
    assert isinstance(answer.choices[0].message.parsed, Weather)


def test_a_tool_whose_arguments_are_parsed(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.parse(model=name, messages=HELLO, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required",
                                           parallel_tool_calls=False,
                                           max_tokens=120, seed=1)
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


def test_a_call_and_its_result_go_back_into_the_conversation(client: openai.OpenAI, name: str) -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}]
    first = client.chat.completions.create(model=name, messages=HELLO, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=60,
                                           seed=1)
    [call] = first.choices[0].message.tool_calls[:1]
    assert json.loads(call.function.arguments) == {}
    said = first.choices[0].message.model_dump(exclude_unset=True)
    told = [*HELLO, said, *({"role": "tool", "tool_call_id": each.id, "content": "noon"} for each in first.choices[0].message.tool_calls)]
    assert client.chat.completions.create(model=name, messages=told, tools=tools, max_tokens=5, seed=1).usage.completion_tokens == 5


def test_vectors(client: openai.OpenAI, model: Model, name: str) -> None:
    told = client.embeddings.create(model=name, input=["snow"])  # the client asks for base64 by itself
    assert told.data[0].embedding == pytest.approx(model.embed(["snow"])[0].tolist(), abs=1e-3)


def test_faults_are_the_clients_own_errors(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.BadRequestError, match="is out of range"):
        client.chat.completions.create(model=name, messages=HELLO, temperature=-1)


# OpenAI's responses

def test_a_response(client: openai.OpenAI, model: Model, name: str) -> None:
    answer = client.responses.create(model=name, input="Hello", max_output_tokens=10, temperature=0)
    assert answer.output_text == model.chat(HELLO, max_tokens=10, temperature=0).text
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 10


def test_a_response_in_pieces(client: openai.OpenAI, name: str) -> None:
    with client.responses.stream(model="abc", input=HELLO, max_output_tokens=10, temperature=0) as stream:
        told = list(stream)
        final = stream.get_final_response()
    assert "".join(event.delta for event in told if event.type == "response.output_text.delta") == "YES" == final.output_text
    assert [event.sequence_number for event in told] == list(range(len(told)))
    kinds = [event.type for event in client.responses.create(model=name, input=HELLO, instructions="Be kind.", max_output_tokens=3, stream=True)]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")


def test_a_response_parsed_into_a_class(client: openai.OpenAI, name: str) -> None:
    answer = client.responses.parse(model=name, input="Hello", text_format=Weather, max_output_tokens=80, extra_body={"seed": 1})
    assert isinstance(answer.output_parsed, Weather)


def test_a_function_call_in_a_response_and_its_result(client: openai.OpenAI, name: str) -> None:
    tools = [{"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}, "strict": True}]
    first = client.responses.create(model=name, input=HELLO, tools=tools, tool_choice={"type": "function", "name": "now"}, max_output_tokens=60)
    [call] = first.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "now", {})
    told = [*HELLO, call.model_dump(exclude_none=True), {"type": "function_call_output", "call_id": call.call_id, "output": "noon"}]
    free = [{key: value for key, value in tools[0].items() if key != "strict"}]
    assert client.responses.create(model=name, input=told, tools=tools, max_output_tokens=4).usage.output_tokens == 4
    assert [client.responses.create(model=name, input="Hi", tools=each, max_output_tokens=1).tools[0].strict for each in (tools, free)] == [True, False]


def test_what_would_have_to_be_stored_is_refused(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model=name, input="Hello", previous_response_id="resp_1")


# Anthropic's messages

@pytest.fixture
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_a_message(claude: anthropic.Anthropic, model: Model, name: str) -> None:
    answer = claude.messages.create(model=name, max_tokens=10, messages=HELLO, system="Be kind.", extra_body={"temperature": 0})
    mine = model.chat([{"role": "system", "content": "Be kind."}, *HELLO], max_tokens=10, temperature=0)
    assert [block.text for block in answer.content] == [mine.text]
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 10)
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens == mine.usage.prompt_tokens  # what was found again counts apart


def test_a_message_in_pieces(claude: anthropic.Anthropic, model: Model, name: str) -> None:
    with claude.messages.stream(model=name, max_tokens=10, messages=HELLO, extra_body={"temperature": 0}) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == model.chat(HELLO, max_tokens=10, temperature=0).text == final.content[0].text
    assert final.stop_reason == "max_tokens"


def test_a_tool_is_used_and_its_result_goes_back(claude: anthropic.Anthropic, name: str) -> None:
    tools = [{"name": "now", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}]
    forced = {"type": "tool", "name": "now"}
    with claude.messages.stream(model=name, max_tokens=60, messages=HELLO, tools=tools, tool_choice=forced) as stream:
        first = stream.get_final_message()
    [use] = first.content
    assert (use.type, use.name, use.input, first.stop_reason) == ("tool_use", "now", {}, "tool_use")
    said = {"role": "assistant", "content": [{"type": "tool_use", "id": use.id, "name": "now", "input": {}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "noon"}]}
    assert claude.messages.create(model=name, max_tokens=3, messages=[*HELLO, said, result], tools=tools).usage.output_tokens == 3


def test_faults_have_anthropics_shape(claude: anthropic.Anthropic, name: str) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not served here") as raised:
        claude.messages.create(model="claude", max_tokens=3, messages=HELLO)
    assert raised.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="of type auto and names 'now', which nobody would read"):
        claude.messages.create(model=name, max_tokens=3, messages=HELLO, tool_choice={"type": "auto", "name": "now"})
    image = {"type": "image", "source": {"type": "url", "url": "x"}}
    for content in ([image], [{"type": "tool_result", "tool_use_id": "a", "content": [image]}]):
        with pytest.raises(anthropic.BadRequestError, match="block 0 is of type 'image', and this model reads text only"):
            claude.messages.create(model=name, max_tokens=3, messages=[{"role": "user", "content": content}])
    with pytest.raises(anthropic.BadRequestError, match=r"thinking.budget_tokens: nothing of the kind is done here, and it is 1024. Leave it out"):
        claude.messages.create(model=name, max_tokens=2000, messages=HELLO, thinking={"type": "enabled", "budget_tokens": 1024})
