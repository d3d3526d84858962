"""Files -> Tokenizer. Which file is read, in this order where a folder has several:

    tokenizer.json · tokenizer.model (SentencePiece or tiktoken, by its first bytes) · vocab.json + merges.txt · tekken.json · *.tiktoken
"""
from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import tokenizers

from pellucid.errors import BadTokenizer, ModelNotFound
from pellucid.tokenizer import bytelevel, ranks, sentencepiece
from pellucid.tokenizer.cut import CutEncoder
from pellucid.tokenizer.decode import Words, words_of_decoder, words_of_sentencepiece
from pellucid.tokenizer.encode import Encoder, Library, PieceEncoder, Token, special_in
from pellucid.tokenizer.facts import Facts, read_facts
from pellucid.tokenizer.template import ChatTemplate
from pellucid.tokenizer.tokenizer import Tokenizer

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def load_tokenizer(path: str | PathLike[str], *, pattern: str | None = None) -> Tokenizer:
    """The tokenizer in a folder or file; no weights are needed.

    path: a folder, or one of its files: tokenizer.json, a SentencePiece .model, vocab.json (merges.txt beside it), .tiktoken, tekken.json.
          The small files beside it (tokenizer_config.json and so on) are read in both cases.
    pattern: how text is split before merging, for tiktoken ranks and for vocab.json + merges.txt of a class not known here.

    Raises ModelNotFound where there is no such path, BadTokenizer where there is no tokenizer in it or the files are not understood.
    """
    given = Path(fspath(path))
    file = _file_of(given)
    facts = read_facts(file.parent)
    where = str(given)
    if file.suffix == ".json" and "tekken" in file.name:
        return _tekken(file, facts, where)
    if file.name.endswith("vocab.json"):
        return _vocab_and_merges(file, facts, pattern, where)
    if file.suffix == ".json":
        return _tokenizer_json(file, facts, where)
    with file.open("rb") as opened:
        head = opened.read(4096)
    if file.suffix == ".tiktoken" or ranks.looks_like_ranks(head):
        return _ranks(file, facts, pattern, where)
    return _sentencepiece(file, facts, where)


def _file_of(given: Path) -> Path:
    if not given.exists():
        raise ModelNotFound(f"no such file or folder: {given}. Expected a model's folder, or a tokenizer file ({', '.join(FILES)}, "
                            f"*.tiktoken).")
    if given.is_file():
        if given.suffix == ".gguf":
            raise BadTokenizer(f"{given} is a GGUF file: pellucid.load_tokenizer reads it, and tokenizer_of_gguf its metadata.")
        if given.suffix not in (".json", ".model", ".tiktoken"):
            raise BadTokenizer(f"{given} is not a tokenizer file known here ({', '.join(FILES)}, *.tiktoken). Is there one beside it?")
        return given
    for name in FILES:
        if (file := given / name).is_file():
            return file
    found = sorted([*given.glob("*.tiktoken"), *given.glob("tiktoken.model")])
    if len(found) == 1:
        return found[0]
    if found:
        raise BadTokenizer(f"{given} has {len(found)} files of tiktoken ranks: {', '.join(f.name for f in found)}. Name the one you mean.")
    there = ", ".join(sorted(f.name for f in given.iterdir())[:8])
    raise BadTokenizer(f"no tokenizer in {given}: none of {', '.join(FILES)}, *.tiktoken. "
                       f"{f'It holds {there}.' if there else 'It is empty.'} "
                       f"Copy the tokenizer files of the model into it.")


def _tokenizer_json(file: Path, facts: Facts, where: str) -> Tokenizer:
    try:
        library = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise BadTokenizer(f"{file} is not a tokenizer that the tokenizers library reads: {error}. Download it again, or update "
                           f"`tokenizers`.") from None
    facts = _with_roles(facts, **_special_by_config_ids(facts, library))
    encoder = Library(library, facts.tokens, _ends(facts), where)
    prefix, suffix = _ends_of_post_processor(encoder.post_processor_json, where)
    return finished(encoder, words_of_library(encoder, where), facts, prefix=prefix, suffix=suffix, where=where)


def _vocab_and_merges(file: Path, facts: Facts, pattern: str | None, where: str) -> Tokenizer:
    name = str(facts.tokenizer_config.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
    chosen = pattern or bytelevel.PATTERNS.get(name)
    if chosen is None:
        raise BadTokenizer(f"{where} is vocab.json + merges.txt of class {name!r}, whose way of splitting text is not known here (known: "
                           f"{', '.join(bytelevel.PATTERNS)}). Pass pattern=..., or use the model's tokenizer.json.")
    library = bytelevel.read_vocab_and_merges(file, chosen, add_prefix_space=bool(facts.tokenizer_config.get("add_prefix_space", False)),
                                              normalize_nfc=name == "Qwen2Tokenizer")
    tokens, default = list(facts.tokens), "<|endoftext|>"
    if not facts.roles and library.token_to_id(default) is not None:  # GPT-2's own files name none: its code does
        facts = _with_roles(facts, bos_token=default, eos_token=default)
        tokens.append(Token(text=default))
    encoder = Library(library, tokens, _ends(facts), where)
    return finished(encoder, words_of_library(encoder, where), facts, where=where, pattern=pattern)


def _ranks(file: Path, facts: Facts, pattern: str | None, where: str) -> Tokenizer:
    found = ranks.known(file)
    chosen = ranks.pattern_for(file, pattern, {**facts.config, **facts.tokenizer_config}, found)
    table = ranks.read_ranks(file)
    library = ranks.build_from_ranks(table, chosen, normalize_nfc=found is not None and found.normalize_nfc, where=where)
    named = {t.id: t for t in facts.tokens if t.id is not None}
    known_ids = {len(table) + i: text for i, text in enumerate(found.special)} if found else {}
    tokens = [*facts.tokens, *(Token(text=text, id=i) for i, text in known_ids.items() if i not in named)]
    if found:
        facts = _with_roles(facts, bos_token=found.bos, eos_token=found.eos)
    encoder = Library(library, tokens, _ends(facts), where)
    prefix = ["bos_token"] if found and found.adds_bos else []
    return finished(encoder, words_of_library(encoder, where), facts, prefix=prefix, where=where, pattern=pattern)


def _tekken(file: Path, facts: Facts, where: str) -> Tokenizer:
    library, special = ranks.read_tekken(file)
    texts = set(special.values())
    tokens = [*(Token(text=text, id=i) for i, text in special.items()), *(t for t in facts.tokens if t.text not in texts)]
    facts = _with_roles(facts, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    encoder = Library(library, tokens, frozenset(("<s>", "</s>")), where)
    return finished(encoder, words_of_library(encoder, where), facts, prefix=["bos_token"], where=where)


def _sentencepiece(file: Path, facts: Facts, where: str) -> Tokenizer:
    model = sentencepiece.read(file)
    ids = {"bos_token": model.bos_id, "eos_token": model.eos_id, "unk_token": model.unk_id}
    names = {role: model.pieces[i].text for role, i in ids.items() if 0 <= i < len(model.pieces)}
    facts = _with_roles(facts, **names)
    # Llama's code of before July 2023, which most models still ask for, puts a space after every special token; `legacy: false` does not.
    segments = "first" if facts.tokenizer_config.get("legacy") is False else "each"
    encoder = PieceEncoder(sentencepiece.Pieces(model), facts.tokens, segments=segments)
    # The file does not say whether texts begin with BOS; Llama, Mistral and Gemma, whose files these are, all want it.
    prefix = ["bos_token"] if "bos_token" in names else []
    return finished(encoder, words_of_sentencepiece(model, encoder.renamed), facts, prefix=prefix, where=where)


def _with_roles(facts: Facts, **names: str | None) -> Facts:
    """The facts with these names where no file gives others."""
    return replace(facts, roles={**{k: v for k, v in names.items() if v is not None}, **facts.roles})


def _special_by_config_ids(facts: Facts, library: tokenizers.Tokenizer) -> dict[str, str]:
    """BOS and EOS as config.json numbers them, where the vocabulary marks those ids special. A default that was left in config.json
    (1 and 2, in many) often is an ordinary token here, and must not become one that text cannot produce."""
    added = library.get_added_tokens_decoder()
    return {role: added[i].content for role, i in facts.ids.items() if i in added and added[i].special}


def _ends(facts: Facts) -> frozenset[str]:
    """The texts of BOS and EOS."""
    return frozenset(text for role in ("bos_token", "eos_token") if (text := facts.roles.get(role)))


def words_of_library(encoder: Library, where: str) -> Words:
    byte_level = '"type":"ByteLevel"' in (encoder.decoder_json or "")  # its alphabet is for the vocabulary, not for added tokens
    verbatim = {t.id: t.text for t in encoder.added.values() if t.id is not None and (t.special or byte_level)}
    return words_of_decoder(encoder.decoder_json, encoder.token_of, verbatim, where)


def _ends_of_post_processor(raw: str | None, where: str) -> tuple[list[str], list[str]]:
    """(special tokens before the text, after it) of a tokenizer.json. Raises BadTokenizer for a post-processor not known here."""
    if raw in (None, "null"):
        return [], []
    before: list[str] = []
    after: list[str] = []
    processor: dict[str, Any] = json.loads(raw or "")
    for step in processor["processors"] if processor["type"] == "Sequence" else [processor]:
        if step["type"] == "TemplateProcessing":
            side = before
            for item in step["single"]:
                if "Sequence" in item:
                    side = after
                else:
                    side += step["special_tokens"][item["SpecialToken"]["id"]]["tokens"]
        elif step["type"] in ("RobertaProcessing", "BertProcessing"):
            before.append(step["cls"][0])
            after.append(step["sep"][0])
        elif step["type"] != "ByteLevel":  # which moves offsets only
            raise BadTokenizer(f"{where} has a post-processor that is not implemented: {step['type']!r} (known: TemplateProcessing, "
                               f"RobertaProcessing, "
                               f"BertProcessing, ByteLevel). Is `tokenizers` newer than this package?")
    return before, after


def finished(encoder: Library | PieceEncoder | CutEncoder, words: Words, facts: Facts, *, where: str, prefix: Iterable[str] = (),
              suffix: Iterable[str] = (), pattern: str | None = None) -> Tokenizer:
    """The tokenizer, with BOS and EOS settled: tokenizer_config.json first, then the vocabulary's own files."""
    before, after = ([facts.roles.get(t) or t for t in side] for side in (prefix, suffix))
    roles = dict(facts.roles)
    for role, side in (("bos_token", before), ("eos_token", after)):
        if side and role not in roles:
            roles[role] = side[0]
    ids = {role: _id(encoder, roles.get(role), role, where) for role in ("bos_token", "eos_token")}
    # A post-processor that puts tokens anywhere has the last word, as in transformers 5; where it puts none, the config may ask for them.
    if not (before or after) and (facts.add_bos is not None or facts.add_eos is not None):
        before = _wanted("bos_token", roles.get("bos_token"), facts.add_bos, where)
        after = _wanted("eos_token", roles.get("eos_token"), facts.add_eos, where)
    names = {role: text for role, text in roles.items() if text is not None}
    templates = {name: ChatTemplate(source, name=name, special_tokens=names) for name, source in facts.templates.items()}
    prefix_ids, suffix_ids = (tuple(i for t in side if (i := _id(encoder, t, "post_processor", where)) is not None)
                              for side in (before, after))
    special = special_in(encoder.added, encoder.unk)
    hidden = frozenset(t.id for t in encoder.added.values() if t.special and t.id is not None)
    return Tokenizer(source=where, encoder=encoder, words=words, special=special, hidden_ids=hidden, bos_id=ids["bos_token"],
                     eos_id=ids["eos_token"], prefix=prefix_ids, suffix=suffix_ids, special_tokens=names, chat_templates=templates, pattern=pattern)


def _id(encoder: Encoder, text: str | None, role: str, where: str) -> int | None:
    if text is None:
        return None
    if (i := encoder.id_of(text)) is None:
        raise BadTokenizer(f"{where}: {role} is {text!r}, which the vocabulary of {encoder.n_vocab} tokens does not hold. Are the files "
                           f"of one model?")
    return i


def _wanted(role: str, text: str | None, wanted: bool | None, where: str) -> list[str]:
    if wanted and text is None:
        raise BadTokenizer(f"{where}: tokenizer_config.json says add_{role}=true, but no file names a {role}. Add it to "
                           f"tokenizer_config.json.")
    return [text] if wanted and text is not None else []
