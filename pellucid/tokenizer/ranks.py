"""tiktoken: a table bytes -> rank, where the rank is both the id and the order of merging. Bare, and as Mistral's tekken.json.

A bare file does not say how text is split into words before merging, and a wrong split gives wrong ids without any error.
The pattern comes from the caller, from the model's config, or from the list of published files known by their SHA-256.
"""
from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from pellucid.errors import BadTokenizer
from pellucid.records import read_object
from pellucid.tokenizer.bytelevel import QWEN_PATTERN, build, to_chars

LLAMA3_PATTERN = QWEN_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
O200K_PATTERN = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A published file: what its bytes alone do not say. `special` is in the order of the ids that follow the ranks."""

    name: str
    pattern: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    adds_bos: bool
    normalize_nfc: bool = False


def _llama3_special() -> tuple[str, ...]:
    # Llama 3.1's names. Llama 3.0 calls five of them reserved (ids 128004, 128005, 128008, 128010, 128011) and never uses those;
    # a tokenizer_config.json beside the file has the last word.
    named = ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
             "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>")
    return named + tuple(f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(named)))


def _llama4_special() -> tuple[str, ...]:
    def reserved(part: str, first: int, last: int) -> tuple[str, ...]:
        return tuple(f"<|{part}_reserved_special_token_{i}|>" for i in range(first, last + 1))

    named = ("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|header_start|>", "<|header_end|>",
             "<|eom|>", "<|eot|>", "<|step|>", *reserved("text_post_train", 0, 5), "<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>",
             *reserved("text_post_train", 8, 68), "<|image_start|>", "<|image_end|>", *reserved("vision", 0, 1), "<|tile_x_separator|>",
             "<|tile_y_separator|>", *reserved("vision", 2, 5), "<|image|>", *reserved("vision", 6, 6), "<|patch|>", *reserved("vision", 7, 1047),
             *reserved("reasoning", 0, 7), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>")
    return named + tuple(f"<|reserved_special_token_{i}|>" for i in range(2048 - len(named)))


# SHA-256 of the published files, with where each was read.
KNOWN = {
    # tokenizer.model of Meta-Llama-3-8B to Llama-3.3 (original/), and in Meta's package llama-models 0.3.0. Names, pattern:
    # https://github.com/meta-llama/llama-models/blob/a946b747aa1504b9cb07cfe95ee50180fa2e8b88/models/llama3/tokenizer.py#L57-L97
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55":
        Known(name="Llama 3", pattern=LLAMA3_PATTERN, special=_llama3_special(), bos="<|begin_of_text|>", eos="<|end_of_text|>", adds_bos=True),
    # llama-models 0.3.0. Names, pattern:
    # https://github.com/meta-llama/llama-models/blob/70f7766104338f129bbb84f71c963a5b22011e7c/models/llama4/tokenizer.py#L46-L144
    "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed":
        Known(name="Llama 4", pattern=O200K_PATTERN, special=_llama4_special(), bos="<|begin_of_text|>", eos="<|end_of_text|>", adds_bos=True),
    # https://huggingface.co/Qwen/Qwen-72B/resolve/b8e18ac61df64d35308695769ff46b976b6a00f4/qwen.tiktoken (2,561,218 bytes; the same file in
    # Alibaba's package dashscope 1.27.7). Names, pattern, and that text is put into NFC first: tokenization_qwen.py beside it.
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186":
        Known(name="Qwen", pattern=QWEN_PATTERN, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
              bos=None, eos="<|endoftext|>", adds_bos=False, normalize_nfc=True),
}


def known(file: Path) -> Known | None:
    """The published file with these bytes, if it is one. Line ends do not count: some copies went through Windows."""
    return KNOWN.get(hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).hexdigest())


def looks_like_ranks(head: bytes) -> bool:
    """Whether a file that starts so is tiktoken ranks: lines of base64, a space, a number. `tokenizer.model` may be either kind."""
    parts = head.split(b"\n", 1)[0].split()
    return len(parts) == 2 and parts[1].isdigit() and not head.startswith(b"\x0a")


def read_ranks(file: Path) -> dict[bytes, int]:
    """bytes -> rank of a .tiktoken file. Raises BadTokenizer for a line that is not one, for duplicates, and where a single byte is missing."""
    ranks: dict[bytes, int] = {}
    for n, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise BadTokenizer(f"{file}, line {n}: {line[:60]!r} is not a token in base64 and its rank. Is the file whole?") from None
    return _checked(ranks, str(file))


def _checked(ranks: dict[bytes, int], where: str) -> dict[bytes, int]:
    if len(set(ranks.values())) != len(ranks):
        raise BadTokenizer(f"{where}: two tokens have the same rank. Is the file whole?")
    if missing := [b for b in range(256) if bytes([b]) not in ranks]:
        raise BadTokenizer(f"{where}: {len(missing)} of the 256 single bytes have no rank, first: {missing[0]:#04x}, so some text could "
                           f"not be encoded. "
                           f"Is the file whole?")
    return ranks


def merges_of(vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs whose joining is a token, in the order in which tiktoken joins them: by the rank of the result."""
    merges: list[tuple[str, str]] = []
    for token in sorted(vocab, key=vocab.__getitem__):
        # Several pairs may give one token. The longest left part first: of two overlapping pairs, tiktoken takes the left one.
        for cut in range(len(token) - 1, 0, -1):
            if (left := token[:cut]) in vocab and (right := token[cut:]) in vocab:
                merges.append((left, right))
    return merges


def build_from_ranks(ranks: Mapping[bytes, int], pattern: str, *, first_id: int = 0, normalize_nfc: bool = False,
                     where: str) -> tokenizers.Tokenizer:
    """A tokenizer whose ids are the ranks plus `first_id`."""
    vocab = {to_chars(token): rank + first_id for token, rank in ranks.items()}
    return build(vocab, merges_of(vocab), pattern, whole_words_first=True, normalize_nfc=normalize_nfc, where=where)


# Special tokens of tekken files up to version 7, which do not list their own:
# https://github.com/mistralai/mistral-common/blob/018cad7e9ce7ed3bf61acd8048413c0571c9b8fc/src/mistral_common/tokens/tokenizers/tekken.py#L102-L123
_TEKKEN_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
                   "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
                   "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")


def read_tekken(file: Path) -> tuple[tokenizers.Tokenizer, dict[int, str]]:
    """(tokenizer, id -> special token) of a tekken.json. The special tokens come first; a rank r has the id r + default_num_special_tokens."""
    try:
        raw = read_object(file, BadTokenizer, str(file))
        config, vocab, listed = raw["config"], raw["vocab"], raw.get("special_tokens")
        n_special, n_vocab, pattern = config["default_num_special_tokens"], config["default_vocab_size"], config["pattern"]
        # The file holds more ranks than the model uses: only the first `default_vocab_size - default_num_special_tokens` count.
        ranks = {base64.b64decode(token["token_bytes"], validate=True): token["rank"] for token in vocab
                 if token["rank"] < n_vocab - n_special}
        special = dict(enumerate(_TEKKEN_SPECIAL)) if listed is None else {token["rank"]: token["token_str"] for token in listed}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadTokenizer(f"{file} is not what Mistral saves as tekken.json: {type(error).__name__}: {error}. Download "
                           f"it again.") from None
    if len(ranks) != n_vocab - n_special:
        raise BadTokenizer(f"{file}: {len(ranks)} usable ranks, but default_vocab_size={n_vocab} and "
                           f"default_num_special_tokens={n_special} want "
                           f"{n_vocab - n_special}. Is the file whole?")
    if listed is None and config.get("version") not in _TEKKEN_VERSIONS_WITHOUT_LIST:
        raise BadTokenizer(f"{file}: version {config.get('version')!r} without special_tokens; only "
                           f"{', '.join(_TEKKEN_VERSIONS_WITHOUT_LIST)} "
                           f"may leave them out. Download it again.")
    if wrong := sorted(i for i in special if not 0 <= i < n_special):
        raise BadTokenizer(f"{file}: special token {special[wrong[0]]!r} has rank {wrong[0]}, outside the {n_special} places for special "
                           f"tokens.")
    special = {i: special.get(i, f"<SPECIAL_{i}>") for i in range(n_special)}
    return build_from_ranks(_checked(ranks, str(file)), pattern, first_id=n_special, where=str(file)), special


_TEKKEN_VERSIONS_WITHOUT_LIST = ("v1", "v2", "v3", "v7")


def pattern_for(file: Path, given: str | None, config: Mapping[str, Any], found: Known | None) -> str:
    """The split pattern, from the caller, the model's config, or the list of known files. Raises BadTokenizer where nobody knows it."""
    stated = next((config[key] for key in ("pat_str", "pattern") if isinstance(config.get(key), str)), None)
    pattern = given or stated or (found.pattern if found else None)
    if pattern is None:
        names = ", ".join(k.name for k in KNOWN.values())
        raise BadTokenizer(f"{file} holds tiktoken ranks without the pattern that splits text before merging, and its bytes are not "
                           f"those of a published "
                           f"file known here ({names}). Pass pattern=..., or write it as \"pat_str\" into tokenizer_config.json.")
    return pattern
