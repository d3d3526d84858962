"""What is asked of the engine and what comes back, as frozen data checked when it is made."""
from __future__ import annotations

import contextlib
import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pellucid.errors import BadRequest, ConstraintFailed, did_you_mean, nearest

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length", "context", "cancelled"]
Alternatives = tuple[tuple[int, float], ...]  # ids and their log-probabilities, the likeliest first

MAX_TOP_LOGPROBS = 20  # OpenAI's limit: https://platform.openai.com/docs/api-reference/chat/create#chat-create-top_logprobs
MAX_BIAS = 3.4e38  # what float32 holds, in which logits are summed
MIN_TEMPERATURE = 1e-6  # smaller ones differ from greedy in nothing but rounding, and the very smallest are zero in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The defaults change nothing: a draw from the model's own distribution.

    Numbers may be numpy's; they are kept as Python's. Raises BadRequest for a value out of range, naming the field. The order in which
    they act: engine/sampler.py.
    """

    temperature: float = 1.0  # divides the logits; 0 = greedy
    top_k: int = 0  # keep the k likeliest tokens; 0 = all
    top_p: float = 1.0  # keep the fewest likeliest tokens whose probabilities sum to at least p; 1 = all
    min_p: float = 0.0  # drop tokens less likely than min_p times the likeliest; 0 = none
    repetition_penalty: float = 1.0  # of tokens in the prompt or the output: above 1 discourages
    presence_penalty: float = 0.0  # taken once from every token in the output
    frequency_penalty: float = 0.0  # taken from every token in the output, times how often it is there
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ("top_k", "seed"):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        t = self.temperature
        _in_range("temperature", t, t == 0 or t >= MIN_TEMPERATURE, f"0 (greedy), or a number from {MIN_TEMPERATURE}")
        _in_range("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or the count of tokens to keep")
        _in_range("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _in_range("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        _in_range("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0 (1 changes nothing)")
        for name in ("presence_penalty", "frequency_penalty"):  # OpenAI's range
            _in_range(name, getattr(self, name), -2 <= getattr(self, name) <= 2, "from -2 to 2")
        _in_range("seed", self.seed, 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalizes(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @classmethod
    def of(cls, **options: Any) -> Sampling:
        """A Sampling from named options. Raises BadRequest for a name it does not have, with the nearest ones it has."""
        check_names(options, [f.name for f in fields(cls)])
        return cls(**options)


class Constraint(Protocol):
    """What one sequence may say next: one for every running sequence, told each id that came. engine/grammar.py has them."""

    @property
    def done(self) -> bool:
        """Whether the output is complete and nothing but a stop id may follow."""

    @property
    def failure(self) -> ConstraintFailed | None:
        """Why it cannot go on, if it cannot."""

    def mask(self, words_W: Tensor) -> None:
        """Fills ceil(V / 32) words of int32: bit i % 32 of word i // 32 says that id i may come. Bits past V stay 0."""

    def advance(self, token_id: int) -> None:
        """An id has come. Raises PellucidError for one that the mask forbids."""

    def rollback(self, n: int) -> None:
        """The last n ids did not come after all."""


class Grammar(Protocol):
    """A constraint made ready once; every sequence starts one of its own."""

    def start(self) -> Constraint:
        """At the beginning of an output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sequence to continue. Raises BadRequest for ids or counts that cannot be, naming the field.

    max_tokens: how many ids may come; None = as many as the context has room for.
    stop_ids: ids that end the output; the one that did is the output's last id.
    min_tokens: how many ids come before a stop id may; an output that is complete under its constraint ends all the same.
    prefix_ids: what the output begins with, whatever the model would say; counted as output.
    bad_words: sequences of ids that do not come. A word may begin in the prompt: its last id is what is forbidden then. Other ids may spell the same text.
    constraint: what the output has to be, on top of all this.
    logprobs: also report the log-probability of every id that comes; top_logprobs: and of the so many likeliest in its place.
    prompt_logprobs: report those of the prompt as well, with so many of the likeliest; None = not.
    reuse: take over what was computed for others that begin alike. The same within float rounding; bitwise where the decoder is deterministic.
    n: how many outputs; best_of: how many are generated, of which the n with the highest mean log-probability are kept; None = n.
    adapter: the name of one that the decoder has; None = the model as it is.
    ahead: several ids may come in one step, before the first of them is looked at. False for a caller who may end it at any id, by what it means as text.
    """

    prompt_ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    prefix_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    constraint: Grammar | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    reuse: bool = True
    n: int = 1
    best_of: int | None = None
    adapter: str | None = None
    ahead: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", checked_adapter(self.adapter))
        object.__setattr__(self, "prompt_ids", tuple(token_ids(self.prompt_ids, "prompt")))
        object.__setattr__(self, "stop_ids", frozenset(token_ids(self.stop_ids, "stop_ids")))
        object.__setattr__(self, "max_tokens", checked_max_tokens(self.max_tokens))
        object.__setattr__(self, "prefix_ids", tuple(token_ids(self.prefix_ids, "prefix_ids")))
        object.__setattr__(self, "bad_words", _words(self.bad_words))
        for name in ("min_tokens", "top_logprobs", "n", *(name for name in ("prompt_logprobs", "best_of") if getattr(self, name) is not None)):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        self._check_lengths()
        self._check_counts()

    def _check_lengths(self) -> None:
        most = math.inf if self.max_tokens is None else self.max_tokens
        _in_range("min_tokens", self.min_tokens, 0 <= self.min_tokens <= most, f"from 0 to max_tokens ({self.max_tokens})")
        if len(self.prefix_ids) > most:
            raise BadRequest(f"prefix_ids are {len(self.prefix_ids)}, and max_tokens is {self.max_tokens}: what is forced counts as output. "
                             f"Raise max_tokens or shorten the prefix", field="prefix_ids")
        for place, i in enumerate(self.prefix_ids):
            if i in self.stop_ids:
                raise BadRequest(f"prefix_ids has the stop id {i} at place {place}: the output would end there. Take it out, or out of stop_ids",
                                 field="prefix_ids")

    def _check_counts(self) -> None:
        _in_range("top_logprobs", self.top_logprobs, 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS, f"from 0 to {MAX_TOP_LOGPROBS}")
        if self.top_logprobs and not self.logprobs:
            raise BadRequest(f"top_logprobs={self.top_logprobs} wants logprobs=True, and logprobs is False. Ask for both", field="top_logprobs")
        if self.prompt_logprobs is not None:
            k = self.prompt_logprobs
            _in_range("prompt_logprobs", k, 0 <= k <= MAX_TOP_LOGPROBS, f"None, or from 0 to {MAX_TOP_LOGPROBS}")
        _in_range("n", self.n, self.n >= 1, "at least 1")
        if self.best_of is not None:
            _in_range("best_of", self.best_of, self.best_of >= self.n, f"at least n ({self.n}), or None for n")
        if self.n_generated > 1 and self.sampling.greedy:
            name = "n" if self.best_of is None else "best_of"
            raise BadRequest(f"{name}={self.n_generated}, and at temperature 0 all outputs are the same. Ask for one, or raise it", field=name)

    @property
    def n_generated(self) -> int:
        """How many outputs are generated."""
        return self.n if self.best_of is None else self.best_of

    @property
    def scores(self) -> bool:
        """Whether log-probabilities of the output are needed, be it only to choose by."""
        return self.logprobs or self.n_generated > self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a request. All logprobs are natural logarithms under the model's own distribution (temperature 1, nothing forbidden).

    prompt_logprobs: one for each prompt id but the first, which nothing comes before; prompt_top_logprobs: the likeliest in their places.
    """

    token_ids: tuple[int, ...]  # the generated ones only; a stop id that ended them is the last
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[Alternatives, ...] | None = None
    prompt_logprobs: tuple[float, ...] | None = None
    prompt_top_logprobs: tuple[Alternatives, ...] | None = None
    n_prompt: int
    n_reused: int  # leading prompt tokens whose keys and values were still in memory
    prefill_seconds: float  # until the first id
    seconds: float  # until the last, the caller's own time between ids not counted

    @property
    def cumulative_logprob(self) -> float | None:
        """Of the whole output; None where logprobs were not asked for."""
        return None if self.logprobs is None else math.fsum(self.logprobs)


def checked_max_tokens(asked: Any) -> int | None:
    """Raises BadRequest for a count that cannot be."""
    if asked is None:
        return None
    n = _integer("max_tokens", asked)
    _in_range("max_tokens", n, n >= 1, "at least 1, or None for all there is room for")
    return n


def checked_adapter(asked: Any) -> str | None:
    """Raises BadRequest for what is no name; whether one is loaded, the engine says."""
    if asked is not None and not isinstance(asked, str):
        raise BadRequest(f"adapter must be the name of a loaded adapter, or None; got {_shown(asked)}", field="adapter")
    return asked


def token_ids(ids: Iterable[Any], name: str) -> list[int]:
    """Plain ints from ints, numpy integers or a one-dimensional integer tensor. Raises BadRequest for anything else."""
    if isinstance(ids, str | bytes):
        raise BadRequest(f"{name} is a string where token ids are wanted; a tokenizer makes ids of text", field=name)
    try:
        return [operator.index(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    except TypeError:
        raise BadRequest(f"{name} must be token ids, one integer each; got {_shown(ids)}", field=name) from None


def check_vocabulary(ids: Iterable[int], n_vocab: int, name: str) -> None:
    """Raises BadRequest, naming the first id that is not below n_vocab."""
    for i in ids:
        if not 0 <= i < n_vocab:
            raise BadRequest(f"{name} has token id {i}, and this model's vocabulary has ids 0 to {n_vocab - 1}. Is this another model's tokenizer?",
                             field=name)


def check_names(options: Iterable[str], known: Sequence[str]) -> None:
    """Raises BadRequest for the first option that is not known, with the nearest names that are."""
    for name in options:
        if name not in known:
            hint = did_you_mean(nearest(name, known)) or f" Known: {', '.join(known)}."
            raise BadRequest(f"{name!r} is not an option.{hint}", field=name)


def _biases(biases: Mapping[Any, Any]) -> dict[int, float]:
    if not isinstance(biases, Mapping):
        raise BadRequest(f"logit_bias must map token ids to numbers, got {_shown(biases)}", field="logit_bias")
    plain = {_integer("a token id of logit_bias", i, "logit_bias"): _number(f"logit_bias of token {i}", b, "logit_bias") for i, b in biases.items()}
    for i, b in plain.items():
        if abs(b) > MAX_BIAS:
            raise BadRequest(f"logit_bias of token {i} is {b}, more than float32 holds; 100 or -100 is enough to force or forbid a token", field="logit_bias")
    return plain


def _words(words: Iterable[Iterable[Any]]) -> tuple[tuple[int, ...], ...]:
    if isinstance(words, str | bytes) or not isinstance(words, Iterable):
        raise BadRequest(f"bad_words must be sequences of token ids, got {_shown(words)}", field="bad_words")
    plain = tuple(tuple(token_ids(word, "bad_words")) for word in words)
    if () in plain:
        raise BadRequest(f"bad_words has an empty word at place {plain.index(())}: it would forbid everything. Leave it out", field="bad_words")
    return plain


def _number(what: str, value: Any, name: str | None = None) -> float:
    """A Python number of one that may be numpy's; an int stays one, as it was asked."""
    number = float("nan")
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # of an integer past every float
            number = float(value)
    if not math.isfinite(number):
        raise BadRequest(f"{what} must be a finite number, got {value!r:.60}", field=name or what)
    return value if type(value) is int else number


def _integer(what: str, value: Any, name: str | None = None) -> int:
    with contextlib.suppress(TypeError):
        if not isinstance(value, bool):
            return operator.index(value)
    raise BadRequest(f"{what} must be an integer, got {value!r}", field=name or what)


def _in_range(name: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise BadRequest(f"{name}={value!r} is out of range: {wanted}", field=name)


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
