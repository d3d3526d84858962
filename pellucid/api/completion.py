"""What a text request may say and what comes back."""
from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict

from pellucid.engine.generate import Memory
from pellucid.engine.request import FinishReason, Sampling, check_names, checked_max_tokens
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
    logprobs: bool  # report the log-probability of every token
    memory: Memory  # keys and values to continue from and to leave behind: model.memory()
    schema: Mapping[str, Any]


SAMPLING = tuple(f.name for f in fields(Sampling))
OPTIONS = tuple(Options.__annotations__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts. `reused_tokens` of the prompt were still in memory and were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int = 0

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

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding alone, from the first token to the last; None for a single token."""
        n, seconds = len(self.token_ids) - 1, self.seconds - self.prefill_seconds
        return n / seconds if n > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """For machines: plain data, without the prompt; thinking and logprobs only where there are any."""
        usage = {**asdict(self.usage), "total_tokens": self.usage.total_tokens}
        rate = self.tokens_per_second
        out: dict[str, Any] = {
            "text": self.text, "token_ids": list(self.token_ids), "finish_reason": self.finish_reason, "stopped_by": self.stopped_by, "usage": usage,
            "seconds": round(self.seconds, 6), "prefill_seconds": round(self.prefill_seconds, 6),
            "tokens_per_second": None if rate is None else round(rate, 2), "seed": self.seed}
        if self.thinking is not None:
            out["thinking"] = self.thinking
        if self.logprobs is not None:
            out["logprobs"] = list(self.logprobs)
        return out


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, each known and, as far as can be said without a model, possible.

    Raises BadRequest for one that is not (an unknown one gets the nearest), and for schema, which nothing enforces yet.
    """
    check_names(options, OPTIONS)
    if options.get("schema") is not None:
        raise BadRequest("schema= needs constrained decoding, which this version does not have. Leave it out and check the text yourself", field="schema")
    for name in ("ignore_eos", "logprobs"):
        if not isinstance(options.get(name, False), bool):
            raise BadRequest(f"{name} must be True or False, got {options[name]!r}", field=name)
    if not isinstance(options.get("memory"), Memory | None):
        raise BadRequest(f"memory is {type(options['memory']).__name__}; expected what model.memory() gives", field="memory")
    stop_strings(options.get("stop", ()))
    checked_max_tokens(options.get("max_tokens"))
    sampling(options)
    return dict(options)


def sampling(options: Mapping[str, Any]) -> Sampling:
    """The sampling that options ask for; a seed that they do not is drawn. Raises BadRequest."""
    asked = {name: options[name] for name in SAMPLING if name in options}
    return Sampling.of(**asked | ({"seed": secrets.randbits(32)} if asked.get("seed") is None else {}))


def stop_strings(stop: Any) -> tuple[str, ...]:
    """One string or several, none empty, all of them Unicode. Raises BadRequest."""
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, Sequence) or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest(f"stop must be a string or several, none of them empty; got {stop!r:.80}", field="stop")
    for s in stops:
        if any("\ud800" <= c <= "\udfff" for c in s):
            raise BadRequest(f"stop={s!r:.80} holds half a character (a lone surrogate), which no text does. Was it bytes that are not UTF-8?", field="stop")
    return tuple(stops)
