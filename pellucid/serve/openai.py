"""OpenAI's completions, chat and embeddings over desks. https://platform.openai.com/docs/api-reference."""
from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from pellucid.api import Completion, Model
from pellucid.api.completion import checked, chosen, each
from pellucid.engine.schema import Schema
from pellucid.engine.verdict import judge_schema
from pellucid.errors import BadRequest, BadTemplate, ModelNotFound, PromptTooLong, did_you_mean, nearest
from pellucid.serve import held
from pellucid.serve import tools as calls
from pellucid.serve.answers import ChatAnswer, Head, Json, Spelled, about, prompt_told, text_choice, tools_of, usage
from pellucid.serve.desk import Desk, Prepare, Start, Ticket
from pellucid.serve.exchange import Exchange
from pellucid.serve.shapes import ChatRequest, CompletionRequest, EmbeddingRequest, NamedTool
from pellucid.tokenizer.template import choose

MAX_CHOICES = 128  # OpenAI's limit of n
EMBED_TOKENS = 1024  # read between two steps, a tenth of a second of 7 M parameters; half of it costs a tenth of the rate


class Served:
    """The models of a server, by the names they are asked for. A model's adapters are asked for by names of their own."""

    def __init__(self, desks: dict[str, Desk], *, tool_format: str = "auto") -> None:
        self.desks, self._tool_format = desks, tool_format
        self.adapted = {adapter: name for name, desk in desks.items() for adapter in desk.model.decoder.adapters}  # an adapter's name -> its model's

    def find(self, name: str | None) -> tuple[str, Desk]:
        """Raises ModelNotFound."""
        if name is None:
            return next(iter(self.desks.items()))
        if name not in self.names:
            near = nearest(name, self.names)
            raise ModelNotFound(f"the model {name!r} is not served here.{did_you_mean(near)} Served: {', '.join(self.names)}", near)
        return name, self.desks[self.adapted.get(name, name)]

    def by_name(self, words: str) -> str:
        """The same words, with every model called as it is asked for: where it lies is nothing for a client."""
        places = {str(desk.model.settings[key]): name for name, desk in self.desks.items() for key in ("path", "model")}
        for place in sorted((place for place in places if os.sep in place), key=len, reverse=True):
            words = words.replace(place, repr(places[place]))
        return words

    async def close(self, seconds: float) -> None:
        """Takes nothing new, waits so long for what is under way, and gives up the rest."""
        await asyncio.gather(*(desk.close(seconds) for desk in self.desks.values()))

    @property
    def names(self) -> list[str]:
        return [*self.desks, *self.adapted]

    def adapter(self, name: str) -> str | None:
        """The adapter that is asked for by this name; None where it is a model's own."""
        return name if name in self.adapted else None

    def tool_format(self, model: Model, template: str) -> str:
        return calls.detect(template) if self._tool_format == "auto" else self._tool_format


@asynccontextmanager
async def asking(exchange: Exchange, name: str, desk: Desk, prepare: Prepare) -> AsyncIterator[Ticket]:
    """A ticket whose tokens are the exchange's, however it ends."""
    async with desk.ask(prepare) as ticket:
        try:
            yield ticket
        finally:
            exchange.uses(name, ticket.n_prompt, ticket.n_written)


def prompts_of(prompt: Any, field: str = "prompt") -> list[str | list[int]]:
    """One or several, as text or ids."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise BadRequest(f"{field} is an empty list; expected a text, token ids, or several of them", field=field)
    return list(prompt)


async def completions(served: Served, exchange: Exchange) -> None:
    asked = await exchange.body(CompletionRequest)
    name, desk = served.find(asked.model)
    model, prompts = desk.model, prompts_of(asked.prompt)
    options = checked({**asked.options(), "adapter": served.adapter(name)})
    n, wanted = each(options)
    _check_count(n, len(wanted), len(prompts))
    if asked.stream and len(wanted) > n:
        raise BadRequest("best_of wants all outputs whole before it chooses, which a stream cannot wait for. Leave out one of them", field="best_of")

    def prepare() -> tuple[list[Start], int]:
        ids = [model.prompt_ids(prompt) for prompt in prompts]
        for each_ids in ids:
            check_room(model, len(each_ids), asked.max_tokens if "max_tokens" in asked.model_fields_set else None)
        return [model.prepare(each_ids, **one) for each_ids in ids for one in wanted], sum(map(len, ids))
    content = bool(asked.logprobs_content)
    head, spelled = Head("cmpl", "text_completion", name), Spelled(model.tokenizer)
    echoes = [_echo(model, prompt) if asked.echo else None for prompt in prompts]
    async with asking(exchange, name, desk, prepare) as ticket:
        if asked.stream:
            done: list[Completion] = []
            offsets: dict[int, int] = {}
            unsaid = {i: echo for i, echo in enumerate(echo for echo in echoes for _ in wanted) if echo is not None}
            async for said in ticket.said():
                if (echo := unsaid.pop(said.index, None)) is not None:  # with what is known of its tokens once the first of the answer is there
                    told = spelled.completion(said.prompt, content=content) if said.prompt and asked.logprobs is not None else None
                    await exchange.event(head.plain([{"index": said.index, "text": echo, "logprobs": told, "finish_reason": None}]))
                    offsets[said.index] = len(echo)
                text = "".join(piece for kind, piece in said.parts)
                reason = None if said.completion is None else said.completion.finish_reason
                logprobs = spelled.completion(said.tokens, offsets.get(said.index, 0), content=content) if said.tokens else None
                offsets[said.index] = offsets.get(said.index, 0) + len(text)
                more = {} if said.completion is None else about(said.completion)
                if said.completion is not None and asked.prompt_logprobs is not None:
                    more["prompt_logprobs"] = prompt_told(said.completion, spelled)
                await exchange.event(head.plain([{"index": said.index, "text": text, "logprobs": logprobs, "finish_reason": _finish(reason), **more}]))
                done += [said.completion] if said.completion is not None else []
            if asked.stream_options is not None and asked.stream_options.include_usage:
                await exchange.event(head.plain([], usage=usage(ticket.n_prompt, done)))
            return
        written = await ticket.completions()
    choices = []
    for p, echo in enumerate(echoes):
        best = chosen(written[p * len(wanted):(p + 1) * len(wanted)], n, logprobs=options.get("logprobs", False))
        choices += [text_choice(p * n + i, one, spelled, echo=echo, logprobs=asked.logprobs is not None, content=content,
                                prompt_logprobs=asked.prompt_logprobs is not None)
                    for i, one in enumerate(best.choices or (best,))]
    await exchange.json(head.plain(choices, usage=usage(ticket.n_prompt, written)))


def check_room(model: Model, n_prompt: int, max_tokens: int | None) -> None:
    """Raises PromptTooLong, with both counts, for an answer that was asked for and would be cut."""
    n_ctx = model.engine.capacity
    if max_tokens is not None and n_prompt + max_tokens > n_ctx:
        instead = f", or ask for at most {n_ctx - n_prompt:,}" if n_prompt < n_ctx else f" by {n_prompt + max_tokens - n_ctx:,}"
        raise PromptTooLong(f"the prompt has {n_prompt:,} tokens and max_tokens is {max_tokens:,}, together {n_prompt + max_tokens:,}; this model holds "
                            f"{n_ctx:,}. Shorten the prompt{instead}", n_prompt=n_prompt, n_ctx=n_ctx)


def _finish(reason: str | None) -> str | None:
    return {"context": "length"}.get(reason, reason) if reason else None


def _echo(model: Model, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)


def _check_count(n: int, n_written: int, n_prompts: int) -> None:
    if n_written * n_prompts > MAX_CHOICES:
        raise BadRequest(f"{n_prompts} prompts of {n_written} outputs each are {n_written * n_prompts}; at most {MAX_CHOICES} are written for one request. "
                         f"Ask for fewer", field="n")


class Chat:
    """What a chat asks of a model: everything but how the answer is spelled."""

    def __init__(self, served: Served, model: Model, asked: ChatRequest) -> None:
        self.model, self.asked = model, asked
        self.tools = tools_of(asked.tools)
        choice = asked.tool_choice if asked.tool_choice is not None else ("auto" if self.tools else "none")
        if choice not in ("none", "auto") and not self.tools:
            raise BadRequest("tool_choice asks for a call, and there are no tools. Give some, or leave it out", field="tool_choice")
        self.options = checked({**asked.options(), "adapter": served.adapter(served.find(asked.model)[0])})
        self._format: str | None = None
        self._strict = {tool.function.name for tool in asked.tools or () if tool.function.strict}
        self._parallel = asked.parallel_tool_calls is not False
        self._forced = False
        forced = choice not in ("none", "auto")
        held.check(self.tools, [tool["name"] for tool in self.tools] if forced else self._strict)
        self._answer: Schema | None = None  # what an answer has to be beside calls
        if self.tools and choice != "none" and (other := asked.held()) is not None and (forced or other != "response_format"):
            raise BadRequest(f"{other} holds the whole output, so that {'the call tool_choice asks for' if forced else 'no call'} could be written. Leave one "
                             f"of them out, or say tool_choice='none'", field=other)
        if isinstance(choice, NamedTool):
            self._force([tool for tool in self.tools if tool["name"] == choice.function.name] or self._no_such(choice.function.name), parallel=False)
        elif choice == "required":
            self._force(self.tools, parallel=self._parallel)
        elif choice == "auto" and self.tools:
            self._format = served.tool_format(model, self._template())
            schema = self.options.get("schema")
            if self._strict or not self._parallel or schema is not None:
                self._answer = None if schema is None else Schema(schema)
                self.options = checked({**{key: value for key, value in self.options.items() if key != "schema"}, "tags": self._tags(self._format, schema)})
        self.shown = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()] if choice != "none" else None
        if self._format is None and not self._forced and "<|channel|>" in self._template(missing=""):
            self._format = "harmony"  # its answers stand in channels, tools or not

    def _template(self, missing: str | None = None) -> str:
        try:
            return choose(self.model.tokenizer, self.model.chat_template, tools=self.tools or None).source
        except BadTemplate:
            if missing is None:
                raise
            return missing

    def _tags(self, name: str, schema: Any) -> Json:
        """What holds calls that the model may make to the schemas of tools that are strict, and to one where more are not wanted; schema: of its answer."""
        def spelled(mark: str) -> str | int:
            token_id = self.model.tokenizer.id_of(mark)
            return token_id if token_id is not None and token_id in self.model.tokenizer.special_ids else mark
        return held.held(name, self.tools, self._strict, self._template(), spelled, parallel=self._parallel, answer=schema)

    def about(self, whole: Completion, text: str, *, called: bool) -> Json:
        """What is said of a choice beside OpenAI's fields. text: its answer, which is held to its schema where it `called` nothing."""
        if self._answer is None or called:
            return about(whole)
        by = whole.stopped_by if isinstance(whole.stopped_by, str) else None
        return {**about(whole), "verdict": asdict(judge_schema(text, self._answer, whole.finish_reason, by))}

    def _no_such(self, name: str) -> list[Any]:
        raise BadRequest(f"tool_choice names {name!r}, which is not one of the tools: {', '.join(tool['name'] for tool in self.tools)}", field="tool_choice")

    def _force(self, tools: Sequence[Any], *, parallel: bool) -> None:
        self._forced, self.options = True, checked({**self.options, "compact": held.forced_schema(tools, parallel=parallel)})

    def unread(self) -> str | None:
        """The name of who speaks, where the chat template does not show it to the model. A tool's says again what the call with its id says."""
        messages = [message.plain() for message in self.asked.messages]
        named = [i for i, message in enumerate(messages) if "name" in message and message["role"] != "tool"]
        if not named:
            return None
        template = choose(self.model.tokenizer, self.model.chat_template, tools=self.tools or None)
        bare = [{key: value for key, value in message.items() if key != "name" or message["role"] == "tool"} for message in messages]
        shown, without = (template.render(some, tools=self.shown or None, **self.asked.template_args()) for some in (messages, bare))
        return f"messages[{named[0]}].name" if shown == without else None

    def prepare(self, wanted: Sequence[Json]) -> tuple[list[Start], int]:
        marks = calls.marks(self._format) if self._format is not None else ()
        messages = [message.plain() for message in self.asked.messages]
        n, starts = self.model.prepare_chats(messages, wanted, tools=self.shown or None, template_args=self.asked.template_args(), marks=marks)
        check_room(self.model, n, self.options["max_tokens"])
        return starts, n

    def reader(self) -> calls.AnyReader | None:
        """What takes calls out of the text; None where there can be none."""
        if self._forced:
            return calls.Reader(["["], None, calls.json_calls)
        return None if self._format is None else calls.reader(self._format, self.tools, self._strict, parallel=self._parallel)


async def chat(served: Served, exchange: Exchange) -> None:
    asked = await exchange.body(ChatRequest)
    name, desk = served.find(asked.model)
    spelled, wants = Spelled(desk.model.tokenizer), await asyncio.to_thread(Chat, served, desk.model, asked)  # which may compile schemas
    n, wanted = each(wants.options)
    _check_count(n, len(wanted), 1)
    if any(message.name is not None for message in asked.messages) and (unread := await asyncio.to_thread(wants.unread)) is not None:
        exchange.ignore(unread, "this model's chat template shows no names, so nobody would read it")
    async with asking(exchange, name, desk, lambda: wants.prepare(wanted)) as ticket:
        answers = {i: ChatAnswer(wants.reader(), spelled) for i in range(n)}
        if asked.stream:
            await _stream_chat(exchange, Head("chatcmpl", "chat.completion.chunk", name), ticket, answers, spelled, wants)
            return
        whole: dict[int, Completion] = {}
        async for said in ticket.said():
            answers[said.index].hear(said)
            if said.completion is not None:
                whole[said.index] = said.completion
    choices = [{**answers[i].choice(i, whole[i]), **wants.about(whole[i], answers[i].text, called=bool(answers[i].calls))} for i in range(n)]
    told = usage(ticket.n_prompt, whole.values())
    await exchange.json(Head("chatcmpl", "chat.completion", name).plain(choices, usage=told))


async def _stream_chat(exchange: Exchange, head: Head, ticket: Ticket, answers: dict[int, ChatAnswer], spelled: Spelled, wants: Chat) -> None:
    def choice(i: int, delta: Json, reason: str | None = None, logprobs: Json | None = None, **more: Any) -> Json:
        return head.plain([{"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": reason, **more}])
    for i in answers:
        await exchange.event(choice(i, {"role": "assistant", "content": ""}))
    whole: list[Completion] = []
    async for said in ticket.said():
        answer, i = answers[said.index], said.index
        deltas = answer.hear(said)
        logprobs = spelled.chat(said.tokens) if said.tokens else None
        for delta in deltas or ([{}] if logprobs is not None else []):
            await exchange.event(choice(i, delta, logprobs=logprobs))
            logprobs = None
        if said.completion is not None:
            whole.append(said.completion)
            more = wants.about(said.completion, answer.text, called=bool(answer.calls))
            if said.completion.prompt_logprobs is not None:
                more["prompt_logprobs"] = prompt_told(said.completion, spelled)
            await exchange.event(choice(i, {}, answer.finish_reason(said.completion), **more))
    if wants.asked.stream_options is not None and wants.asked.stream_options.include_usage:
        await exchange.event(head.plain([], usage=usage(ticket.n_prompt, whole)))


async def embeddings(served: Served, exchange: Exchange) -> None:
    asked = await exchange.body(EmbeddingRequest)
    name, desk = served.find(asked.model)
    model, texts = desk.model, prompts_of(asked.input, "input")
    if asked.dimensions is not None and asked.dimensions != (width := model.spec.d_embed or model.spec.d_model):
        raise BadRequest(f"dimensions={asked.dimensions}: this model's vectors have {width} numbers, and cutting them is nothing it was "
                         f"trained for. Leave it out", field="dimensions")
    try:
        async with desk.taken():
            ids = await asyncio.to_thread(lambda: [model.prompt_ids(text) for text in texts])
            vectors: list[np.ndarray] = []
            n = 0  # tokens read
            for some in sliced(ids, EMBED_TOKENS):
                vectors += [*await desk.call(partial(_vectors, model, some, pooling=asked.pooling or "mean", adapter=served.adapter(name)))]
                n += sum(map(len, some))
                exchange.uses(name, n, 0)
    except BadRequest as error:
        error.field = "input" if error.field in ("prompt", "ids") else error.field
        raise
    spell: Callable[[np.ndarray], Any] = (lambda v: base64.b64encode(v.astype("<f4").tobytes()).decode()) if asked.encoding_format == "base64" \
        else (lambda v: v.tolist())
    await exchange.json({"object": "list", "model": name, "usage": {"prompt_tokens": n, "total_tokens": n},
                         "data": [{"object": "embedding", "index": i, "embedding": spell(v)} for i, v in enumerate(vectors)]})


def _vectors(model: Model, texts: Sequence[Sequence[int]], **how: Any) -> np.ndarray:
    found: np.ndarray = model.embed(texts, **how).numpy()
    return found


def sliced(texts: Sequence[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Texts one after the other, in slices of at most so many tokens; a text that has more is a slice of its own."""
    slice_: list[list[int]] = []
    n = 0
    for ids in texts:
        if slice_ and n + len(ids) > most:
            yield slice_
            slice_, n = [], 0
        slice_.append(ids)
        n += len(ids)
    if slice_:
        yield slice_
