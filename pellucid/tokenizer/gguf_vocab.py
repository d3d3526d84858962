"""The lists and ids a GGUF file says its tokenizer with, checked against one another.

Keys: https://github.com/ggml-org/ggml/blob/01f0d4da3e444ca2bfe705e72adab08a4394bb1d/docs/gguf.md#tokenizer and src/llama-arch.cpp of llama.cpp at
0c1e57098; what the lists hold is what its converter writes (conversion/base.py: get_vocab_base, _create_vocab_sentencepiece).
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pellucid.errors import BadTokenizer
from pellucid.tokenizer.sentencepiece import Kind

PREFIX = "tokenizer.ggml."
NONE = (None, "none", "no_vocab")  # what `tokenizer.ggml.model` is of a file that has no tokenizer
ADDED = -1000.0  # the converter's score of a token that stood beside the vocabulary, in added_tokens.json or tokenizer_config.json
# Key -> how chat templates call it; the later key of two that say the same is the older spelling.
ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token", "seperator": "sep_token", "cls": "cls_token",
         "mask": "mask_token", "eot": "eot_token", "eom": "eom_token", "fim_pre": "fim_pre_token", "fim_suf": "fim_suf_token",
         "fim_mid": "fim_mid_token", "fim_pad": "fim_pad_token", "fim_rep": "fim_rep_token", "fim_sep": "fim_sep_token", "prefix": "fim_pre_token",
         "suffix": "fim_suf_token", "middle": "fim_mid_token"}
# Spellings that end an answer wherever a vocabulary has them as tokens apart from text: files seldom name more than one such id.
# llama_vocab::impl::load, special_eog_ids
_ENDS = frozenset(("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "<|endoftext|>",
                   "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
                   "<｜end▁of▁sentence｜>", "[e~["))
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
_LISTS: dict[type, tuple[str, ...]] = {str: ("string",), int: _INTEGERS, float: ("float32", "float64", *_INTEGERS)}  # how they are kept
_KINDS = {kind.value: kind for kind in Kind}
_ENDING_ROLES = ("eos_token", "eot_token", "eom_token")


@dataclass(frozen=True)
class Vocabulary:
    """tokens: place -> text, all different. kinds: what each is for; places that only fill the embedding up are UNUSED. scores: as many, or None."""

    where: str
    metadata: Mapping[str, Any]
    tokens: tuple[str, ...]
    kinds: tuple[Kind, ...]
    scores: tuple[float, ...] | None

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def of(self, *kinds: Kind) -> list[int]:
        """The ids of these kinds, in order."""
        return [i for i, kind in enumerate(self.kinds) if kind in kinds]

    def text(self, key: str) -> str | None:
        """A text of the metadata; None where it is not there."""
        value = self.metadata.get(PREFIX + key)
        if value is not None and not isinstance(value, str):
            raise BadTokenizer(f"{self.where}: {PREFIX}{key} is {value!r:.60}, and a text was expected. Is the file whole?")
        return value

    def flag(self, key: str, absent: bool) -> bool:
        value = self.metadata.get(PREFIX + key, absent)
        if not isinstance(value, bool):
            raise BadTokenizer(f"{self.where}: {PREFIX}{key} is {value!r:.60}, and true or false was expected. Is the file whole?")
        return value

    def id(self, key: str) -> int | None:
        """The id at `KEY_token_id`. Raises BadTokenizer for one that no token has."""
        value = self.metadata.get(f"{PREFIX}{key}_token_id")
        if value is None or value == -1:  # llama.cpp's own "there is none"
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise BadTokenizer(f"{self.where}: {PREFIX}{key}_token_id is {value!r:.60}, and the file has {len(self.tokens):,} tokens, from 0. "
                               f"Are its keys of one model?")
        return value

    @cached_property
    def roles(self) -> dict[str, int]:
        """What the file calls its tokens: "bos_token" -> id and so on."""
        out: dict[str, int] = {}
        for key, role in ROLES.items():
            if (i := self.id(key)) is not None:
                out.setdefault(role, i)
        return out

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        apart = {self.tokens[i]: i for i in self.of(Kind.CONTROL) if self.tokens[i] in _ENDS}
        if {"<|call|>", "<|return|>"} <= apart.keys() or {"<|calls|>", "<|flush|>"} <= apart.keys():
            apart.pop("<|end|>", None)  # gpt-oss's and Solar's end only one part of an answer
        if "<|tool_response>" in self.ids:
            apart.pop("</s>", None)  # Gemma 4's HTML
        return frozenset(apart.values()) | {self.roles[role] for role in _ENDING_ROLES if role in self.roles}

    @cached_property
    def merges(self) -> list[tuple[str, str]] | None:
        """The pairs in their order; None where the file has no list. Building with them checks that they are tokens."""
        listed = _list(self.metadata, "merges", str, self.where)
        if listed is None:
            return None
        cuts = [line.find(" ", 1) for line in listed]  # a first part may itself begin with a space
        if -1 in cuts:
            raise BadTokenizer(f"{self.where}: {PREFIX}merges has {listed[cuts.index(-1)]!r:.80}, and two tokens with a space between were expected. "
                               f"Is the file whole?")
        return [(line[:cut], line[cut + 1:]) for line, cut in zip(listed, cuts, strict=True)]


def has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Whether a file says that it has one."""
    return metadata.get(f"{PREFIX}model") not in NONE


def read_vocabulary(metadata: Mapping[str, Any], where: str) -> Vocabulary:
    """The checked lists. Raises BadTokenizer for one that is missing, too short, or of the wrong kind."""
    tokens = _list(metadata, "tokens", str, where)
    if not tokens:
        found = f"has no {PREFIX}tokens" if tokens is None else "its list of tokens is empty"
        raise BadTokenizer(f"{where} says that its tokenizer is {metadata.get(PREFIX + 'model')!r:.40}, and {found}. "
                           f"Convert the model again, with its tokenizer files.")
    numbers, scores = _list(metadata, "token_type", int, where), _list(metadata, "scores", float, where)
    for name, values in (("token_type", numbers), ("scores", scores)):
        if values is not None and len(values) != len(tokens):
            raise BadTokenizer(f"{where}: {PREFIX}{name} has {len(values):,} items and {PREFIX}tokens {len(tokens):,}, and each token has one. "
                               f"Is the file whole?")
    if numbers is None:
        raise BadTokenizer(f"{where} has no {PREFIX}token_type, so nothing tells its special tokens from text. "
                           f"Convert the model again with a newer llama.cpp.")
    if strange := set(numbers) - _KINDS.keys():
        raise BadTokenizer(f"{where}: {PREFIX}token_type has {min(strange)}, and kinds go from 1 to {len(Kind)}. Is there a newer Pellucid?")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]  # as llama.cpp calls them
    [(token, n)] = Counter(tokens).most_common(1)
    if n > 1:
        raise BadTokenizer(f"{where}: {PREFIX}tokens has {token!r:.60} {n} times, and which of those ids text becomes, nothing says. "
                           f"Is the file whole?")
    # Older converters wrote the places between the vocabulary and the embedding's size as user-defined or unknown tokens.
    filler = {i for i, token in enumerate(tokens) if token.startswith("[PAD") and token == f"[PAD{i}]"}
    eos = metadata.get(f"{PREFIX}eos_token_id")
    # What ends an answer is no text, whatever the file calls it: GPT-2's <|endoftext|> was written as an ordinary token, Phi-3's </s> as a user's.
    apart = {i for i, token in enumerate(tokens) if token in _ENDS and (i == eos or numbers[i] == Kind.USER_DEFINED)}
    kinds = [Kind.UNUSED if i in filler else Kind.CONTROL if i in apart else _KINDS[n] for i, n in enumerate(numbers)]
    return Vocabulary(where, metadata, tuple(tokens), tuple(kinds), None if scores is None else tuple(map(float, scores)))


def _list(metadata: Mapping[str, Any], key: str, of: type, where: str) -> list[Any] | None:
    value = metadata.get(PREFIX + key)
    if value is None:
        return None
    plain = isinstance(value, str | int | float)
    items = [] if plain else value.values()
    if plain or not (value.kind in _LISTS[of] or all(type(item) is of for item in items)):  # the kind of a file's list is that of all its items
        found = f"{value!r:.60}" if plain else f"a list of {value.kind}"
        raise BadTokenizer(f"{where}: {PREFIX}{key} is {found}, and a list of {of.__name__} was expected. Is the file whole?")
    return items
