"""Text <-> ids: what the rest of the package sees of a tokenizer."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pellucid.errors import BadRequest
from pellucid.tokenizer.decode import TextStream, Words
from pellucid.tokenizer.encode import Encoder, Splitter, any_of, splitter
from pellucid.tokenizer.template import ChatTemplate


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer as the model's files describe it. Build one with `load_tokenizer`.

    n_vocab:        highest id + 1; an embedding may have more rows, never fewer.
    special_ids:    ids that plain text never becomes. The token for unknown text is not one of them: unknown characters become it.
    hidden_ids:     ids that decoding leaves out unless asked: the special ones, and the token for unknown text where a file calls it so.
    end_ids:        ids that end an answer, where the file itself tells; eos_id is one more.
    special_tokens: "bos_token" -> its text and so on, as chat templates see them.
    chat_templates: by name; "default" is the one that is used unless another is asked for.
    """

    source: str
    encoder: Encoder = field(repr=False)
    words: Words = field(repr=False)
    special: Mapping[str, int] = field(repr=False)
    hidden_ids: frozenset[int] = field(repr=False)
    bos_id: int | None
    eos_id: int | None
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    special_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    chat_templates: Mapping[str, ChatTemplate] = field(default_factory=dict, repr=False)
    end_ids: frozenset[int] = field(default=frozenset(), repr=False)
    pattern: str | None = field(default=None, repr=False)

    @property
    def n_vocab(self) -> int:
        return self.encoder.n_vocab

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    @property
    def adds_bos(self) -> bool:
        """Whether the model wants every text to begin with BOS."""
        return self.bos_id is not None and self.bos_id in self.prefix

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The template called "default", or the only one there is."""
        return self.chat_templates.get("default") or (next(iter(self.chat_templates.values())) if len(self.chat_templates) == 1 else None)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text.

        special: False encodes every character as text, so the ids hold no special token whatever the text says (unknown characters of a
        vocabulary without bytes become its unknown token). True accepts special tokens in the text and adds what the model wants at the
        ends.
        Raises BadRequest for a text that is not Unicode (a lone surrogate).
        """
        text = _unicode(text)
        return [*self.prefix, *self.encoder.rendered(text), *self.suffix] if special else self.encoder.text(text)

    def encode_rendered(self, text: str) -> list[int]:
        """The ids of a rendered chat template: special tokens in the text become their ids, and nothing is added."""
        return self.encoder.rendered(_unicode(text))

    def encode_mixed(self, parts: Sequence[str | int]) -> list[int]:
        """The ids of plain texts with ids between them: the texts are encoded as in `encode`, in the place where they stand."""
        return self.encoder.mixed([p if isinstance(p, int) else _unicode(p) for p in parts])

    def decode(self, ids: Iterable[int], special: bool = False, after: Iterable[int] = ()) -> str:
        """The text of ids; an id past the vocabulary reads as U+FFFD, and so does a byte that is no UTF-8.

        special: shows special tokens, which are left out otherwise.
        after: ids that stand before these, so that a continuation keeps its leading space.
        """
        stream = self.stream(special=special, after=after)
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self, special: bool = False, after: Iterable[int] = ()) -> TextStream:
        """A decoder for ids as they come; its pieces join to `decode` of all of them."""
        return TextStream(self.words, frozenset() if special else self.hidden_ids, after)

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None where it has no such token."""
        return self.encoder.id_of(token)

    def token_of(self, token_id: int) -> str:
        """The token of an id as the vocabulary spells it. Raises BadRequest for an id it does not have."""
        token = self.encoder.token_of(token_id) if token_id >= 0 else None
        if token is None:
            raise BadRequest(f"{token_id} is not an id of this tokenizer, whose ids go from 0 to {self.n_vocab - 1}", field="ids")
        return token

    def split_special(self, text: str) -> list[str | int]:
        """The text cut at special tokens: what lies between, and their ids."""
        return self._split_special(text)

    @cached_property
    def _split_special(self) -> Splitter:
        return splitter(self.encoder.added[t] for t in self.special)

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Finds the spelling of any special token, the longest where several begin."""
        return re.compile(any_of(self.special) if self.special else "(?!)")

    def special_beginnings(self, last: str) -> list[str]:
        """The beginnings of special tokens, short of the whole, that end in the character `last`."""
        return self._special_beginnings.get(last, [])

    @cached_property
    def _special_beginnings(self) -> dict[str, list[str]]:
        by_last: dict[str, list[str]] = {}
        for start in {token[:n] for token in self.special for n in range(1, len(token))}:
            by_last.setdefault(start[-1], []).append(start)
        return by_last

    def __reduce__(self) -> tuple[Callable[[str, str | None], Tokenizer], tuple[str, str | None]]:
        return _reload, (self.source, self.pattern)  # objects of Rust do not travel: another process reads the files again


def _reload(source: str, pattern: str | None) -> Tokenizer:
    from pellucid import load_tokenizer  # the front door, which also reads GGUF files

    return load_tokenizer(source, pattern=pattern)


def _unicode(text: str) -> str:
    if not isinstance(text, str):
        raise BadRequest(f"text to encode is {type(text).__name__}, not str", field="text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"the text holds half a character (the lone surrogate {text[error.start]!r} at position {error.start}), which "
                         f"no tokenizer knows. "
                         f"Was it decoded from bytes that are not UTF-8?", field="text") from None
    return text
