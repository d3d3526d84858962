"""Tokenizer -> the files that Hugging Face programs read, and `load_tokenizer`: for one that came from elsewhere, such as a GGUF file."""
from __future__ import annotations

import json
import struct
from typing import Any

from pellucid.tokenizer.encode import Library, PieceEncoder
from pellucid.tokenizer.facts import ROLES
from pellucid.tokenizer.sentencepiece import SentencePieceModel
from pellucid.tokenizer.tokenizer import Tokenizer

_CLASSES = {"bpe": "LlamaTokenizer", "unigram": "T5Tokenizer"}  # whose code reads such a tokenizer.model


def tokenizer_files(tokenizer: Tokenizer, n_ctx: int) -> dict[str, str | bytes]:
    """Name -> content: tokenizer.json, or tokenizer.model where it is SentencePiece's; tokenizer_config.json; the chat templates.

    n_ctx: the most tokens the model takes.
    """
    encoder = tokenizer.encoder
    config: dict[str, Any] = {role: text for role, text in tokenizer.special_tokens.items() if role in ROLES}
    config |= {"add_bos_token": tokenizer.adds_bos, "add_eos_token": tokenizer.eos_id is not None and tokenizer.eos_id in tokenizer.suffix,
               "clean_up_tokenization_spaces": False, "model_max_length": n_ctx}
    out: dict[str, str | bytes] = {}
    if isinstance(encoder, PieceEncoder):
        config |= {"tokenizer_class": _CLASSES[encoder.model.algorithm], "added_tokens_decoder": {
            str(token.id): {"content": token.text, "special": token.special, "lstrip": token.lstrip, "rstrip": token.rstrip,
                            "single_word": token.single_word, "normalized": token.normalized} for token in encoder.added.values()}}
        out["tokenizer.model"] = model_bytes(encoder.model, tokenizer.bos_id, tokenizer.eos_id)
    else:
        assert isinstance(encoder, Library)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        out["tokenizer.json"] = json.dumps(json.loads(encoder.to_json()) | {"post_processor": _post_processor(tokenizer)}, ensure_ascii=False)
    out["tokenizer_config.json"] = json.dumps(config, ensure_ascii=False, indent=1) + "\n"
    for name, template in tokenizer.chat_templates.items():
        default = template is tokenizer.chat_template
        out["chat_template.jinja" if default else f"additional_chat_templates/{name}.jinja"] = template.source
    return out


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """What puts BOS before a text and EOS after it; of two texts, each by itself."""
    before, after = ([tokenizer.token_of(i) for i in ids] for ids in (tokenizer.prefix, tokenizer.suffix))
    if not (before or after):
        return None

    def around(text: str, kind: int) -> list[dict[str, Any]]:
        marks = [[{"SpecialToken": {"id": token, "type_id": kind}} for token in side] for side in (before, after)]
        return [*marks[0], {"Sequence": {"id": text, "type_id": kind}}, *marks[1]]

    ids = {token: {"id": token, "ids": [tokenizer.id_of(token)], "tokens": [token]} for token in (*before, *after)}
    return {"type": "TemplateProcessing", "single": around("A", 0), "pair": around("A", 0) + around("B", 1), "special_tokens": ids}


def model_bytes(model: SentencePieceModel, bos_id: int | None, eos_id: int | None) -> bytes:
    """A tokenizer.model: the message that `sentencepiece.read` reads, where its fields are."""
    pieces = b"".join(_bytes(1, _bytes(1, p.text.encode()) + _tag(2, 5) + struct.pack("<f", p.score) + _number(3, int(p.kind))) for p in model.pieces)
    ids = {40: model.unk_id, 41: -1 if bos_id is None else bos_id, 42: -1 if eos_id is None else eos_id, 43: -1}
    trainer = _number(3, 1 if model.algorithm == "unigram" else 2) + _number(4, len(model.pieces)) + _number(24, int(model.treat_whitespace_as_suffix))
    trainer += _number(35, int(model.byte_fallback)) + b"".join(_number(field, i) for field, i in ids.items()) + _bytes(44, model.unk_surface.encode())
    normalizer = _bytes(1, b"identity" if not model.charsmap else b"user_defined") + _bytes(2, model.charsmap) + _number(3, int(model.add_dummy_prefix))
    normalizer += _number(4, int(model.remove_extra_whitespaces)) + _number(5, int(model.escape_whitespaces))
    return pieces + _bytes(2, trainer) + _bytes(3, normalizer)


def _tag(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _tag(field, 0) + _varint(value & (1 << 64) - 1)  # what is below zero is written in 64 bits


def _bytes(field: int, value: bytes) -> bytes:
    return _tag(field, 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
