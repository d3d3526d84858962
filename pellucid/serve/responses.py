"""OpenAI's responses: https://platform.openai.com/docs/api-reference/responses. Nothing is stored: what went before comes with the request."""
from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from pellucid.api import Completion
from pellucid.errors import BadRequest
from pellucid.serve.answers import Json, heard
from pellucid.serve.blocks import Block, Blocks
from pellucid.serve.exchange import Exchange
from pellucid.serve.openai import Chat, Served, asking
from pellucid.serve.shapes import ChatRequest, Shape, read, text_of


class InputMessage(Shape):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(text_of)]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class InputCall(Shape):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class InputResult(Shape):
    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[str, BeforeValidator(text_of)]
    id: str | None = None
    status: str | None = None


class InputReasoning(Shape):
    type: Literal["reasoning"]
    id: str | None = None
    summary: Annotated[list[Any], Field(max_length=0)] | None = None  # none is ever written here
    content: list[Json] | None = None
    encrypted_content: Literal[None] = None
    status: str | None = None


def _shape_of(item: Any) -> str | None:
    """Which shape an item has to have: else what is wrong with it would be told of another's."""
    kind = item.get("type") if isinstance(item, Mapping) else getattr(item, "type", None)
    return {None: "InputMessage", "message": "InputMessage", "function_call": "InputCall", "function_call_output": "InputResult",
            "reasoning": "InputReasoning"}.get(kind if isinstance(kind, str | None) else "")


Item = Annotated[Annotated[InputMessage, Tag("InputMessage")] | Annotated[InputCall, Tag("InputCall")] | Annotated[InputResult, Tag("InputResult")]
                 | Annotated[InputReasoning, Tag("InputReasoning")],
                 Discriminator(_shape_of, custom_error_type="item",
                               custom_error_message="an item is a message, function_call, function_call_output or reasoning")]


class Format(Shape):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[Json | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextSettings(Shape):
    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesTool(Shape):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class ResponsesToolChoice(Shape):
    type: Literal["function"]
    name: str


class Reasoning(Shape):
    effort: str | None = None
    summary: Literal[None] = None


class ResponsesRequest(Shape):
    model: str | None = None
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    store: bool | None = None  # True is OpenAI's default and what clients send unasked; the answer says that it was not
    previous_response_id: Literal[None] = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    include: list[Any] | None = Field(default=None, max_length=0)
    # Not of OpenAI's
    seed: int | None = None
    top_k: int | None = None
    stop: str | list[str] | None = None

    def chat(self) -> ChatRequest:
        """The same as a chat. Raises BadRequest."""
        same = ("model", "temperature", "top_p", "parallel_tool_calls", "user", "seed", "top_k", "stop")
        body: Json = {name: value for name in same if (value := getattr(self, name)) is not None}
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else _messages(self.input)
        body["messages"] = [*([{"role": "system", "content": self.instructions}] if self.instructions is not None else []), *items]
        if self.max_output_tokens is not None:
            body["max_tokens"] = self.max_output_tokens
        if self.tools:
            body["tools"] = [{"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type"})} for tool in self.tools]
        if self.tool_choice is not None:
            named = isinstance(self.tool_choice, ResponsesToolChoice)
            body["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}} if named else self.tool_choice  # type: ignore[union-attr]
        form = self.text.format if self.text is not None else None
        if form is not None and form.type != "json_schema" and (unread := [name for name in ("schema_", "name", "strict", "description")
                                                                          if getattr(form, name) is not None]):
            raise BadRequest(f"text.format is of type {form.type} and has {unread[0].rstrip('_')}, which nobody would read. Say type='json_schema', or "
                             f"leave it out", field="text")
        if form is not None and form.type != "text":
            body["response_format"] = {"type": form.type} if form.type == "json_object" else \
                {"type": "json_schema", "json_schema": {"name": form.name or "answer", **({} if form.schema_ is None else {"schema": form.schema_})}}
        if self.reasoning is not None and self.reasoning.effort is not None:
            body["reasoning_effort"] = self.reasoning.effort
        return read(ChatRequest, body)[0]


def _messages(items: list[Any]) -> list[Json]:
    """Calls and reasoning belong to the assistant's message that they stand beside."""
    out: list[Json] = []
    for item in items:
        if isinstance(item, InputResult):
            out.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
            continue
        if isinstance(item, InputMessage):
            if item.role == "assistant" and out and out[-1]["role"] == "assistant" and out[-1]["content"] is None and "tool_calls" not in out[-1]:
                out[-1]["content"] = item.content  # after its reasoning
            else:
                out.append({"role": item.role, "content": item.content})
            continue
        if not out or out[-1]["role"] != "assistant":
            out.append({"role": "assistant", "content": None})
        if isinstance(item, InputCall):
            call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
            out[-1].setdefault("tool_calls", []).append(call)
        else:
            out[-1]["reasoning_content"] = out[-1].get("reasoning_content", "") + "".join(str(part.get("text", "")) for part in item.content or ())
    if not out:
        raise BadRequest("input is an empty list; expected a text, or messages", field="input")
    return out


class _Told:
    """The events of a stream, numbered."""

    def __init__(self, exchange: Exchange, stream: bool) -> None:
        self._exchange, self._stream, self._n = exchange, stream, 0

    async def __call__(self, kind: str, **fields: Any) -> None:
        if self._stream:
            await self._exchange.event({"type": kind, "sequence_number": self._n, **fields}, kind)
            self._n += 1


async def responses(served: Served, exchange: Exchange) -> None:
    asked = await exchange.body(ResponsesRequest)
    name, desk = served.find(asked.model)
    wants = await asyncio.to_thread(lambda: Chat(served, desk.model, asked.chat()))
    reader, blocks, whole = wants.reader(), Blocks(), None
    head = _head(asked, name)
    tell = _Told(exchange, bool(asked.stream))
    async with asking(exchange, name, desk, lambda: wants.prepare([wants.options])) as ticket:
        begun = {**head, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
        await tell("response.created", response=begun)
        await tell("response.in_progress", response=begun)
        async for said in ticket.said():
            for what, block, piece in blocks.take(heard(reader, said)):
                await _block(tell, what, block, piece)
            whole = said.completion
        assert whole is not None
        for what, block, piece in blocks.end():
            await _block(tell, what, block, piece)
        done = {**_done(head, blocks, whole, ticket.n_prompt), **wants.about(whole, blocks.text, called=blocks.called)}
        await tell(f"response.{done['status']}", response=done)
    if not asked.stream:
        await exchange.json(done)


def _head(asked: ResponsesRequest, name: str) -> Json:
    form = asked.text.format if asked.text is not None else None
    choice = asked.tool_choice.model_dump() if isinstance(asked.tool_choice, ResponsesToolChoice) else asked.tool_choice or "auto"
    return {"id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()), "model": name, "error": None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens, "metadata": asked.metadata or {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False, "previous_response_id": None,
            "reasoning": {"effort": asked.reasoning.effort if asked.reasoning is not None else None, "summary": None}, "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature, "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "text": {"format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_none=True)}, "tool_choice": choice,
            "tools": [{**tool.model_dump(), "strict": tool.strict is True} for tool in asked.tools or ()], "truncation": "disabled", "user": asked.user}


def _done(head: Json, blocks: Blocks, whole: Completion, n_prompt: int) -> Json:
    cut = whole.finish_reason != "stop"
    usage = {"input_tokens": n_prompt, "input_tokens_details": {"cached_tokens": whole.usage.reused_tokens}, "output_tokens": len(whole.token_ids),
             "output_tokens_details": {"reasoning_tokens": whole.usage.thinking_tokens}, "total_tokens": n_prompt + len(whole.token_ids)}
    return {**head, "status": "incomplete" if cut else "completed", "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [_item(block, "completed") for block in blocks.all], "usage": usage}


def _item(block: Block, status: str) -> Json:
    if block.kind == "call":
        return {"type": "function_call", "id": f"fc_{block.id}", "call_id": f"call_{block.id}", "name": block.name, "arguments": block.text, "status": status}
    if block.kind == "thinking":
        return {"type": "reasoning", "id": f"rs_{block.id}", "summary": [], "content": [_part(block)] if block.text else [], "status": status}
    return {"type": "message", "id": f"msg_{block.id}", "role": "assistant", "status": status, "content": [_part(block)] if block.text else []}


def _part(block: Block) -> Json:
    return {"type": "reasoning_text", "text": block.text} if block.kind == "thinking" else \
        {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


async def _block(tell: _Told, what: str, block: Block, piece: str) -> None:
    item_id = _item(block, "")["id"]
    place: Json = {"item_id": item_id, "output_index": block.index}
    name, field = {"call": ("function_call_arguments", "arguments"), "thinking": ("reasoning_text", "text"), "text": ("output_text", "text")}[block.kind]
    inside = {} if block.kind == "call" else {"content_index": 0}
    more = {"logprobs": []} if block.kind == "text" else {}
    if what == "opens":
        await tell("response.output_item.added", output_index=block.index, item=_item(block, "in_progress"))
        if inside:
            await tell("response.content_part.added", **place, **inside, part=_part(block))
    elif what == "says":
        await tell(f"response.{name}.delta", **place, **inside, delta=piece, **more)
    else:
        named = {"name": block.name} if block.kind == "call" else {}
        await tell(f"response.{name}.done", **place, **inside, **{field: block.text}, **named, **more)
        if inside:
            await tell("response.content_part.done", **place, **inside, part=_part(block))
        await tell("response.output_item.done", output_index=block.index, item=_item(block, "completed"))
