"""Ids -> text, piece by piece: never half a character, and the pieces always join to the whole text.

There is one way to decode here, token -> bytes -> UTF-8 as it becomes complete; decoding a whole list is that stream run to its end.
"""
from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pellucid.errors import BadRequest, BadTokenizer
from pellucid.tokenizer.bytelevel import to_bytes
from pellucid.tokenizer.sentencepiece import Kind, SentencePieceModel
from pellucid.tokenizer.unigram import SPACE

# An invalid byte becomes U+FFFD by itself, as in SentencePiece and in the byte fallback of the tokenizers library;
# byte-level tokenizers use the usual "replace": one U+FFFD for the longest beginning of a character.
codecs.register_error("pellucid-each-byte", lambda error: ("\ufffd" * (error.end - error.start), error.end))  # type: ignore[attr-defined]

Lead = Literal["keep", "one-space", "first-token", "pieces", "pieces-all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What every id reads as, and what happens to the space before the first word.

    bytes_of: the bytes of an id; None where the vocabulary has no such id.
    is_byte:  whether the id is a byte-fallback token of a SentencePiece model.
    opens:    whether the id is a piece that begins with ▁; the space may also come from elsewhere, and then it stays.
    lead:     "keep" · "one-space": the text's first space goes · "first-token": every space of the first token goes (Metaspace) ·
              "pieces": one ▁ that begins the first piece goes · "pieces-all": every piece loses one, until there is text.
    joiner:   what stands between tokens (a tokenizer without a decoder joins with spaces).
    """

    bytes_of: Callable[[int], bytes | None]
    lead: Lead = "keep"
    joiner: bytes = b""
    is_byte: Callable[[int], bool] = lambda i: False
    opens: Callable[[int], bool] = lambda i: False
    errors: Literal["replace", "pellucid-each-byte"] = "replace"


class TextStream:
    """Text as it comes, id by id. `hidden` ids read as nothing.

    after: ids that stand before the first one pushed: then a leading space is kept, and a character they began is finished.
    """

    def __init__(self, words: Words, hidden: frozenset[int], after: Iterable[int] = ()) -> None:
        self._words, self._hidden = words, hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")(words.errors)
        self._at_start, self._consumed_space, self._n = True, False, 0
        shown = [i for i in after if i not in hidden]
        if shown:
            self._at_start = False
            for i in shown[-4:]:  # a character has at most four bytes
                self.push(i)

    def push(self, token_id: int) -> str:
        """The text that became complete with this id, possibly none."""
        words = self._words
        if token_id in self._hidden:
            self._at_start = self._at_start and not self._consumed_space
            return self._flushed() if words.lead.startswith("pieces") else ""
        data = words.bytes_of(token_id)
        if data is None:
            data = "\ufffd".encode()  # an id past the vocabulary, as padded embeddings allow: visible, and no reason to stop
        # A piece ends the run of bytes before it, even where the piece itself reads as nothing.
        before = self._flushed() if words.lead.startswith("pieces") and not words.is_byte(token_id) else ""
        if self._at_start:
            data = self._led(data, token_id)
        if words.joiner and self._n:
            data = words.joiner + data
        self._n += 1
        return before + self._utf8.decode(data)

    def finish(self) -> str:
        """The rest: U+FFFD for a character that never became complete."""
        return self._utf8.decode(b"", True)

    def _flushed(self) -> str:
        text = self._utf8.decode(b"", True)
        self._utf8.reset()
        if text:
            self._at_start = False
        return text

    def _led(self, data: bytes, token_id: int) -> bytes:
        """The bytes of a token at the start of the text, with its leading space treated as this tokenizer does."""
        lead = self._words.lead
        if lead == "keep":
            self._at_start = False
            return data
        if lead == "first-token":
            self._at_start = False
            return data.replace(b" ", b"")
        if lead == "one-space":
            self._at_start = not data
            return data.removeprefix(b" ")
        if self._consumed_space or not self._words.opens(token_id):  # "pieces": one space at most
            self._at_start = not data and not self._consumed_space
            return data
        rest = data.removeprefix(b" ")
        self._consumed_space = lead == "pieces" and rest != data
        self._at_start = not rest
        return rest


def words_of_sentencepiece(model: SentencePieceModel, extra: Mapping[int, str]) -> Words:
    """How SentencePiece reads its own pieces; `extra` are ids that were added outside of the model, or renamed."""
    read: dict[int, bytes] = {}
    for i, piece in enumerate(model.pieces):
        if piece.kind is Kind.BYTE:
            read[i] = bytes([int(piece.text[3:5], 16)])
        elif piece.kind is Kind.UNKNOWN:
            read[i] = model.unk_surface.encode()
        elif piece.kind is Kind.CONTROL:
            read[i] = piece.text.encode()
        else:
            read[i] = piece.text.replace(SPACE, " ").encode()
    read |= {i: text.encode() for i, text in extra.items()}
    bytes_at = frozenset(i for i, piece in enumerate(model.pieces) if piece.kind is Kind.BYTE)
    strips = model.add_dummy_prefix or model.remove_extra_whitespaces
    lead: Lead = "pieces-all" if model.remove_extra_whitespaces else "pieces" if strips else "keep"
    words = (Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED)
    opens = frozenset(i for i, piece in enumerate(model.pieces) if piece.text.startswith(SPACE) and piece.kind in words)
    return Words(bytes_of=read.get, is_byte=bytes_at.__contains__, opens=opens.__contains__, lead=lead, errors="pellucid-each-byte")


def words_of_decoder(decoder_json: str | None, token_of: Callable[[int], str | None], verbatim: Mapping[int, str], where: str) -> Words:
    """How the `decoder` of a tokenizer.json reads its tokens; `verbatim` ids (special tokens) read as themselves.

    Raises BadTokenizer for a decoder that no GPT uses, naming those known here.
    """
    if decoder_json in (None, "null"):
        return Words(bytes_of=_cached(token_of, verbatim, str.encode), joiner=b" ")
    raw = json.loads(decoder_json)
    steps: list[dict[str, Any]] = raw["decoders"] if raw["type"] == "Sequence" else [raw]
    lead: Lead = "keep"
    changes: list[Callable[[str], str]] = []
    fallback = byte_level = fused = False
    for step in steps:
        kind = step["type"]
        if kind == "ByteLevel":
            byte_level = True
        elif kind == "ByteFallback":
            fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Replace" and "String" in step["pattern"]:
            changes.append(_replace(step["pattern"]["String"], step["content"]))
        elif kind == "Metaspace":
            changes.append(_replace(step["replacement"], " "))
            lead = "keep" if step.get("prepend_scheme", "always") == "never" else "first-token"
        elif kind == "Strip" and fused and (step["content"], step["start"], step["stop"]) == (" ", 1, 0):
            lead = "one-space"
        else:
            raise BadTokenizer(f"{where} has a decoder that is not implemented: {json.dumps(step, ensure_ascii=False)} (known: "
                               f"ByteLevel; Replace of a text, "
                               f"ByteFallback, Fuse and a Strip of one leading space; Metaspace). Did the file come from a GPT?")
    if byte_level and (changes or fallback):
        raise BadTokenizer(f"{where} mixes ByteLevel with other decoders, which is not implemented: {decoder_json}. Did the file come "
                           f"from a GPT?")

    def read(token: str) -> bytes:
        if byte_level:
            return to_bytes(token)
        if fallback and (byte := byte_of(token)) is not None:
            return bytes([byte])
        for change in changes:
            token = change(token)
        return token.encode()

    return Words(bytes_of=_cached(token_of, verbatim, read), lead=lead, errors="pellucid-each-byte" if fallback else "replace")


def byte_of(token: str) -> int | None:
    """The byte that a byte-fallback token such as `<0x0A>` stands for; None for any other token."""
    if len(token) != 6 or not token.startswith("<0x") or token[5] != ">":
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None


def _replace(old: str, new: str) -> Callable[[str], str]:
    return lambda token: token.replace(old, new)


def _cached(token_of: Callable[[int], str | None], verbatim: Mapping[int, str],
            read: Callable[[str], bytes]) -> Callable[[int], bytes | None]:
    known: dict[int, bytes | None] = {i: text.encode() for i, text in verbatim.items()}

    def bytes_of(i: int) -> bytes | None:
        if i not in known:
            if i < 0:
                raise BadRequest(f"{i} is not a token id: ids start at 0", field="ids")
            token = token_of(i)
            known[i] = None if token is None else read(token)
        return known[i]

    return bytes_of
