"""What comes back: completions as OpenAI's API spells them, whole or in chunks. https://platform.openai.com/docs/api-reference."""
from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from pellucid.api import Completion
from pellucid.engine.request import Alternatives
from pellucid.serve.desk import Said, Token
from pellucid.serve.tools import AnyReader, Call, Part
from pellucid.tokenizer import Tokenizer

Json = dict[str, Any]
FINISH = {"stop": "stop", "length": "length", "context": "length"}


def usage(prompt_tokens: int, completions: Iterable[Completion]) -> Json:
    """A prompt of several outputs counts once, as OpenAI counts it."""
    told = list(completions)
    n, reused = sum(c.usage.completion_tokens for c in told), max((c.usage.reused_tokens for c in told), default=0)
    thought = sum(c.usage.thinking_tokens for c in told)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": n, "total_tokens": prompt_tokens + n, "prompt_tokens_details": {"cached_tokens": reused},
            "completion_tokens_details": {"reasoning_tokens": thought}}


@dataclass(frozen=True)
class Head:
    """What every answer and every chunk of it begins with."""

    kind: str  # cmpl or chatcmpl
    object: str
    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def plain(self, choices: Sequence[Json], **more: Any) -> Json:
        return {"id": f"{self.kind}-{self.id}", "object": self.object, "created": self.created, "model": self.model, "choices": list(choices), **more}


class Spelled:
    """Tokens as text and bytes, for log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def one(self, token_id: int, logprob: float) -> Json:
        data = self._tokenizer.words.bytes_of(token_id)
        told = self._tokenizer.token_of(token_id) if data is None else data.decode("utf-8", errors="replace")
        special = {"special": True} if token_id in self._tokenizer.special_ids else {}  # no plain text ever becomes it
        return {"token": told, "logprob": max(logprob, -9999.0), "bytes": None if data is None else list(data), "token_id": token_id, **special}

    def pieces(self, ids: Iterable[int]) -> Iterable[Json]:
        """Of a prompt: what each id stands for, as `one` has it, but for its probability."""
        for i in ids:
            yield {name: value for name, value in self.one(i, 0.0).items() if name != "logprob"}

    def chat(self, tokens: Iterable[Token]) -> Json:
        return {"content": [{**self.one(i, p), "top_logprobs": [self.one(*other) for other in top]} for i, p, top in tokens], "refusal": None}

    def completion(self, tokens: Sequence[tuple[int, float | None, Alternatives]], offset: int = 0, *, content: bool = False) -> Json:
        """The older shape: parallel lists, and each token's alternatives by spelling: of several spelled alike, such as bytes that are no character yet, the
        likeliest. `offset`: characters of text before the first token. content: the newer shape beside them, which has them all.
        """
        names = [self.one(i, 0.0)["token"] for i, _, _ in tokens]
        special = self._tokenizer.special_ids  # which stand in no text
        offsets = list(accumulate((0 if i in special else len(name) for (i, _, _), name in zip(tokens, names, strict=True)), initial=offset))[:-1]
        tops = [{self.one(i, 0.0)["token"]: p for i, p in sorted(top, key=lambda one: one[1])} if top else None for _, _, top in tokens]
        out: Json = {"tokens": names, "token_logprobs": [p for _, p, _ in tokens], "top_logprobs": tops, "text_offset": offsets}
        if content:
            out["content"] = [{**self.one(i, p or 0.0), **({"logprob": None} if p is None else {}), "top_logprobs": [self.one(*other) for other in top]}
                              for i, p, top in tokens]
        return out


def tokens_of(completion: Completion) -> list[Token]:
    """Of a whole completion."""
    tops: Sequence[Alternatives] = completion.top_logprobs or [()] * len(completion.token_ids)
    return list(zip(completion.token_ids, completion.logprobs or (), tops, strict=True)) if completion.logprobs is not None else []


def prompt_tokens(completion: Completion) -> list[tuple[int, float | None, Alternatives]]:
    """Of its prompt: the first id has nothing before it."""
    logprobs = (None, *(completion.prompt_logprobs or ()))
    tops: Sequence[Alternatives] = ((), *(completion.prompt_top_logprobs or [()] * (len(completion.prompt_ids) - 1)))
    return list(zip(completion.prompt_ids, logprobs, tops, strict=True)) if completion.prompt_logprobs is not None else []


def about(completion: Completion) -> Json:
    """What a choice says beside OpenAI's fields: whether it is what it was held to, the seed, and what ended it."""
    out: Json = {"seed": completion.seed, "stop_reason": completion.stopped_by}
    if completion.verdict is not None:
        out["verdict"] = asdict(completion.verdict)
    return out


def prompt_told(completion: Completion, spelled: Spelled) -> list[Json | None]:
    """A prompt's tokens as a chat has an answer's; None for the first."""
    return [None if p is None else {**spelled.one(i, p), "top_logprobs": [spelled.one(*other) for other in top]} for i, p, top in prompt_tokens(completion)]


def text_choice(index: int, completion: Completion, spelled: Spelled, *, echo: str | None, logprobs: bool, prompt_logprobs: bool,
                content: bool = False) -> Json:
    tokens: list[tuple[int, float | None, Alternatives]] = [*(prompt_tokens(completion) if echo is not None else []), *tokens_of(completion)]
    out: Json = {"index": index, "text": (echo or "") + completion.text, "finish_reason": FINISH[completion.finish_reason],
                 "logprobs": spelled.completion(tokens, content=content) if logprobs else None, **about(completion)}
    if prompt_logprobs:
        out["prompt_logprobs"] = prompt_told(completion, spelled)
    return out


def heard(reader: AnyReader | None, said: Said) -> list[Part]:
    """A step's words, calls told from text where there is a reader for them."""
    parts: list[Part] = []
    for kind, piece in said.parts:
        parts += [(kind, piece)] if reader is None or kind == "thinking" else reader.push(piece)
    if said.completion is not None and reader is not None:
        parts += reader.finish()
    return parts


class ChatAnswer:
    """One choice of a chat as it comes: thinking, text and calls, each where OpenAI's shape has it. The whole is its pieces put together."""

    def __init__(self, reader: AnyReader | None, spelled: Spelled | None) -> None:
        self._reader, self._spelled = reader, spelled
        self._thinking: list[str] = []
        self._text: list[str] = []
        self.calls: list[Json] = []

    def hear(self, said: Said) -> list[Json]:
        """The deltas that a step's words become."""
        return [self._delta(part) for part in heard(self._reader, said)]

    def _delta(self, part: Part) -> Json:
        if isinstance(part, Call):
            call = {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
            self.calls.append(call)
            return {"tool_calls": [{"index": len(self.calls) - 1, **call}]}
        kind, text = part
        (self._thinking if kind == "thinking" else self._text).append(text)
        return {"reasoning_content" if kind == "thinking" else "content": text}

    def finish_reason(self, completion: Completion) -> str:
        return "tool_calls" if self.calls and completion.finish_reason == "stop" else FINISH[completion.finish_reason]

    @property
    def text(self) -> str:
        return "".join(self._text)

    def message(self) -> Json:
        text = self.text
        out: Json = {"role": "assistant", "content": text if text or not self.calls else None, "refusal": None}
        if self._thinking:
            out["reasoning_content"] = "".join(self._thinking)
        if self.calls:
            out["tool_calls"] = self.calls
        return out

    def choice(self, index: int, completion: Completion) -> Json:
        logprobs = self._spelled.chat(tokens_of(completion)) if self._spelled is not None and completion.logprobs is not None else None
        asked = self._spelled is not None and completion.prompt_logprobs is not None
        more = {"prompt_logprobs": prompt_told(completion, self._spelled)} if asked else {}  # type: ignore[arg-type]
        return {"index": index, "message": self.message(), "logprobs": logprobs, "finish_reason": self.finish_reason(completion), **more}


def tools_of(tools: Sequence[Any] | None) -> list[Mapping[str, Any]]:
    """{"name", "description", "parameters"} of each."""
    return [tool.function.model_dump(exclude_none=True, exclude={"strict"}) for tool in tools or ()]
