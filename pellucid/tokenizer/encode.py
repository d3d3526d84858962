"""Text -> ids, in two ways that differ in one thing: whether special tokens in the text become their ids.

Two encoders with one interface: `Library`, a tokenizers object, and `PieceEncoder`, a SentencePiece model.
"""
from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import tokenizers

from pellucid.errors import BadTokenizer
from pellucid.tokenizer.sentencepiece import Kind, Pieces

_SPACE = re.compile(r"\s*")
_DEEPEST = 100  # characters of a token, each of which nests the pattern once more
LONG = 1 << 14  # characters, some ten milliseconds; below, waking other threads is not worth it


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token added beside the vocabulary's own. lstrip, rstrip: it takes the whitespace on that side with it."""

    text: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class Encoder(Protocol):
    """text: never a special id. rendered: special tokens in the text become their ids. mixed: text and ids, in order; the text is plain."""

    n_vocab: int
    added: dict[str, Token]

    def text(self, text: str) -> list[int]: ...
    def rendered(self, text: str) -> list[int]: ...
    def mixed(self, parts: Sequence[str | int]) -> list[int]: ...
    def id_of(self, token: str) -> int | None: ...
    def token_of(self, token_id: int) -> str | None: ...


def _encoded(library: tokenizers.Tokenizer, text: str) -> list[int]:
    """A long text is read while other threads run: the library's plain call holds the interpreter (5 s of 7 MB), and also looks where tokens lie."""
    ids: list[int] = library.encode(text, add_special_tokens=False).ids if len(text) < LONG else \
        library.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


class Library:
    """A tokenizers object, with the tokens of the config beside it.

    Args:
        tokens: what the config names. One without an id that the vocabulary does not hold is left out: no text becomes it, no id is it.
        ends: the texts of BOS and EOS, which stay special even where one of them is the token for unknown text too, as in GPT-2.

    Raises BadTokenizer where the config gives a token another id than the vocabulary, or an id that is another token's.
    """

    def __init__(self, library: tokenizers.Tokenizer, tokens: Iterable[Token], ends: frozenset[str], where: str) -> None:
        self._where = where
        library.no_padding()  # a tokenizer.json may carry the padding and truncation of a training script
        library.no_truncation()
        if getattr(library.model, "dropout", None):
            library.model.dropout = None  # acts in training only
        self.added = {t.content: Token(text=t.content, id=i, special=t.special, lstrip=t.lstrip, rstrip=t.rstrip, single_word=t.single_word,
                                       normalized=t.normalized) for i, t in sorted(library.get_added_tokens_decoder().items())}
        self._library = self._with(library, tokens)
        self.n_vocab = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)
        # A token for unknown text is not one of the special ones, even where the file says so: plain text may become it.
        unk = _unk_token(self._library)
        self.unk = None if unk in ends else unk
        self._special = frozenset(t.id for t in self.added.values() if t.special and t.text != self.unk and t.id is not None)
        unk_id = None if self.unk is None else self._library.token_to_id(self.unk)
        self._suspects = self._special | ({unk_id} if unk_id is not None else set())  # an id of these may have come from its own spelling
        self._plain: tuple[tokenizers.Tokenizer, dict[int, str]] | None = None

    def text(self, text: str) -> list[int]:
        ids = _encoded(self._library, text)
        return ids if self._suspects.isdisjoint(ids) else self.mixed([text])

    def rendered(self, text: str) -> list[int]:
        return _encoded(self._library, text)

    def mixed(self, parts: Sequence[str | int]) -> list[int]:
        if self._plain is None:
            self._plain = self._without_specials()
        library, names = self._plain
        return _encoded(library, "".join(names[p] if isinstance(p, int) else p for p in parts))

    def id_of(self, token: str) -> int | None:
        found: int | None = self._library.token_to_id(token)
        return found

    def token_of(self, token_id: int) -> str | None:
        found: str | None = self._library.id_to_token(token_id)
        return found

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token's id, added ones too."""
        found: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        return found

    def to_json(self) -> str:
        """The content of a tokenizer.json that says the same."""
        text: str = self._library.to_str()
        return text

    @property
    def decoder_json(self) -> str | None:
        decoder = self._library.decoder
        return None if decoder is None else decoder.__getstate__().decode()

    @property
    def post_processor_json(self) -> str | None:
        processor = self._library.post_processor
        return None if processor is None else processor.__getstate__().decode()

    def _with(self, library: tokenizers.Tokenizer, tokens: Iterable[Token]) -> tokenizers.Tokenizer:
        """The library with every token of the config at the id the config gives it."""
        new: dict[int, Token] = {}
        for token in tokens:
            there = library.token_to_id(token.text)
            if there is None and token.id is None:
                continue
            if there is not None and token.id not in (None, there):
                raise _contradiction(self._where, f"gives {token.text!r} the id {token.id}, the vocabulary gives it {there}")
            if there is None and token.id is not None:
                if (other := library.id_to_token(token.id)) is not None:
                    raise _contradiction(self._where, f"gives the id {token.id} to {token.text!r}, the vocabulary to {other!r}")
                new[token.id] = token
            known = self.added.get(token.text)
            if known is not None:  # what the file itself says of a token stays; the config only adds that it is special
                self.added[token.text] = replace(known, special=known.special or token.special)
                continue
            self.added[token.text] = replace(token, id=token.id if there is None else there)
            if there is not None:
                library.add_tokens([_added(token)])
        if not new:
            return library
        n = library.get_vocab_size(with_added_tokens=True)
        follows_on = sorted(new) == list(range(n, n + len(new))) and n == 1 + max(library.get_vocab(with_added_tokens=True).values(), default=-1)
        if not follows_on:  # the library numbers added tokens by itself, from the end, so ids of our choice go into the vocabulary first
            library = _with_vocabulary(library, new)
        library.add_tokens([_added(token) for _, token in sorted(new.items())])
        assert all(library.token_to_id(token.text) == i for i, token in new.items())
        return library

    def _without_specials(self) -> tuple[tokenizers.Tokenizer, dict[int, str]]:
        """A copy in which every special token has a name nobody can type, and id -> that name: so no text becomes one, nor a piece of the
        vocabulary that is spelled like one, while the rest of the pipeline sees the same boundaries."""
        secret = "\ufdd0" + secrets.token_hex(8)
        hidden = {t.text: f"{secret}{t.id}\ufdd1" for t in self.added.values() if t.special}
        raw = json.loads(self._library.to_str())
        model: dict[str, Any] = raw["model"]
        vocab = model["vocab"]
        named = vocab.items() if isinstance(vocab, dict) else vocab
        model["vocab"] = type(vocab)((hidden.get(token, token), value) for token, value in named)
        if "merges" in model:
            pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
            model["merges"] = [list(p) for p in pairs if not {p[0], p[1], p[0] + p[1]} & hidden.keys()]
        if model.get("unk_token") in hidden:
            model["unk_token"] = hidden[model["unk_token"]]
        raw["post_processor"] = None
        raw["added_tokens"] = [t | {"content": hidden[t["content"]], "normalized": False} if t["content"] in hidden else t
                               for t in raw["added_tokens"] if t["content"] != self.unk]
        names = {t.id: hidden[t.text] for t in self.added.values() if t.special and t.id is not None}
        return tokenizers.Tokenizer.from_str(json.dumps(raw)), names


class PieceEncoder:
    """A SentencePiece model, with the tokens of the config beside it.

    segments: "each" text between special tokens is encoded by itself, as the reference code of Llama 2 and Mistral does; "first": only the
    beginning of the whole text gets the space before it (`legacy: false` in tokenizer_config.json).

    Raises BadTokenizer where the config gives the id of an ordinary piece to another token, or a piece another id.
    """

    def __init__(self, pieces: Pieces, tokens: Iterable[Token], *, segments: str = "each") -> None:
        self._pieces, self._first_only = pieces, segments == "first"
        self.model = model = pieces.model
        names = {i: p.text for i, p in enumerate(model.pieces)}
        ids = {text: i for i, text in reversed(names.items())}
        self.unk: str | None = names[model.unk_id]
        self.added = {p.text: Token(text=p.text, id=i) for i, p in enumerate(model.pieces) if p.kind is Kind.CONTROL}
        self.renamed: dict[int, str] = {}
        for token in tokens:
            i = token.id if token.id is not None else ids.get(token.text)
            if i is None or (token.text == self.unk and i == model.unk_id):
                continue
            if ids.get(token.text, i) != i:
                raise _contradiction(model.where, f"gives {token.text!r} the id {i}, the model gives it {ids[token.text]}")
            if names.get(i, token.text) != token.text:
                if model.pieces[i].kind in (Kind.NORMAL, Kind.BYTE, Kind.UNKNOWN):
                    raise _contradiction(model.where, f"gives the id {i} to {token.text!r}, the model to {names[i]!r}")
                self.added.pop(names[i], None)  # a place kept free for later, under its real name now
                ids.pop(names[i], None)
            if names.get(i) != token.text:
                self.renamed[i] = token.text
            elif not token.special and model.pieces[i].kind is Kind.USER_DEFINED:
                continue  # the model itself keeps it whole
            names[i], ids[token.text] = token.text, i
            self.added[token.text] = replace(token, id=i)
        self._names, self._ids = names, ids
        self.n_vocab = 1 + max(names)
        self._all = splitter(self.added.values())
        self._ordinary = splitter(t for t in self.added.values() if not t.special)

    def text(self, text: str) -> list[int]:
        return self.mixed([text])

    def rendered(self, text: str) -> list[int]:
        return self._joined(self._all(text))

    def mixed(self, parts: Sequence[str | int]) -> list[int]:
        return self._joined([q for p in parts for q in (self._ordinary(p) if isinstance(p, str) else [p])])

    def id_of(self, token: str) -> int | None:
        return self._ids.get(token)

    def token_of(self, token_id: int) -> str | None:
        return self._names.get(token_id)

    def _joined(self, parts: Iterable[str | int]) -> list[int]:
        out: list[int] = []
        for n, part in enumerate(parts):
            out += [part] if isinstance(part, int) else self._pieces.ids(part, dummy_prefix=n == 0 or not self._first_only)
        return out


class Splitter(Protocol):
    def __call__(self, text: str) -> list[str | int]: ...


def splitter(tokens: Iterable[Token]) -> Splitter:
    """A function that cuts a text at these tokens: the text between, and the tokens' ids. The longest token wins where several begin."""
    by_text = {t.text: t for t in tokens}
    if not by_text:
        return lambda text: [text] if text else []
    pattern = re.compile(any_of(by_text))

    def split(text: str) -> list[str | int]:
        parts: list[str | int] = []
        at = 0
        for match in pattern.finditer(text):
            start, end = match.span()
            if start < at:  # white space that the token before it took
                continue
            token = by_text[match.group()]
            assert token.id is not None
            between = text[at:start].rstrip() if token.lstrip else text[at:start]
            parts += [between, token.id] if between else [token.id]
            at = _SPACE.match(text, end).end() if token.rstrip else end  # type: ignore[union-attr]
        return [*parts, text[at:]] if at < len(text) else parts

    return split


def any_of(texts: Iterable[str]) -> str:
    """A pattern that matches the longest of these texts that stands at a place. A tree of their characters, since vocabularies have thousands."""
    texts = sorted(set(texts), key=len, reverse=True)
    if len(texts[0]) > _DEEPEST:
        return "|".join(map(re.escape, texts))
    by_first: dict[str, list[str]] = {}
    for text in texts:
        if text:
            by_first.setdefault(text[0], []).append(text[1:])
    branches = [re.escape(first) + (any_of(rest) if rest != [""] else "") for first, rest in by_first.items()]
    tree = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{tree})?" if texts[-1] == "" else tree


def special_in(added: Mapping[str, Token], unk: str | None) -> dict[str, int]:
    """Text -> id of the special tokens. The token for unknown text is not one: plain text may become it."""
    return {t.text: t.id for t in added.values() if t.special and t.id is not None and t.text != unk}


def _unk_token(library: tokenizers.Tokenizer) -> str | None:
    """The token that stands for text the vocabulary does not cover, if the model has one."""
    model = library.model
    if isinstance(model, tokenizers.models.Unigram):  # which does not show its unk_id otherwise
        found = re.search(rb'"unk_id":(\d+)', model.__getstate__())
        return library.id_to_token(int(found[1])) if found else None
    unk: str | None = getattr(model, "unk_token", None)
    return unk


def _with_vocabulary(library: tokenizers.Tokenizer, new: Mapping[int, Token]) -> tokenizers.Tokenizer:
    """A copy whose vocabulary holds these tokens at these ids."""
    raw = json.loads(library.to_str())
    vocab = raw["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab |= {token.text: i for i, token in new.items()}
    else:  # a list, where the place is the id: gaps get names nobody can type
        filler = secrets.token_hex(8)
        vocab += [[f"\ufdd0{filler}{i}", 0.0] for i in range(len(vocab), max(new) + 1)]
        for i, token in new.items():
            vocab[i] = [token.text, 0.0]
    return tokenizers.Tokenizer.from_str(json.dumps(raw))


def _added(token: Token) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token.text, special=token.special, lstrip=token.lstrip, rstrip=token.rstrip, single_word=token.single_word,
                                 normalized=token.normalized)


def _contradiction(where: str, what: str) -> BadTokenizer:
    return BadTokenizer(f"{where}: tokenizer_config.json {what}. One of them is from another model.")
