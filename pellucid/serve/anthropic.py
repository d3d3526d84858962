"""Anthropic's messages: https://docs.anthropic.com/en/api/messages. A request becomes a chat, and the answer blocks."""
from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pellucid.api import Completion
from pellucid.errors import BadRequest
from pellucid.serve.answers import Json, about, heard
from pellucid.serve.blocks import Block, Blocks, What
from pellucid.serve.exchange import Exchange
from pellucid.serve.openai import Chat, Served, asking
from pellucid.serve.shapes import ChatRequest, Shape, read

CacheControl = dict[str, Any]  # what begins alike is always shared here: nothing has to be marked, and nothing is wrong with a mark


def _read_only(content: Any) -> Any:
    """Content in blocks. Raises ValueError for one that would have to be seen or opened, by its name."""
    for i, block in enumerate(content if isinstance(content, list) else ()):
        if isinstance(block, Mapping) and (kind := block.get("type")) in ("image", "document", "search_result", "container_upload"):
            raise ValueError(f"block {i} is of type {kind!r}, and this model reads text only. Leave it out, or say in words what it shows")
    return content


class TextBlock(Shape):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Literal[None] = None


class ThinkingBlock(Shape):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Shape):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Json
    cache_control: CacheControl | None = None


class ToolResultBlock(Shape):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[str | list[TextBlock], BeforeValidator(_read_only)] = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class Turn(Shape):
    role: Literal["user", "assistant"]
    content: Annotated[str | list[Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]],
                       BeforeValidator(_read_only)]


class AnthropicTool(Shape):
    name: str
    description: str | None = None
    input_schema: Json
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Shape):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinks(Shape):
    type: Literal["enabled", "disabled"]
    budget_tokens: Literal[None] = None  # a budget would have to be kept, and is not


class Metadata(Shape):
    user_id: str | None = None


class MessagesRequest(Shape):
    model: str | None = None
    max_tokens: int
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinks | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    def chat(self) -> ChatRequest:
        """The same in OpenAI's words. Raises BadRequest."""
        same = ("model", "max_tokens", "temperature", "top_p", "top_k")
        body: Json = {name: value for name in same if (value := getattr(self, name)) is not None}
        body["messages"] = [*([{"role": "system", "content": _text(self.system)}] if self.system is not None else []),
                            *(message for turn in self.messages for message in _messages(turn))]
        if self.stop_sequences:
            body["stop"] = self.stop_sequences
        if self.thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": self.thinking.type == "enabled"}
        if self.tools:
            body["tools"] = [{"type": "function", "function": {"name": tool.name, "parameters": tool.input_schema,
                                                               **({"description": tool.description} if tool.description is not None else {})}}
                             for tool in self.tools]
        if (choice := self.tool_choice) is not None:
            if choice.type == "tool" and choice.name is None:
                raise BadRequest("tool_choice is of type tool and names none", field="tool_choice")
            if choice.type != "tool" and choice.name is not None:
                raise BadRequest(f"tool_choice is of type {choice.type} and names {choice.name!r:.80}, which nobody would read. Say type='tool', or leave "
                                 f"the name out", field="tool_choice")
            body["tool_choice"] = {"type": "function", "function": {"name": choice.name}} if choice.type == "tool" else \
                {"any": "required"}.get(choice.type, choice.type)
            if choice.disable_parallel_tool_use is not None and self.tools:
                body["parallel_tool_calls"] = not choice.disable_parallel_tool_use
        return read(ChatRequest, body)[0]


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _messages(turn: Turn) -> list[Json]:
    """A turn as OpenAI's messages: results of tools are messages of their own, before what else a user says."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    results = [{"role": "tool", "tool_call_id": block.tool_use_id, "content": ("error: " if block.is_error else "") + _text(block.content)}
               for block in turn.content if isinstance(block, ToolResultBlock)]
    calls = [{"id": block.id, "type": "function", "function": {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}}
             for block in turn.content if isinstance(block, ToolUseBlock)]
    thinking = "".join(block.thinking for block in turn.content if isinstance(block, ThinkingBlock))
    text = "".join(block.text for block in turn.content if isinstance(block, TextBlock))
    if ((calls or thinking) and turn.role != "assistant") or (results and turn.role != "user"):
        raise BadRequest(f"a turn of the {turn.role} has blocks that are the other side's: calls and thinking are the assistant's, results the user's",
                         field="messages")
    said: Json = {"role": turn.role, "content": text}
    if calls:
        said["tool_calls"] = calls
    if thinking:
        said["reasoning_content"] = thinking
    return [*results, *([said] if text or calls or thinking or not results else [])]


async def messages(served: Served, exchange: Exchange) -> None:
    asked = await exchange.body(MessagesRequest)
    name, desk = served.find(asked.model)
    wants = await asyncio.to_thread(lambda: Chat(served, desk.model, asked.chat()))
    reader, blocks, whole = wants.reader(), Blocks(), None
    async with asking(exchange, name, desk, lambda: wants.prepare([wants.options])) as ticket:
        head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": name}
        if asked.stream:
            begun = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": ticket.n_prompt, "output_tokens": 0}}
            await exchange.event({"type": "message_start", "message": begun}, "message_start")
        async for said in ticket.said():
            for what, block, piece in blocks.take(heard(reader, said)):
                await _tell(exchange, what, block, piece, bool(asked.stream))
            whole = said.completion
        assert whole is not None
        for what, block, piece in blocks.end():
            await _tell(exchange, what, block, piece, bool(asked.stream))
        reused = whole.usage.reused_tokens  # the prompt is these and the input tokens together: https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
        used = {"input_tokens": ticket.n_prompt - reused, "output_tokens": ticket.n_written, "cache_read_input_tokens": reused}
        ended = {"stop_reason": _stop_reason(whole, blocks), "stop_sequence": whole.stopped_by if isinstance(whole.stopped_by, str) else None}
        if asked.stream:
            await exchange.event({"type": "message_delta", "delta": ended, "usage": used}, "message_delta")
            await exchange.event({"type": "message_stop"}, "message_stop")
            return
    more = {name: value for name, value in about(whole).items() if name != "stop_reason"}
    await exchange.json({**head, "content": [_whole(block) for block in blocks.all], **ended, "usage": used, **more})


def _stop_reason(whole: Completion, blocks: Blocks) -> str:
    if whole.finish_reason != "stop":
        return "max_tokens"
    if blocks.called:
        return "tool_use"
    return "stop_sequence" if isinstance(whole.stopped_by, str) else "end_turn"


def _whole(block: Block) -> Json:
    if block.kind == "call":
        return {"type": "tool_use", "id": f"toolu_{block.id}", "name": block.name, "input": json.loads(block.text)}
    return {"type": "thinking", "thinking": block.text, "signature": ""} if block.kind == "thinking" else {"type": "text", "text": block.text}


async def _tell(exchange: Exchange, what: What, block: Block, piece: str, stream: bool) -> None:
    if not stream:
        return
    if what == "opens":
        empty = {"thinking": {"type": "thinking", "thinking": "", "signature": ""}, "text": {"type": "text", "text": ""},
                 "call": {"type": "tool_use", "id": f"toolu_{block.id}", "name": block.name, "input": {}}}[block.kind]
        await exchange.event({"type": "content_block_start", "index": block.index, "content_block": empty}, "content_block_start")
    elif what == "says":
        kind, field = {"thinking": ("thinking_delta", "thinking"), "text": ("text_delta", "text"), "call": ("input_json_delta", "partial_json")}[block.kind]
        await exchange.event({"type": "content_block_delta", "index": block.index, "delta": {"type": kind, field: piece}}, "content_block_delta")
    else:
        await exchange.event({"type": "content_block_stop", "index": block.index}, "content_block_stop")
