"""A GGUF file's metadata -> Tokenizer. Nothing but the metadata is read, and it says all there is to say.

    tokenizer.ggml.model    what it is                                     how it is run here
    gpt2                    byte-level BPE: merges, split by `pre`          the tokenizers library; pretokenizers.py has the names
    gemma4                  BPE whose spaces are ▁ and unknown bytes <0xNN> the tokenizers library
    llama                   SentencePiece BPE: a score for each piece       sentencepiece.py
    t5                      SentencePiece unigram                           sentencepiece.py, unigram.py
    bert                    WordPiece                                       the tokenizers library
    rwkv                    the longest token at every place                cut.py
    plamo2                  the likeliest cut, found from the end           cut.py

Where llama.cpp departs from the tokenizer a model was trained with (spaces after user-defined tokens, rounding, NFC), the model's own is followed.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-vocab.cpp (llama_vocab::impl::load)
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from pellucid.errors import BadRequest, BadTokenizer, did_you_mean, nearest
from pellucid.tokenizer import bytelevel, ranks
from pellucid.tokenizer.cut import CutEncoder, likeliest, longest, unescaped
from pellucid.tokenizer.decode import Words, words_of_sentencepiece
from pellucid.tokenizer.encode import Library, PieceEncoder, Token
from pellucid.tokenizer.facts import Facts
from pellucid.tokenizer.gguf_vocab import ADDED, PREFIX, Vocabulary, has_tokenizer, read_vocabulary
from pellucid.tokenizer.load import finished, words_of_library
from pellucid.tokenizer.pretokenizers import PRE, Pre
from pellucid.tokenizer.sentencepiece import Kind, Piece, Pieces, SentencePieceModel
from pellucid.tokenizer.tokenizer import Tokenizer
from pellucid.tokenizer.unigram import SPACE

TEMPLATE = "tokenizer.chat_template"  # and with a name after a dot


@dataclass(frozen=True, slots=True, kw_only=True)
class _Built:
    """What a kind of tokenizer makes of a vocabulary. adds_bos, adds_eos: where no key says. last: the role of what ends a text in any case."""

    encoder: Library | PieceEncoder | CutEncoder
    words: Words
    adds_bos: bool = False
    adds_eos: bool = False
    last: str | None = None


def tokenizer_of_gguf(metadata: Mapping[str, Any], where: str, *, pattern: str | None = None) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes; `where` is the file's path.

    pattern: how text is split before merging, in place of the one that `tokenizer.ggml.pre` names.
    Raises BadRequest for a pattern where there is nothing to split, BadTokenizer for a file without one, of a kind or a `pre` that is not known, or
    whose lists contradict each other; BadTemplate for a chat template that does not compile.
    """
    model = metadata.get(f"{PREFIX}model")
    if not has_tokenizer(metadata):
        raise BadTokenizer(f"{where} has no tokenizer: {PREFIX}model is {model!r}. The model takes token ids only; the repository it was made from "
                           f"may have tokenizer files.")
    if not isinstance(model, str) or model not in _KINDS:
        raise BadTokenizer(f"{where} has a tokenizer of a kind that is not read: {PREFIX}model={model!r:.60} (read: {', '.join(_KINDS)})."
                           f"{did_you_mean(nearest(str(model), _KINDS))} The repository it was made from may have tokenizer files that are.")
    if pattern is not None and model != "gpt2":
        raise BadRequest(f"pattern={pattern!r:.60}: {where} has a tokenizer of kind {model!r}, which does not split text before merging. Leave it out",
                         field="pattern")
    v = read_vocabulary(metadata, where)
    build, usual = _KINDS[model]
    built = build(v, pattern)
    roles = {role: i for role, i in usual.items() if i < len(v.tokens) and v.kinds[i] is Kind.CONTROL} | v.roles
    adds_bos = v.flag("add_bos_token", built.adds_bos and "bos_token" in roles)
    adds_eos = v.flag("add_eos_token", built.adds_eos and "eos_token" in roles)
    adds_bos |= model == "gemma4"  # files were converted with a false one: https://github.com/ggml-org/llama.cpp/pull/21500
    prefix = ["bos_token"] if adds_bos else []
    suffix = ["eos_token"] if adds_eos and built.last is None else [built.last] if built.last else []
    if absent := [role for role in (*prefix, *suffix) if role not in roles]:
        key = {"bos_token": "bos", "eos_token": "eos", "sep_token": "seperator"}[absent[0]]
        raise BadTokenizer(f"{where}: every text has a {absent[0]}, as add_{absent[0]} or the kind {model!r} of its tokenizer says, and there is no "
                           f"{PREFIX}{key}_token_id. Convert the model again, with its tokenizer files.")
    facts = Facts(roles={role: v.tokens[i] for role, i in roles.items()}, templates=dict(_templates(metadata, where)))
    made = finished(built.encoder, built.words, facts, where=where, prefix=prefix, suffix=suffix, pattern=pattern)
    return replace(made, end_ids=v.ends)


def _templates(metadata: Mapping[str, Any], where: str) -> Iterable[tuple[str, str]]:
    """(name, source) of every chat template."""
    for key, value in metadata.items():
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}."):
            if not isinstance(value, str):
                raise BadTokenizer(f"{where}: {key} is {value!r:.60}, and a text was expected. Is the file whole?")
            yield key.removeprefix(TEMPLATE).removeprefix(".") or "default", value


def _byte_level(v: Vocabulary, pattern: str | None) -> _Built:
    pre, merges = _pre(v, pattern), v.merges
    if pre.spaced:
        return _spaced(v, pre)
    if merges is None and v.text("pre") == "kimi-k2":  # a table of tiktoken's, whose order is that of the ids
        merges = ranks.merges_of({v.tokens[i]: i for i in v.of(Kind.NORMAL)})
    if merges is None:
        raise BadTokenizer(f"{v.where} has no {PREFIX}merges, so nothing says which tokens join. Convert the model again, with its tokenizer files.")
    # A byte that has no token is left out of the text, as by the model's own tokenizer: Falcon's lacks fifteen control characters.
    library = bytelevel.build(v.ids, merges, pre.split, whole_words_first=pre.whole_words_first, normalize_nfc=pre.nfc, where=v.where)
    encoder = Library(library, _added(v), frozenset(), v.where)
    return _Built(encoder=encoder, words=words_of_library(encoder, v.where), adds_bos=pre.adds_bos)


def _pre(v: Vocabulary, pattern: str | None) -> Pre:
    """How text is split: what the caller gave, else what the file's `pre` names."""
    name = v.text("pre")
    if pattern is not None:
        return Pre(split=(pattern,))
    if name is None:
        raise BadTokenizer(f"{v.where} has no {PREFIX}pre, so nothing says how text is split before merging: a wrong split gives wrong ids without "
                           f"any error. Convert the model again with a llama.cpp of May 2024 or later, or pass pattern=... to load_tokenizer.")
    if name not in PRE:
        near = did_you_mean(nearest(name, PRE)) or f" Known are {', '.join(PRE)}."
        raise BadTokenizer(f"{v.where} splits text in a way that is not known: {PREFIX}pre={name!r:.60}.{near} Pass the pattern of the model's "
                           f"tokenizer.json as pattern=... to load_tokenizer. Is there a newer Pellucid?")
    return PRE[name]


def _spaced(v: Vocabulary, pre: Pre = PRE["gemma4"]) -> _Built:
    """BPE over the text itself: what no merge reaches becomes bytes."""
    if v.merges is None:
        raise BadTokenizer(f"{v.where} has no {PREFIX}merges, so nothing says which tokens join. Convert the model again, with its tokenizer files.")
    try:
        library = tokenizers.Tokenizer(models.BPE(v.ids, v.merges, byte_fallback=True, fuse_unk=True))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise BadTokenizer(f"{v.where}: its vocabulary and merges contradict each other: {error}. Is the file whole?") from None
    library.normalizer = normalizers.Replace(" ", SPACE)
    library.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    _check_bytes(v)
    encoder = Library(library, _added(v), frozenset(), v.where)
    return _Built(encoder=encoder, words=words_of_library(encoder, v.where), adds_bos=pre.adds_bos)


def _check_bytes(v: Vocabulary) -> bool:
    """Whether there is a token for every byte. Raises BadTokenizer where there is one for some."""
    there = {v.tokens[i] for i in v.of(Kind.BYTE)}
    if there and (missing := [f"<0x{b:02X}>" for b in range(256) if f"<0x{b:02X}>" not in there]):
        raise BadTokenizer(f"{v.where}: {len(missing)} of the 256 bytes have no token, first: {missing[0]}, so some text could not be encoded. "
                           f"Is the file whole?")
    return bool(there)


def _bpe_pieces(v: Vocabulary, pattern: str | None) -> _Built:
    joined = [i for i in v.of(Kind.NORMAL) if len(v.tokens[i]) > 1]
    if v.scores is not None and len(joined) > 1 and len({v.scores[i] for i in joined}) == 1:
        raise BadTokenizer(f"{v.where}: every score of {PREFIX}scores is {v.scores[joined[0]]:g}, so nothing says which pieces join first. "
                           f"Convert the model again, with its tokenizer.model.")
    return _pieces(v, "bpe", prefix=True, adds_bos=True)


def _unigram_pieces(v: Vocabulary, pattern: str | None) -> _Built:
    return _pieces(v, "unigram", prefix=False, adds_eos=True)


def _pieces(v: Vocabulary, algorithm: Literal["bpe", "unigram"], *, prefix: bool, adds_bos: bool = False, adds_eos: bool = False) -> _Built:
    """A SentencePiece model; what stood beside it in Hugging Face's files is cut out of the text first, as there."""
    if v.scores is None:
        raise BadTokenizer(f"{v.where} has no {PREFIX}scores, so nothing says which pieces are likelier. "
                           f"Convert the model again, with its tokenizer files.")
    unknown = v.roles.get("unk_token", next(iter([*v.of(Kind.UNKNOWN), *filter(None, [v.ids.get("<unk>")])]), None))
    if unknown is None:
        raise BadTokenizer(f"{v.where} has no token for unknown text: no {PREFIX}unknown_token_id and none of that kind. Is the file whole?")
    kinds = dict.fromkeys((i for i in v.of(Kind.USER_DEFINED) if v.scores[i] == ADDED), Kind.CONTROL)
    kinds |= dict.fromkeys(v.of(Kind.UNKNOWN), Kind.UNUSED) | {unknown: Kind.UNKNOWN}
    pieces = tuple(Piece(text=text, score=v.scores[i], kind=kinds.get(i, v.kinds[i])) for i, text in enumerate(v.tokens))
    charsmap = v.metadata.get(f"{PREFIX}precompiled_charsmap")
    model = SentencePieceModel(
        pieces=pieces, algorithm=algorithm, unk_id=unknown, bos_id=-1, eos_id=-1, byte_fallback=_check_bytes(v), where=v.where,
        charsmap=bytes(b & 0xFF for b in charsmap.values()) if charsmap is not None else b"", add_dummy_prefix=v.flag("add_space_prefix", prefix),
        remove_extra_whitespaces=v.flag("remove_extra_whitespaces", False))
    encoder = PieceEncoder(Pieces(model), [token for token in _added(v) if token.special or kinds.get(token.id or 0) is Kind.CONTROL])
    return _Built(encoder=encoder, words=words_of_sentencepiece(model, {}), adds_bos=adds_bos, adds_eos=adds_eos)


def _word_pieces(v: Vocabulary, pattern: str | None) -> _Built:
    """BERT's: pieces of words, ▁ before those that begin one; in its own files the others have ## before them. conversion/bert.py, phantom"""
    control = frozenset(v.of(Kind.CONTROL))
    names = [text if i in control else text.removeprefix(SPACE) if text.startswith(SPACE) else f"##{text}" for i, text in enumerate(v.tokens)]
    unknown, lowercase = v.roles.get("unk_token", v.ids.get("[UNK]")), v.flag("normalizer.lowercase", True)
    if unknown is None or len(set(names)) < len(names):
        found = "no token for unknown text" if unknown is None else "pieces of words that are spelled alike"
        raise BadTokenizer(f"{v.where} has {found}. Is the file whole?")
    model = models.WordPiece({name: i for i, name in enumerate(names)}, unk_token=names[unknown], max_input_chars_per_word=100)
    library = tokenizers.Tokenizer(model)
    library.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=v.flag("normalizer.strip_accents", lowercase))
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    encoder = Library(library, _added(v), frozenset(), v.where)
    read = {i: text.encode() if i in control else text.replace(SPACE, " ").encode() for i, text in enumerate(v.tokens)}
    return _Built(encoder=encoder, words=Words(bytes_of=read.get, lead="one-space"), adds_bos=True, last="sep_token")


def _longest(v: Vocabulary, pattern: str | None) -> _Built:
    """RWKV's: a table of byte strings."""
    table = {unescaped(v.tokens[i]): i for i in v.of(Kind.NORMAL)}
    if missing := [b for b in range(256) if bytes([b]) not in table]:
        raise BadTokenizer(f"{v.where}: {len(missing)} of the 256 bytes have no token, first: {missing[0]:#04x}, so some text could not be encoded. "
                           f"Is the file whole?")
    read = {i: text.encode() for i, text in enumerate(v.tokens)} | {i: data for data, i in table.items()}
    return _Built(encoder=CutEncoder(longest(table), v.tokens, _added(v)), words=Words(bytes_of=read.get))


def _likeliest(v: Vocabulary, pattern: str | None) -> _Built:
    """PLaMo 2's: pieces with scores, over the text as it is."""
    if v.scores is None or not _check_bytes(v):
        raise BadTokenizer(f"{v.where} has no {f'{PREFIX}scores' if v.scores is None else 'tokens for bytes'}, which a tokenizer of kind 'plamo2' has. "
                           f"Convert the model again, with its tokenizer files.")
    pieces = {v.tokens[i]: (i, v.scores[i]) for i in v.of(Kind.NORMAL)}
    bytes_at = [v.ids[f"<0x{b:02X}>"] for b in range(256)]
    read = {i: text.encode() for i, text in enumerate(v.tokens)} | {i: bytes([b]) for b, i in enumerate(bytes_at)}
    return _Built(encoder=CutEncoder(likeliest(pieces, bytes_at), v.tokens, _added(v)), words=Words(bytes_of=read.get))


def _added(v: Vocabulary) -> list[Token]:
    """The tokens apart from text: those of no text, and those a user defined."""
    before, after = _takes_space(v)
    return [Token(text=v.tokens[i], id=i, special=v.kinds[i] is not Kind.USER_DEFINED, lstrip=v.tokens[i] in before, rstrip=v.tokens[i] in after)
            for i in v.of(Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN)]


def _takes_space(v: Vocabulary) -> tuple[frozenset[str], frozenset[str]]:
    """The tokens that white space before them belongs to, and after them. No key says so; llama.cpp goes by the names of models (end of load)."""
    name, pre, architecture = (v.metadata.get(key) for key in ("general.name", f"{PREFIX}pre", "general.architecture"))
    if any(each in str(pre) for each in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or architecture in ("nomic-bert-moe", "jina-bert-v3"):
        return frozenset(("<mask>",)), frozenset()
    if any(each in str(name).lower() for each in ("phi-3", "phi3")):
        apart = {v.tokens[i] for i in v.of(Kind.CONTROL, Kind.USER_DEFINED)}
        return frozenset(), frozenset(apart - {"<unk>", "<s>", "<|endoftext|>"})
    return frozenset(("[MASK]",)) if "modern-bert" in str(name).lower() else frozenset(), frozenset()


# Kind -> how it is built, and what its special ids are where the file does not say and those tokens are special.
_KINDS: dict[str, tuple[Callable[[Vocabulary, str | None], _Built], dict[str, int]]] = {
    "gpt2": (_byte_level, {}),
    "gemma4": (lambda v, pattern: _spaced(v), {}),
    "llama": (_bpe_pieces, {"bos_token": 1, "eos_token": 2}),
    "t5": (_unigram_pieces, {"pad_token": 0, "eos_token": 1}),
    "rwkv": (_longest, {}),
    "plamo2": (_likeliest, {"bos_token": 1, "eos_token": 2, "pad_token": 3}),
    "bert": (_word_pieces, {"pad_token": 0, "unk_token": 100, "bos_token": 101, "sep_token": 102, "mask_token": 103}),
}
