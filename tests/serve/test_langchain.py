"""langchain-openai, unchanged but for its address."""
from __future__ import annotations

from typing import Literal

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from pellucid.api import Model

from .conftest import Running


@pytest.fixture
def chat(server: Running, name: str) -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=10, max_retries=0)


def test_it_answers_whole_and_in_pieces(chat: ChatOpenAI, model: Model) -> None:
    mine = model.chat([{"role": "user", "content": "Hello"}], max_tokens=10, temperature=0).text
    assert chat.invoke("Hello").text == mine
    assert "".join(piece.text for piece in chat.stream([HumanMessage("Hello")])) == mine


class Weather(BaseModel):
    """What it is like."""

    city: Literal["Bern", "Rome"]
    rain: bool


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_it_parses_into_a_class(chat: ChatOpenAI, method: str) -> None:
    longer = chat.model_copy(update={"max_tokens": 120})
    assert isinstance(longer.with_structured_output(Weather, method=method).invoke("Hello"), Weather)


def test_it_calls_a_tool(chat: ChatOpenAI, name: str) -> None:
    @tool
    def now(zone: Literal["utc", "local"]) -> str:
        """The time."""
        return zone
    called = chat.model_copy(update={"max_tokens": 80}).bind_tools([now], tool_choice="now").invoke("Hello").tool_calls
    assert [call["name"] for call in called] == ["now"]
    assert called[0]["args"]["zone"] in ("utc", "local")
