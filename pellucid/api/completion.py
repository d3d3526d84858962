"""What a text request may say and what comes back."""
from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypedDict

from pellucid.engine.request import Alternatives, FinishReason, Request, Sampling, check_names, checked_adapter, checked_max_tokens
from pellucid.engine.source import read_source
from pellucid.engine.verdict import Verdict
from pellucid.errors import BadRequest

MAX_TOKENS = 256  # of a completion that does not say: enough for a page, not enough to lose patience over


class Options(TypedDict, total=False):
    """What may be asked of generate, chat and stream, besides the prompt. Ranges and meanings: engine/request.py and engine/sampler.py."""

    max_tokens: int | None  # None = as many as the context has room for; 256 where nothing is said
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None  # None or unsaid = drawn, and reported with the result
    stop: str | Sequence[str]  # text before the first of these is returned
    ignore_eos: bool  # go on past the model's end-of-sequence ids
    min_tokens: int  # of the output, before an end-of-sequence id may come; what is complete as its schema or grammar asks ends all the same
    bad_words: Sequence[str | Sequence[int]]  # ids that do not come one after another; of a text those it is cut into, and those it is after a space
    prefix: str | Sequence[int]  # what the output begins with, whatever the model would say
    logprobs: bool  # report the log-probability of every token
    top_logprobs: int  # and of the so many likeliest in its place
    prompt_logprobs: int | None  # report those of the prompt too, with so many of the likeliest; None = not
    # So many completions: `choices`, of which number i, from 0, is what seed + i alone writes: n=3 of seed 1 and n=3 of seed 2 share two. Request.n of the
    # engine means another thing: outputs of one seed, told apart by `Row`'s index.
    n: int
    best_of: int | None  # so many are written, of which the n with the highest mean log-probability are returned, the best first
    reuse: bool | None  # what the model computed for others that begin alike; None = where that is bitwise the same, in a deterministic model
    schema: Mapping[str, Any] | str  # what the output has to be: a JSON Schema, as an object or as its JSON; one of these seven at most
    compact: Mapping[str, Any] | str  # the same, written without white space, for machines to read
    regex: str  # that all of the output matches
    choice: Sequence[str]  # of which the output is one
    lark: str  # a grammar in llguidance's Lark
    gbnf: str  # a grammar in llama.cpp's notation
    tags: Mapping[str, Any]  # free text in which what begins like one of these goes on by its schema, such as calls of tools: engine/source.py
    adapter: str | None  # the name of a loaded one; None or unsaid = the model as it is


SAMPLING = tuple(f.name for f in fields(Sampling))
HELD = ("schema", "compact", "regex", "choice", "lark", "gbnf", "tags")  # options that hold the output to something
OPTIONS = tuple(Options.__annotations__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts. `reused_tokens` of the prompt were still in memory and were not computed again; `thinking_tokens` of the completion are the
    thinking, its marks included."""

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0
    thinking_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What came of a prompt.

    text: what was written, without thinking, up to a stop string if one was met. token_ids: every generated id, those of a stop string and
    the end-of-sequence id included. thinking: what stood between the thinking marks, None where there were none. stopped_by: the stop
    string or id behind finish_reason "stop", "interrupt" where the caller ended it (Stream.stop, Ctrl-C). seconds: the engine's, until the last
    token; prefill_seconds until the first.
    settings: everything that was in force, seed and prompt included.
    verdict: whether it is what schema, compact, regex, choice, lark or gbnf asked for: valid, cut or invalid, and why; None where none was given.
    choices: where n were asked for, all of them, this one first; else none.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    seconds: float
    prefill_seconds: float
    seed: int
    thinking: str | None
    stopped_by: str | int | None
    logprobs: tuple[float, ...] | None
    prompt_ids: tuple[int, ...]
    settings: Mapping[str, Any]
    top_logprobs: tuple[Alternatives, ...] | None = None
    prompt_logprobs: tuple[float, ...] | None = None
    prompt_top_logprobs: tuple[Alternatives, ...] | None = None
    choices: tuple[Completion, ...] = ()
    verdict: Verdict | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding alone, from the first token to the last; None for a single token."""
        n, seconds = len(self.token_ids) - 1, self.seconds - self.prefill_seconds
        return n / seconds if n > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """For machines: plain data, without the prompt; thinking, logprobs and choices only where there are any."""
        usage = {**asdict(self.usage), "total_tokens": self.usage.total_tokens}
        rate = self.tokens_per_second
        out: dict[str, Any] = {
            "text": self.text, "token_ids": list(self.token_ids), "finish_reason": self.finish_reason, "stopped_by": self.stopped_by, "usage": usage,
            "seconds": round(self.seconds, 6), "prefill_seconds": round(self.prefill_seconds, 6),
            "tokens_per_second": None if rate is None else round(rate, 2), "seed": self.seed}
        if self.thinking is not None:
            out["thinking"] = self.thinking
        for name in ("logprobs", "top_logprobs", "prompt_logprobs", "prompt_top_logprobs"):
            if (value := getattr(self, name)) is not None:
                out[name] = list(value)
        if self.verdict is not None:
            out["verdict"] = asdict(self.verdict)
        if self.choices:
            out["choices"] = [choice.as_dict() for choice in self.choices]
        return out


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, each known and, as far as can be said without a model, possible.

    Raises BadRequest for one that is not; an unknown one gets the nearest.
    """
    check_names(options, OPTIONS)
    if held := held_to(options):
        read_source(*held)
    for name in ("ignore_eos", "logprobs", "reuse"):
        if not isinstance(options.get(name) or False, bool):
            raise BadRequest(f"{name} must be True or False, got {options[name]!r}", field=name)
    stop_strings(options.get("stop", ()))
    checked_max_tokens(options.get("max_tokens"))
    checked_adapter(options.get("adapter"))
    sampling(options)
    return dict(options)


def held_to(options: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The kind and the source of the grammar that the output is held to. Raises BadRequest for more than one."""
    asked = [(kind, options[kind]) for kind in HELD if options.get(kind) is not None]
    if len(asked) > 1:
        raise BadRequest(f"{asked[0][0]} and {asked[1][0]} are both given, and an output is held to one thing. Leave one out", field=asked[1][0])
    return asked[0] if asked else None


def sampling(options: Mapping[str, Any]) -> Sampling:
    """The sampling that options ask for; a seed that they do not is drawn. Raises BadRequest."""
    asked = {name: options[name] for name in SAMPLING if name in options}
    return Sampling.of(**asked | ({"seed": secrets.randbits(32)} if asked.get("seed") is None else {}))


def outputs(n: Any, best_of: Any, options: Mapping[str, Any]) -> int:
    """How many outputs are written for a prompt. Raises BadRequest as `Request` does for counts that cannot be."""
    told = {name: options[name] for name in ("logprobs", "top_logprobs") if name in options}  # best_of asks for the first itself, and would hide its lack
    return Request(prompt_ids=[0], sampling=sampling(options), n=n, best_of=best_of, **told).n_generated


def each(options: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """How many outputs are kept, and the options of every one that is written. Raises BadRequest as `outputs` does."""
    wanted = dict(options)
    n, best_of = wanted.pop("n", 1), wanted.pop("best_of", None)
    count, first = outputs(n, best_of, wanted), sampling(wanted).seed
    if count > n:
        wanted["logprobs"] = True  # what they are chosen by
    if count > 1:
        wanted = {"reuse": True, **wanted}  # the prompt is computed once
    return n, [{**wanted, "seed": (first + i) % 2**63} for i in range(count)]


def chosen(completions: Sequence[Completion], n: int, *, logprobs: bool) -> Completion:
    """The first of the n that are kept, which are its choices: all of them, or those whose tokens have the highest mean log-probability.

    logprobs: whether the caller asked for what is chosen by; what they did not is not told.
    """
    if len(completions) == 1:
        return completions[0]
    if len(completions) > n:
        completions = sorted(completions, key=lambda c: -math.fsum(c.logprobs or ()) / max(1, len(c.token_ids)))[:n]
        if not logprobs:
            completions = [replace(c, logprobs=None, settings={**c.settings, "logprobs": False}) for c in completions]
    return replace(completions[0], choices=tuple(completions))


def stop_strings(stop: Any) -> tuple[str, ...]:
    """One string or several, none empty, all of them Unicode. Raises BadRequest."""
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest(f"stop must be a string or several, none of them empty; got {stop!r:.80}", field="stop")
    for s in stops:
        if any("\ud800" <= c <= "\udfff" for c in s):
            raise BadRequest(f"stop={s!r:.80} holds half a character (a lone surrogate), which no text does. Was it bytes that are not UTF-8?", field="stop")
    return tuple(stops)
