"""Tokenizer -> the metadata by which a GGUF file says it, and which gguf.py reads: the same tables, backwards.

    how it is run here              tokenizer.ggml.model
    byte-level BPE                  gpt2, with the name of its way of splitting: no name, no file
    SentencePiece BPE, unigram      llama, t5
    BPE over spaced text            llama, where scores can say the order of its merges; gemma4 otherwise

Nothing is taken on trust: the metadata is read back and must give the same ids for PROBES.
Source of what the lists hold: conversion/base.py of llama.cpp at 00bd27a62 (get_vocab_base, _create_vocab_sentencepiece).
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pellucid.errors import BadTokenizer, PellucidError
from pellucid.tokenizer.bytelevel import GPT2_PATTERN
from pellucid.tokenizer.encode import Library, PieceEncoder, Token
from pellucid.tokenizer.gguf import TEMPLATE, tokenizer_of_gguf
from pellucid.tokenizer.gguf_vocab import ADDED, PREFIX, ROLES
from pellucid.tokenizer.pretokenizers import PRE
from pellucid.tokenizer.sentencepiece import Kind, bpe_merges
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.tokenizer.unigram import SPACE

# Scripts, digits, cases, contractions, white space, code, emoji, combining marks: where two ways of splitting differ, one of these shows it.
PROBES = (
    "The quick brown fox; it's 1234567890 o'clock, we'll SEE what THEY'Ve 12 345 said...\n", "a b   c\n\n\n\t d\r\n  e ", "naïve Straße Łódź İstanbul e\u0301",
    "Съешь ещё этих мягких булок", "नमस्ते दुनिया क्षत्रिय", "สวัสดีชาวโลก", "你好，世界！漢字かな交じり文カタカナ", "안녕하세요 세계", "مرحبا بالعالم ١٢٣",
    "👨‍👩‍👧 🏳️‍🌈 ✊🏿 ½ ² Ⅳ ©",
    "def f(x):\n\t\treturn {'a': x[0] ** 2.5e-3, \"b\": None}  # ok?!\n", "<b>&amp;</b> http://a.b/c?d=e&f#g $1,234.56 ======= ```` ''''",
    "▁a▁▁b <0x41>", "\x00\x01\x7f\u200b\u00a0\u3000\ufeff",
)
# What tokenizer.json calls a way of splitting that pretokenizers.py spells otherwise, as the patterns of its steps.
_PUNCTUATION = "Punctuation: runs"
_ALSO = {
    # https://huggingface.co/tiiuae/falcon-7b: its Digits come after GPT-2's pattern, which has cut between letters and digits already
    (_PUNCTUATION, GPT2_PATTERN, r"\p{N}+", "[0-9][0-9][0-9]"): PRE["falcon"].split,
    (r" ?[^(\s|[.,!?…。，、।۔،])]+",): PRE["bloom"].split,  # https://huggingface.co/bigscience/bloom, a class inside of a class
}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """The lists. scores or merges, or both; more: keys after `tokenizer.ggml.`."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    more: Mapping[str, Any]


class _Items(list[Any]):
    """A list as the metadata of a file gives it."""

    kind = "list"

    def values(self) -> list[Any]:
        return list(self)


def gguf_metadata(tokenizer: Tokenizer, n_rows: int, *, end_ids: Sequence[int] = (), architecture: str = "") -> tuple[dict[str, Any], list[str]]:
    """(the metadata of a tokenizer, what there is to say about it): texts, bools, whole numbers, floats, and lists of them.

    n_rows: of the embedding; places past the vocabulary are filled as llama.cpp's converter fills them. end_ids: what ends an answer, likeliest first.
    architecture: of the file, since llama.cpp reads Gemma 4's by its own kind.

    Raises BadTokenizer for a tokenizer that GGUF has no words for, and for one that would be read back as another.
    """
    where = tokenizer.source
    if tokenizer.n_vocab > n_rows:
        raise BadTokenizer(f"{where} has {tokenizer.n_vocab:,} tokens, and the embedding {n_rows:,} rows. Are they of one model?")
    said = _of_pieces(tokenizer, where) if isinstance(tokenizer.encoder, PieceEncoder) else _of_library(tokenizer, where, architecture)
    n = len(said.tokens)
    out: dict[str, Any] = {
        "model": said.model, "pre": said.pre, "tokens": [*said.tokens, *(f"[PAD{i}]" for i in range(n, n_rows))],
        "scores": None if said.scores is None else [*said.scores, *[ADDED] * (n_rows - n)],
        "token_type": [*said.kinds, *[int(Kind.UNUSED)] * (n_rows - n)], "merges": said.merges, **_ids(tokenizer, end_ids), **said.more}
    metadata = {PREFIX + key: value for key, value in out.items() if value is not None} | _templates(tokenizer)
    return metadata, [*_ends_notes(tokenizer, said), *_read_back(tokenizer, metadata)]


def _of_pieces(tokenizer: Tokenizer, where: str) -> _Said:
    """SentencePiece: pieces as they are; tokens that stood beside them get the converter's score for such."""
    encoder = tokenizer.encoder
    assert isinstance(encoder, PieceEncoder)
    model = encoder.model
    if model.treat_whitespace_as_suffix or not model.escape_whitespaces:
        raise BadTokenizer(f"{where} puts spaces after words, or keeps them as they are, and GGUF says neither. Is there a tokenizer.json?")
    tokens, kinds, scores = [p.text for p in model.pieces], [p.kind for p in model.pieces], [p.score for p in model.pieces]
    for i, token in _numbered(encoder.added):
        while i >= len(tokens):
            tokens.append(f"[PAD{len(tokens)}]")
            kinds.append(Kind.UNUSED)
            scores.append(ADDED)
        if tokens[i] != token.text or i >= len(model.pieces):
            tokens[i], scores[i] = token.text, ADDED
        kinds[i] = Kind.CONTROL if token.special else Kind.USER_DEFINED
        scores[i] = ADDED if kinds[i] is Kind.USER_DEFINED else scores[i]
    more = {"add_space_prefix": model.add_dummy_prefix, "remove_extra_whitespaces": model.remove_extra_whitespaces,
            "precompiled_charsmap": [b - 256 * (b > 127) for b in model.charsmap] or None, "unknown_token_id": model.unk_id}
    return _Said(model="llama" if model.algorithm == "bpe" else "t5", pre="default", tokens=tokens, kinds=list(map(int, kinds)), scores=scores, more=more)


def _of_library(tokenizer: Tokenizer, where: str, architecture: str) -> _Said:
    encoder = tokenizer.encoder
    assert isinstance(encoder, Library)
    raw = json.loads(encoder.to_json())
    model = raw["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise BadTokenizer(f"{where} is a {model['type']} tokenizer of the tokenizers library, and BPE is written to GGUF. Is there a tokenizer.model?")
    names = {i: token for token, i in encoder.vocabulary.items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(encoder.n_vocab)]
    kinds = [Kind.NORMAL if i in names else Kind.UNUSED for i in range(encoder.n_vocab)]
    for i, token in _numbered(encoder.added):
        kinds[i] = Kind.CONTROL if token.special else Kind.USER_DEFINED
    steps = _steps(raw["pre_tokenizer"])
    if any(step["type"] == "ByteLevel" for step in steps):
        return _Said(model="gpt2", pre=_pre(raw, steps, where), tokens=tokens, kinds=list(map(int, kinds)), merges=_lines(model), more={})
    return _spaced(raw, steps, tokens, kinds, encoder, where, architecture)


def _pre(raw: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], where: str) -> str:
    """The name of the way this tokenizer splits text. Raises BadTokenizer where none is known, with what was found."""
    split, whole, nfc = _patterns(steps), bool(raw["model"].get("ignore_merges")), _normalizers(raw["normalizer"])
    split = _ALSO.get(split, split)
    alike = {name: pre for name, pre in PRE.items() if pre.split == split and not pre.spaced}
    for name, pre in alike.items():
        if pre.whole_words_first == whole and pre.nfc == (nfc == ["NFC"]) and nfc in ([], ["NFC"]):
            return name
    nearly = f" It is that of {', '.join(alike)}, but for its normalizer or its treatment of whole words." if alike else ""
    raise BadTokenizer(f"{where} splits text in a way that llama.cpp has no name for, or none known here: {', '.join(map(repr, split)) or 'not at all'}"
                       f"{', whole words first' * whole}, normalizer {nfc or 'none'}.{nearly} A file that named another would give wrong ids. "
                       f"--without-tokenizer writes the weights alone.")


def _patterns(steps: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The pattern of every step; what is no pattern by its own description, which no table has."""
    out: list[str] = []
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                out.append(pattern)
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
                out.append(pattern)  # what the pattern does not match is dropped: the patterns of this kind match everything
            case {"type": "Split", "pattern": {"String": text}, "behavior": "Isolated", "invert": False}:
                out.append(re.escape(text))
            case {"type": "Digits", "individual_digits": alone}:
                out.append(r"\p{N}" if alone else r"\p{N}+")
            case {"type": "Punctuation", "behavior": "Contiguous"}:
                out.append(_PUNCTUATION)
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
                out.append(GPT2_PATTERN)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                pass
            case _:
                out.append(json.dumps(step, ensure_ascii=False))
    return tuple(out)


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a pre-tokenizer or a normalizer, one after the other."""
    if part is None:
        return []
    inner = part.get("pretokenizers", part.get("normalizers"))
    return [part] if inner is None else [step for each in inner for step in _steps(each)]


def _normalizers(part: Mapping[str, Any] | None) -> list[str]:
    return [step["type"] for step in _steps(part)]


def _spaced(raw: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], tokens: list[str], kinds: list[Kind], encoder: Library, where: str,
            architecture: str) -> _Said:
    """BPE over the text itself, its spaces written ▁: Llama's and Gemma's, as tokenizer.json has them."""
    prefix, odd = False, []
    for step in (*_steps(raw["normalizer"]), *steps):
        match step:
            case {"type": "Prepend", "prepend": text} if text == SPACE:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": text} if text == SPACE:
                pass
            case {"type": "Metaspace", "replacement": text, "split": False, "prepend_scheme": scheme} if text == SPACE:
                prefix |= scheme != "never"
            case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
                pass  # no space is left by then: Gemma's normalizer has replaced them all
            case _:
                odd.append(step["type"])
    if odd or not raw["model"].get("byte_fallback"):
        raise BadTokenizer(f"{where} is BPE over the text itself with {', '.join(odd) or 'no tokens for bytes'}, which GGUF has no words for. "
                           f"Is there a tokenizer.model? --without-tokenizer writes the weights alone.")
    kinds = [Kind.BYTE if kind is Kind.NORMAL and _BYTE.fullmatch(token) else kind for token, kind in zip(tokens, kinds, strict=True)]
    if encoder.unk is not None:
        kinds[encoder.vocabulary[encoder.unk]] = Kind.UNKNOWN
    scores = _scores(raw["model"], tokens, kinds)
    if architecture == "gemma4" or (scores is None and not prefix):
        return _Said(model="gemma4", pre="gemma4", tokens=tokens, kinds=list(map(int, kinds)), merges=_lines(raw["model"]), more={})
    if scores is None:
        raise BadTokenizer(f"{where} joins tokens in an order that no scores can say, and puts a space before the text, which merges in GGUF cannot. "
                           f"Is there a tokenizer.model? --without-tokenizer writes the weights alone.")
    return _Said(model="llama", pre="default", tokens=tokens, kinds=list(map(int, kinds)), scores=scores, more={"add_space_prefix": prefix})


def _scores(model: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[Kind]) -> list[float] | None:
    """Scores by which SentencePiece joins as these merges do, the sooner the higher; None where there are none.

    A merge is two parts there, and a score one whole: the order must be that of the wholes, and each whole must have all pairs that make it.
    """
    order: dict[str, int] = {}
    pairs = _pairs(model)
    for left, right in pairs:
        order.setdefault(left + right, len(order))
    last = len(order)
    own = {Kind.USER_DEFINED: ADDED}  # which start a new text, as the library has it
    scores = [-float(order.get(token, last)) if kind is Kind.NORMAL else own.get(kind, 0.0) for token, kind in zip(tokens, kinds, strict=True)]
    normal = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind is Kind.NORMAL}
    would = bpe_merges({token: scores[i] for token, i in normal.items()}, normal)
    rank = {pair: order[pair[0] + pair[1]] for pair in pairs}
    same = set(would) == set(pairs) and all(rank[a] <= rank[b] for a, b in pairwise(pairs))
    return scores if same else None


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]


def _lines(model: Mapping[str, Any]) -> list[str]:
    return [f"{left} {right}" for left, right in _pairs(model)]


def _numbered(added: Mapping[str, Token]) -> Iterable[tuple[int, Token]]:
    return sorted(((token.id, token) for token in added.values() if token.id is not None), key=lambda pair: pair[0])


def _ids(tokenizer: Tokenizer, end_ids: Sequence[int]) -> dict[str, Any]:
    """Special ids and flags, by their keys; ends of an answer beyond EOS are EOT and EOM."""
    names = {role: key for key, role in reversed(ROLES.items())}
    out: dict[str, Any] = {}
    for role, text in tokenizer.special_tokens.items():
        if role in names and (i := tokenizer.id_of(text)) is not None:
            out[f"{names[role]}_token_id"] = i
    others = [i for i in end_ids if i not in out.values()]
    out |= {f"{key}_token_id": i for key, i in zip([key for key in ("eot", "eom") if f"{key}_token_id" not in out], others, strict=False)}
    return out | {"add_bos_token": tokenizer.adds_bos, "add_eos_token": tokenizer.eos_id is not None and tokenizer.eos_id in tokenizer.suffix}


def _templates(tokenizer: Tokenizer) -> dict[str, Any]:
    default = tokenizer.chat_template
    out: dict[str, Any] = {} if default is None else {TEMPLATE: default.source}
    others = {name: template.source for name, template in tokenizer.chat_templates.items() if template is not default}
    return out | ({"tokenizer.chat_templates": list(others)} if others else {}) | {f"{TEMPLATE}.{name}": source for name, source in others.items()}


def _ends_notes(tokenizer: Tokenizer, said: _Said) -> Iterable[str]:
    """What GGUF cannot say of the ends of a text, and of the white space beside tokens."""
    for what, ids, single in (("begins", tokenizer.prefix, tokenizer.bos_id), ("ends", tokenizer.suffix, tokenizer.eos_id)):
        if ids not in ((), (single,)):
            yield f"every text {what} with {' '.join(map(tokenizer.token_of, ids))!r} here, and GGUF knows one token there at most"
    if said.model == "llama" and said.more.get("remove_extra_whitespaces"):
        yield "runs of spaces are one here, and llama.cpp keeps them"
    if greedy := [token.text for token in tokenizer.encoder.added.values() if token.lstrip or token.rstrip]:
        yield f"{len(greedy)} tokens take the white space beside them here, first {greedy[0]!r}; GGUF cannot say it"


def _read_back(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> Iterable[str]:
    """Raises BadTokenizer where the metadata is read as another tokenizer; a note where only texts with special tokens in them differ."""
    try:
        again = tokenizer_of_gguf({key: _Items(value) if isinstance(value, list) else value for key, value in metadata.items()}, "what would be written")
    except PellucidError as error:
        raise BadTokenizer(f"{tokenizer.source} cannot be written to GGUF: {error}") from None
    for text in PROBES:
        if (ids := tokenizer.encode(text)) != (read := again.encode(text)):
            at = next((i for i, (a, b) in enumerate(zip(ids, read, strict=False)) if a != b), min(len(ids), len(read)))
            raise BadTokenizer(f"{tokenizer.source} cannot be said in GGUF: {text!r:.60} would become other ids, from the {at + 1}. on "
                               f"{read[at:at + 4]} in place of {ids[at:at + 4]}. --without-tokenizer writes the weights alone.")
    special = [token for token in tokenizer.special if token not in (tokenizer.special_tokens.get("unk_token"),)][:8]
    marked = " x y".join(["", *special, "\n"])
    if tokenizer.encode_rendered(marked) != again.encode_rendered(marked):
        yield "text after special tokens gets other ids than here: GGUF cannot say how spaces are treated there"
