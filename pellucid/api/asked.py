"""What a caller asked for in words -> a request in ids, and the settings that repeat it."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pellucid.api.completion import MAX_TOKENS, SAMPLING, held_to, sampling, stop_strings
from pellucid.engine.grammar import Vocabulary
from pellucid.engine.request import Request, token_ids
from pellucid.errors import BadRequest
from pellucid.tokenizer import Tokenizer

_AS_THEY_ARE = ("logprobs", "top_logprobs", "prompt_logprobs", "min_tokens")
T = TypeVar("T")


def request(ids: Sequence[int], options: Mapping[str, Any], tokenizer: Tokenizer, ends: frozenset[int], *,
            deterministic: bool, n_vocab: int, after: str | None = None) -> tuple[Request, dict[str, Any]]:
    """The request, and all that is in force in it. `options` are `completion.checked`; `ends` are the model's end-of-sequence ids.

    after: the mark that ends the model's thinking, where the prompt has it begin with that: what is held to a grammar is the answer.
    """
    stops, chosen = stop_strings(options.get("stop", ())), sampling(options)
    # A stop string that is a special token never shows in the text: it stops as an id.
    special = {i for s in stops if (i := tokenizer.id_of(s)) is not None and i in tokenizer.special_ids}
    stop_ids = (frozenset() if options.get("ignore_eos", False) else ends) | special
    reuse, held = options.get("reuse"), held_to(options)
    grammar = None if held is None else Vocabulary.of(tokenizer, n_vocab, ends | special).grammar(*held, after)
    plain = {name: options[name] for name in _AS_THEY_ARE if name in options}
    built = Request(prompt_ids=ids, sampling=chosen, max_tokens=options.get("max_tokens", MAX_TOKENS), stop_ids=stop_ids,
                    bad_words=bad_words(options.get("bad_words", ()), tokenizer), prefix_ids=prefix_ids(options.get("prefix", ()), tokenizer),
                    reuse=deterministic if reuse is None else reuse, constraint=grammar, adapter=options.get("adapter"),
                    ahead=not stops, **plain)
    in_force = {**{name: getattr(chosen, name) for name in SAMPLING}, "max_tokens": built.max_tokens, "stop": list(stops), "stop_ids": sorted(stop_ids),
                "ignore_eos": options.get("ignore_eos", False), "logprobs": built.logprobs, **plain}
    if held is not None:
        in_force[held[0]] = held[1]
    if built.adapter is not None:
        in_force["adapter"] = built.adapter
    if built.reuse:
        in_force["reuse"] = True
    if built.bad_words:
        in_force["bad_words"] = [list(word) for word in built.bad_words]
    if built.prefix_ids:
        in_force["prefix"] = list(built.prefix_ids)
    return built, in_force


def bad_words(words: Any, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Ids as they are; a text as its own ids and as those it has after a space. Raises BadRequest."""
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise BadRequest(f"bad_words must be a list of words, each text or token ids; got {words!r:.80}", field="bad_words")
    out: list[tuple[int, ...]] = []
    for word in words:
        if word == "":
            raise BadRequest("bad_words has an empty word, which is everywhere", field="bad_words")
        spelled = [tokenizer.encode(word), tokenizer.encode(" " + word)] if isinstance(word, str) else [token_ids(word, "bad_words")]
        out += map(tuple, spelled)
    return tuple(dict.fromkeys(out))


def prefix_ids(prefix: Any, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the output begins with, as ids. Raises BadRequest."""
    return tuple(tokenizer.encode(prefix) if isinstance(prefix, str) else token_ids(prefix, "prefix"))


def several(given: Iterable[T], name: str) -> list[T]:
    """A list of what is asked about. Raises BadRequest for one text, whose letters would each be taken for one."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise BadRequest(f"{name} must be a list, and {type(given).__name__} {given!r:.60} came. Give [{given!r:.60}]", field=name)
    return list(given)
