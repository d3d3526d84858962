"""OpenAI's own client, unchanged but for its address."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Literal

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


def test_a_chat(client: openai.OpenAI, shipped: Model) -> None:
    answer = client.chat.completions.create(model="shipped", messages=HELLO, max_completion_tokens=10, seed=1, top_p=0.9)
    assert answer.choices[0].message.content == shipped.chat(HELLO, max_tokens=10, seed=1, top_p=0.9).text
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 10


def test_a_chat_in_pieces(client: openai.OpenAI, shipped: Model) -> None:
    stream = client.chat.completions.create(model="shipped", messages=HELLO, max_tokens=10, seed=1, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == shipped.chat(HELLO, max_tokens=10, seed=1).text
    assert chunks[-1].usage.completion_tokens == 10


def test_many_at_once(server: Running, shipped: Model) -> None:
    async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
        answer = await client.completions.create(model="shipped", prompt="Once upon", max_tokens=10, seed=seed)
        return answer.choices[0].text

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(8)))
    assert asyncio.run(all_of_them()) == [shipped.generate("Once upon", max_tokens=10, seed=seed).text for seed in range(8)]


class Weather(BaseModel):
    city: Literal["Bern", "Rome"]
    rain: bool


def test_an_answer_parsed_into_a_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="shipped", messages=HELLO, response_format=Weather, max_tokens=80, seed=1)
    assert isinstance(answer.choices[0].message.parsed, Weather)


def test_a_tool_whose_arguments_are_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="shipped", messages=HELLO, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required",
                                           parallel_tool_calls=False,
                                           max_tokens=120, seed=1)
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


def test_a_call_and_its_result_go_back_into_the_conversation(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}]
    first = client.chat.completions.create(model="shipped", messages=HELLO, tools=tools, tool_choice="required", parallel_tool_calls=False, max_tokens=60,
                                           seed=1)
    [call] = first.choices[0].message.tool_calls[:1]
    assert json.loads(call.function.arguments) == {}
    said = first.choices[0].message.model_dump(exclude_unset=True)
    told = [*HELLO, said, *({"role": "tool", "tool_call_id": each.id, "content": "noon"} for each in first.choices[0].message.tool_calls)]
    assert client.chat.completions.create(model="shipped", messages=told, tools=tools, max_tokens=5, seed=1).usage.completion_tokens == 5


def test_vectors(client: openai.OpenAI, shipped: Model) -> None:
    told = client.embeddings.create(model="shipped", input=["snow"])  # the client asks for base64 by itself
    assert told.data[0].embedding == pytest.approx(shipped.embed(["snow"])[0].tolist(), abs=1e-3)


def test_faults_are_the_clients_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.BadRequestError, match="is out of range"):
        client.chat.completions.create(model="shipped", messages=HELLO, temperature=-1)
