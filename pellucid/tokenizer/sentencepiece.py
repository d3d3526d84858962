"""SentencePiece's tokenizer.model: read without its library, with the same ids.

The tokenizers library runs BPE, and Unigram wherever two cuts are not so nearly equally likely that rounding decides between them; unigram.py
knows where, and decides as SentencePiece's float32 sums do.

    text -> normalize (charsmap, spaces) -> BPE or Unigram, a user's own pieces kept whole -> ids

Normalizing happens here, over the whole text, because of three facts the tokenizers library cannot express: rules match characters and not
grapheme clusters, the space put before the text stands there once, and a user-defined piece is cut out after normalizing.
Fields and rules: https://github.com/google/sentencepiece/blob/273449044caa593c2fd7eb7550cb3ab2cff93f1a/src/sentencepiece_model.proto
and normalizer.cc, unigram_model.cc, bpe_model.cc beside it.
"""
from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import dropwhile, pairwise
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import AddedToken, models

from pellucid.errors import BadTokenizer
from pellucid.tokenizer.charsmap import Charsmap
from pellucid.tokenizer.protobuf import as_float, as_int32, fields
from pellucid.tokenizer.unigram import SPACE, Lattice, Unigram


class Kind(IntEnum):
    """What a piece is for. Only normal and user-defined ones are ever found in text."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    text: str
    score: float = 0.0
    kind: Kind = Kind.NORMAL


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """What a tokenizer.model says; the id of a piece is its place in `pieces`. -1 is an id that the model has not."""

    pieces: tuple[Piece, ...]
    algorithm: Literal["unigram", "bpe"]
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    byte_fallback: bool = False
    unk_surface: str = " ⁇ "
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    treat_whitespace_as_suffix: bool = False
    where: str = field(default="tokenizer.model", compare=False)


def read(file: Path) -> SentencePieceModel:
    """The model in a file. Raises BadTokenizer for what is not one, and for a model type other than Unigram and BPE."""
    where, pieces = str(file), []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in fields(file.read_bytes(), where):
        if number == 1 and isinstance(value, bytes):
            pieces.append(_piece(value, where))
        elif number == 2 and isinstance(value, bytes):
            trainer.update(fields(value, where))
        elif number == 3 and isinstance(value, bytes):
            normalizer.update(fields(value, where))
        elif number == 5 and isinstance(value, bytes) and dict(fields(value, where)).get(2):
            raise BadTokenizer(f"{where} has rules that change text after decoding (denormalizer_spec), which is not implemented. Is "
                               f"there a tokenizer.json?")
    if not pieces:
        raise BadTokenizer(f"{where} holds no pieces, so it is not a SentencePiece model. Is the file whole?")
    algorithm = trainer.get(3, 1)
    if algorithm not in (1, 2):
        name = {3: "word", 4: "char"}.get(algorithm, algorithm) if isinstance(algorithm, int) else algorithm
        raise BadTokenizer(f"{where} is a SentencePiece model of type {name!r}; only unigram and bpe are implemented. Is there a "
                           f"tokenizer.json?")
    return SentencePieceModel(
        pieces=tuple(pieces), algorithm="unigram" if algorithm == 1 else "bpe", where=where,
        unk_id=as_int32(trainer.get(40, 0)), bos_id=as_int32(trainer.get(41, 1)), eos_id=as_int32(trainer.get(42, 2)),
        byte_fallback=bool(trainer.get(35, 0)), unk_surface=bytes(trainer.get(44, " ⁇ ".encode())).decode(),
        treat_whitespace_as_suffix=bool(trainer.get(24, 0)), charsmap=bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)), remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)))


def _piece(message: bytes, where: str) -> Piece:
    facts = dict(fields(message, where))
    text, kind = facts.get(1, b""), facts.get(3, 1)
    try:
        return Piece(text=bytes(text).decode() if isinstance(text, bytes) else "", score=as_float(facts.get(2, 0)), kind=Kind(as_int32(kind)))
    except (ValueError, AssertionError) as error:
        raise BadTokenizer(f"{where}: a piece that is not one: {error}. Is the file whole, and a SentencePiece model?") from None


class Pieces:
    """Text -> ids of one SentencePiece model, and nothing else: no control piece is ever produced."""

    def __init__(self, model: SentencePieceModel) -> None:
        self.model = model
        self._charsmap = Charsmap(model.charsmap, model.where) if model.charsmap else None
        self._own = {p.text: i for i, p in enumerate(model.pieces) if p.kind is Kind.USER_DEFINED}
        self._own_pattern = re.compile("|".join(map(re.escape, sorted(self._own, key=len, reverse=True)))) if self._own else None
        self._bytes = {int(p.text[3:5], 16): i for i, p in enumerate(model.pieces) if p.kind is Kind.BYTE}
        if model.byte_fallback and len(self._bytes) != 256:
            raise BadTokenizer(f"{model.where} says byte_fallback, but has {len(self._bytes)} of the 256 byte pieces. Is the file whole?")
        if not 0 <= model.unk_id < len(model.pieces):
            raise BadTokenizer(f"{model.where} says unk_id={model.unk_id}, but has {len(model.pieces)} pieces. Is the file whole?")
        self._between: dict[int, list[int]] = {}
        self._unigram = self._build_unigram() if model.algorithm == "unigram" else None
        self._bpe = self._build_bpe() if model.algorithm == "bpe" else None

    def ids(self, text: str, *, dummy_prefix: bool = True) -> list[int]:
        """The ids of a text, as SentencePiece gives them. dummy_prefix=False: it goes on after something, so no space is put before it."""
        text, unk = self.normalize(text, dummy_prefix=dummy_prefix), self.model.unk_id
        out: list[int] = []
        if self._unigram is not None:
            out = self._unigram.ids(text)
        elif self._bpe is not None:
            out = self._bpe.encode(text, add_special_tokens=False).ids
            if self._between and max(out, default=0) >= len(self.model.pieces):
                out = [part for i in out for part in self._between.get(i, (i,))]
        if not self.model.byte_fallback and unk in out:  # a run of unknown text is one unknown piece
            out = [i for before, i in pairwise([-1, *out]) if not before == i == unk]
        return out

    def normalize(self, text: str, *, dummy_prefix: bool = True) -> str:
        """The text with the model's rules applied, its spaces written as the pieces write them. (Normalizer::Normalize, normalizer.cc)"""
        m, space = self.model, SPACE if self.model.escape_whitespaces else " "
        padded = m.add_dummy_prefix and dummy_prefix
        if m.remove_extra_whitespaces:
            chunks = list(dropwhile(" ".__eq__, self._chunks(text)))
            body = _collapsed(chunks)
        else:
            chunks = [text] if text else []
            body = "".join(self._chunks(text)) if self._charsmap else text
        if not chunks:
            return ""
        body = (space if padded and not m.treat_whitespace_as_suffix else "") + body.replace(" ", space)
        while m.remove_extra_whitespaces and body.endswith(space):  # a typed ▁ counts, and so does the dummy prefix
            body = body.removesuffix(space)
        return body + space if padded and m.treat_whitespace_as_suffix else body

    def _chunks(self, text: str) -> list[str]:
        """The text in the units that normalizing works on: a user's own piece as it is, a matched rule, or a character."""
        if self._own_pattern is None:
            return self._charsmap.split(text) if self._charsmap else list(text)
        chunks, at = [], 0
        for match in [*self._own_pattern.finditer(text), None]:
            between = text[at:match.start() if match else len(text)]
            chunks += self._charsmap.split(between) if self._charsmap else list(between)
            if match:
                chunks.append(match.group())
                at = match.end()
        return chunks

    def _build_unigram(self) -> Unigram:
        normal = {p.text: (i, p.score) for i, p in enumerate(self.model.pieces) if p.kind is Kind.NORMAL and p.text}
        lattice = Lattice(normal, self._own, self.model.unk_id)
        return Unigram(lattice, len(self.model.pieces), self._bytes if self.model.byte_fallback else {})

    def _build_bpe(self) -> tokenizers.Tokenizer:
        pieces, fallback = self.model.pieces, self.model.byte_fallback
        vocab = {p.text: i for i, p in enumerate(pieces) if p.kind in (Kind.NORMAL, Kind.USER_DEFINED)}
        unused = {p.text for p in pieces if p.kind is Kind.UNUSED}
        parts = unused.union(vocab, "".join(vocab))
        if joined := [text for text in unused if len(text) == 1 or any(text[:cut] in parts and text[cut:] in parts for cut in range(1, len(text)))]:
            raise BadTokenizer(f"{self.model.where} is a BPE model with {len(joined)} unused pieces that text may come by, first: {min(joined)!r}, "
                               f"which is not implemented. Is there a tokenizer.json?")
        # SentencePiece joins two symbols when their joining is a piece, pieces themselves or not: Gemma has "\t\t" and no "\t".
        # What is missing in between gets an id past the end, which becomes bytes or unknown again after encoding.
        for char in sorted(set("".join(vocab)) - set(vocab)):
            i = len(pieces) + len(self._between)
            vocab[char], self._between[i] = i, [self._bytes[b] for b in char.encode()] if fallback else [self.model.unk_id]
        merges = bpe_merges({p.text: p.score for p in pieces if p.kind is Kind.NORMAL}, vocab)
        vocab |= {p.text: i for i, p in enumerate(pieces) if p.kind is Kind.BYTE and fallback}
        unk = "\ufdd0" + secrets.token_hex(8)  # a name that nobody can type
        vocab[unk] = self.model.unk_id
        library = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=fallback))
        library.add_tokens([AddedToken(text, normalized=False) for text in self._own])
        return library


def _collapsed(chunks: Sequence[str]) -> str:
    """The chunks joined, with no chunk beginning with a space after one that ended with a space."""
    out, after_space = [], True
    for chunk in chunks:
        if kept := chunk.lstrip(" ") if after_space else chunk:
            out.append(kept)
            after_space = kept.endswith(" ")
    return "".join(out)


def bpe_merges(scores: Mapping[str, float], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs whose joining is a piece, best score first; within one piece the longest left part first.

    SentencePiece takes the leftmost of several pairs that give the same piece, which a list of pairs cannot say; where such
    pairs overlap, the left one has the longer left part.
    """
    merges: list[tuple[str, str]] = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        merges += [(piece[:cut], piece[cut:]) for cut in range(len(piece) - 1, 0, -1) if piece[:cut] in vocab and piece[cut:] in vocab]
    return merges
