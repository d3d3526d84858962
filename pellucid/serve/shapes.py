"""What may be asked over HTTP, as OpenAI's API has it: https://platform.openai.com/docs/api-reference. Every field is known; one that is not is an error.

What stands in OpenAI's API and cannot be done here is a field that has to be left at its default, so that nothing is ignored.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pellucid.errors import BadRequest, did_you_mean, nearest

Json = dict[str, Any]


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


AnyShape = TypeVar("AnyShape", bound=Shape)


class StreamOptions(Shape):
    include_usage: bool = False


class JsonSchema(Shape):
    name: str
    description: str | None = None
    schema_: Annotated[Json | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Shape):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Sampled(Shape):
    """What completions and chat have in common. Ranges are the engine's own: engine/request.py."""

    model: str | None = None  # None = the first that is served
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None  # said by the caller for their own records; nothing here depends on it
    # Not of OpenAI's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    bad_words: list[str | list[int]] | None = None
    prompt_logprobs: int | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # Lark
    gbnf: str | None = None
    include_stop_str_in_output: Literal[False] | None = None

    def options(self) -> Json:
        """As `pellucid.api.completion.Options` has them. Raises BadRequest for what contradicts itself."""
        self.held()
        same = ("temperature", "top_p", "n", "seed", "stop", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty",
                "min_tokens", "ignore_eos", "bad_words", "prompt_logprobs", "regex", "choice", "gbnf")
        out: Json = {name: value for name in same if (value := getattr(self, name)) is not None}
        if self.grammar is not None:
            out["lark"] = self.grammar
        if self.logit_bias is not None:
            out["logit_bias"] = {_id(key): value for key, value in self.logit_bias.items()}
        if (schema := _schema(self.response_format)) is not None:
            out["schema"] = schema
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options are given and stream is not true. Leave them out, or stream", field="stream_options")
        return {"reuse": True, **out}

    def held(self) -> str | None:
        """The field that holds the output to something. Raises BadRequest for more than one."""
        given = [name for name in ("response_format", "regex", "choice", "grammar", "gbnf") if getattr(self, name) is not None]
        if self.response_format is not None and self.response_format.type == "text":
            given.remove("response_format")
        if len(given) > 1:
            raise BadRequest(f"{given[0]} and {given[1]} are both given, and an output is held to one thing. Leave one out", field=given[1])
        return given[0] if given else None


class CompletionRequest(Sampled):
    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = 16  # OpenAI's default
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    logprobs_content: bool | None = None  # not of OpenAI's: log-probabilities also as a chat has them, with ids and bytes
    suffix: Literal[None] = None

    def options(self) -> Json:
        out = {**super().options(), "max_tokens": self.max_tokens}
        if self.best_of is not None:
            out["best_of"] = self.best_of
        if self.logprobs_content and self.logprobs is None:
            raise BadRequest("logprobs_content says how log-probabilities are spelled, and logprobs asks for none. Give logprobs, or leave it out",
                             field="logprobs_content")
        if self.logprobs is not None:
            out |= {"logprobs": True, "top_logprobs": self.logprobs}
            if self.echo:
                out["prompt_logprobs"] = self.logprobs
        return out


class FunctionCall(Shape):
    name: str
    arguments: str


class ToolCall(Shape):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Function(Shape):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Shape):
    type: Literal["function"]
    function: Function


class NamedFunction(Shape):
    name: str


class NamedTool(Shape):
    type: Literal["function"]
    function: NamedFunction


def text_of(content: Any) -> Any:
    """A message's content as one text. Parts of text stand one after the other; parts of another kind are refused by name."""
    if not isinstance(content, list):
        return content
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise ValueError(f"part {i} is of type {kind!r}, and this model reads text only. Leave it out, or say in words what it shows")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise ValueError(f"part {i} is of type {kind!r} and has no text")
        if unknown := set(part) - {"type", "text", "refusal", "annotations", "logprobs"}:
            raise ValueError(f"part {i} has a field that is not known: {sorted(unknown)[0]!r}")
        texts.append(text)
    return "".join(texts)


class Message(Shape):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(text_of)] = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # What a client that sends an answer back sends with it: nothing, or nothing this server ever says
    refusal: Literal[None] = None
    audio: Literal[None] = None
    function_call: Literal[None] = None
    annotations: list[Any] | None = Field(default=None, max_length=0)

    def plain(self) -> Json:
        """As chat templates read it: arguments as an object, a developer's words as the system's."""
        if self.content is None and (self.role != "assistant" or not (self.tool_calls or self.reasoning_content)):
            raise BadRequest(f"a message of the role {self.role!r} has no content{', and calls no tool' if self.role == 'assistant' else ''}",
                             field="messages")
        for name, role in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, name) and self.role != role:
                raise BadRequest(f"a message of the role {self.role!r} has {name}, and only one of the role {role!r} may. Leave it out", field="messages")
        out: Json = {"role": "system" if self.role == "developer" else self.role, "content": self.content or ""}
        out |= {key: value for key in ("name", "tool_call_id", "reasoning_content") if (value := getattr(self, key)) is not None}
        if self.tool_calls:
            out["tool_calls"] = [{"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": _arguments(call)}}
                                 for call in self.tool_calls]
        return out


class ChatRequest(Sampled):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None  # for templates that read it
    chat_template_kwargs: Json | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: dict[str, str] | None = None  # the caller's own
    modalities: list[Literal["text"]] | None = None

    def options(self) -> Json:
        if self.max_tokens is not None and self.max_completion_tokens is not None and self.max_tokens != self.max_completion_tokens:
            raise BadRequest(f"max_tokens={self.max_tokens} and max_completion_tokens={self.max_completion_tokens} are both given. Leave one out",
                             field="max_tokens")
        most = self.max_tokens if self.max_tokens is not None else self.max_completion_tokens
        out = {**super().options(), "max_tokens": most}
        if self.logprobs is not None:
            out["logprobs"] = self.logprobs
        if self.top_logprobs is not None:
            out["top_logprobs"] = self.top_logprobs
        return out

    def template_args(self) -> Json:
        return {**(self.chat_template_kwargs or {}), **({} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort})}


class EmbeddingRequest(Shape):
    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    pooling: Literal["mean", "last"] | None = None  # not of OpenAI's


class TokenizeRequest(Shape):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    special: bool = False  # special tokens in the text are read as such
    as_prompt: bool = False  # with what a completion of this prompt begins with
    pieces: bool = False  # what each id stands for, too


class DetokenizeRequest(Shape):
    model: str | None = None
    tokens: list[int]
    special: bool = False  # special tokens are shown


def read(shape: type[AnyShape], body: Any, *, allow_unknown: bool = False) -> tuple[AnyShape, list[str]]:
    """A body as its shape, and the fields that were left out of it because nobody knows them. Raises BadRequest that names the field."""
    if not isinstance(body, dict):
        raise BadRequest(f"the body is {type(body).__name__}, and has to be a JSON object")
    known = {field.alias or name for name, field in shape.model_fields.items()}
    unknown = sorted(set(body) - known)
    if unknown and not allow_unknown:
        raise BadRequest(f"{unknown[0]!r} is not a field of this request.{did_you_mean(nearest(unknown[0], known))} Leave it out, or start the server "
                         f"with --allow-unknown-fields", field=unknown[0])
    try:
        return shape.model_validate({name: value for name, value in body.items() if name in known}), unknown
    except ValidationError as error:
        raise _said(error) from None


def _said(error: ValidationError) -> BadRequest:
    """The fault that lies deepest: of a field that may be several things, the one that fits best says most."""
    faults = error.errors(include_url=False)
    first = [fault for fault in faults if fault["loc"][:1] == faults[0]["loc"][:1]]
    fault = max(first, key=lambda f: (f["type"] in ("value_error", "extra_forbidden"), len(f["loc"])))
    branches = {"str", "int", *(shape.__name__ for shape in _shapes(Shape))}  # what pydantic puts into a place to say which of several types it tried
    place = ".".join(str(part) for part in fault["loc"] if not (isinstance(part, str) and ("[" in part or part in branches)))
    if fault["msg"] == "Input should be None" or fault.get("ctx", {}).get("max_length") == 0:
        told = f"nothing of the kind is done here, and it is {fault['input']!r:.80}. Leave it out"
    elif fault["type"] == "extra_forbidden":
        told = "this is not a field of the request. Leave it out"
    else:
        got = "" if fault["type"] in ("missing", "value_error") else f", got {fault['input']!r:.80}"
        told = fault["msg"].removeprefix("Value error, ") + got
    return BadRequest(f"{place}: {told[0].lower()}{told[1:]}", field=str(fault["loc"][0]) if fault["loc"] else None)


def _shapes(shape: type[Shape]) -> Iterator[type[Shape]]:
    for one in shape.__subclasses__():
        yield one
        yield from _shapes(one)


def _id(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise BadRequest(f"logit_bias has the key {key!r}; expected a token id", field="logit_bias") from None


def _schema(asked: ResponseFormat | None) -> Json | None:
    """The schema that the output is held to, None where it is free."""
    if asked is not None and asked.type != "json_schema" and asked.json_schema is not None:
        raise BadRequest(f"response_format is of type {asked.type} and has a json_schema, which nobody would read. Say type='json_schema', or leave it out",
                         field="response_format")
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"type": "object"}
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        raise BadRequest("response_format is of type json_schema and has no json_schema.schema", field="response_format")
    return asked.json_schema.schema_


def _arguments(call: ToolCall) -> Json:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError as error:
        raise BadRequest(f"the arguments of the tool call {call.id!r} are not JSON: {error}", field="messages") from None
    if not isinstance(arguments, dict):
        raise BadRequest(f"the arguments of the tool call {call.id!r} are {type(arguments).__name__}; expected a JSON object", field="messages")
    return arguments
