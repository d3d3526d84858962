"""No field of a request passes unread: what the server takes it looks at, or says why nothing depends on it."""
from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

import pytest

import pellucid.serve.app  # noqa: F401, with which every shape is known
from pellucid.api import Model
from pellucid.serve.shapes import Shape, _shapes

from .conftest import Running

INERT = {  # shape or field -> why no answer depends on it
    "user": "the caller's own", "metadata": "the caller's own", "Metadata": "the caller's own", "id": "a client's number for what it sends back",
    "status": "of what a client sends back: it ended, or it would not be sent", "phase": "what a message was for, which no template has a word for",
    "description": "of a schema, for people", "JsonSchema.name": "of a schema, for people", "strict": "what is held is always held",
    "service_tier": "there is one, and it is also the default", "cache_control": "what begins alike is always shared", "annotations": "an empty list, or none",
    "include": "an empty list, or none", "summary": "an empty list, or none", "modalities": "text, or none", "store": "the answer says that nothing was",
    "signature": "a receipt of the answer's own server"}
HELD = {"Function.strict", "Function.description", "ResponsesTool.strict", "ResponsesTool.description", "AnthropicTool.description", "Format.name",
        "ResponsesRequest.metadata", "ResponsesRequest.user", "ToolCall.id", "ToolUseBlock.id"}  # of those names, the ones that are read after all
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMA_FORMAT = {"type": "json_schema", "name": "a", "schema": SCHEMA}
CALL = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
FUNCTION = {"name": "f", "parameters": SCHEMA}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", dict(prompt="a", max_tokens=1, stream=True, stream_options={"include_usage": True}, echo=True, logprobs=1)),
    ("/v1/chat/completions", dict(messages=[*HELLO, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c", "content": "a"}],
                                  tools=[{"type": "function", "function": FUNCTION}], tool_choice={"type": "function", "function": {"name": "f"}},
                                  max_tokens=1, stream=True, stream_options={"include_usage": True})),
    ("/v1/chat/completions", dict(messages=HELLO, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}, max_tokens=1)),
    ("/v1/responses", dict(input=[*HELLO, {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}]},
                                  {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                                  {"type": "function_call_output", "call_id": "c", "output": "a"}],
                           tools=[{"type": "function", **FUNCTION}], tool_choice={"type": "function", "name": "f"}, max_output_tokens=1)),
    ("/v1/responses", dict(input="a", text={"format": SCHEMA_FORMAT}, max_output_tokens=1)),
    ("/v1/responses", dict(input="a", reasoning={"effort": "high"}, max_output_tokens=1)),
    ("/v1/messages", dict(messages=[*HELLO, {"role": "assistant", "content": [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "a"},
                                                                              {"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
                                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "a"}]}],
                          tools=[{"name": "f", "input_schema": SCHEMA}], tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
                          max_tokens=1)),
    ("/v1/messages", dict(messages=HELLO, thinking={"type": "enabled"}, max_tokens=1)),
    ("/v1/embeddings", dict(input="a")),
    ("/tokenize", dict(prompt="a")),
    ("/tokenize", dict(messages=HELLO, special=False)),
    ("/detokenize", dict(tokens=[1])),
]
TOLD = ["reasoning_effort", "enable_thinking"]  # to the template, which has no use for them and says so


def leaves(annotation: Any) -> Iterator[Any]:
    """What a field may hold, None left out."""
    if get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from leaves(each)
    elif get_origin(annotation) is Literal:
        yield from (each for each in get_args(annotation) if each is not None)
    elif annotation is not type(None):
        yield annotation


def one_value(annotation: Any) -> bool:
    """Whether there is nothing to be read off it: one word at most."""
    found = list(leaves(annotation))
    return not found or (len(found) == 1 and isinstance(found[0], str | bool))


def test_every_field_of_every_request_is_read(serve: Callable[..., Running], caller: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    server, seen = serve(it=caller), set[tuple[str, str]]()

    def noting(self: Shape, name: str) -> Any:
        fields = type(self).__pydantic_fields__
        seen.update((type(self).__name__, field) for field in (fields if name == "model_dump" else [name] if name in fields else []))
        return object.__getattribute__(self, name)
    monkeypatch.setattr(Shape, "__getattribute__", noting, raising=False)
    answers = [server.client.post(path, json=body) for path, body in ASKED]
    refused = [answer.json()["error"]["message"] for answer in answers if answer.status_code != 200]
    assert [message.partition(", so")[0] for message in refused] == [f"chat template 'default' never reads {name!r}" for name in TOLD]
    unread = {f"{shape.__name__}.{name}" for shape in _shapes(Shape) if shape.__name__ != "Sampled" for name, field in shape.__pydantic_fields__.items()
              if (shape.__name__, name) not in seen and not one_value(field.annotation)}
    assert {field for field in unread if not {field, *field.split(".")} & set(INERT)} == set()
    assert {name for name in INERT if not any({field, *field.split(".")} & {name} for field in unread)} == set()  # and each reason is one
    assert not unread & HELD
