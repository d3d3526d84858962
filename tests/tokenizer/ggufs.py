"""GGUF files that hold a vocabulary and nothing else, written by the gguf package."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf

from pellucid.tokenizer.bytelevel import CHAR_OF_BYTE, to_chars

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Where the ways of splitting part: letters, cases, digits, punctuation, spaces, lines, scripts, contractions.
TEXTS = ["Hello World helloWorld HELLOworld fooBar's it's WE'LL don'T 'Re", "12 345 6789 12345678 a1b22c333 3.14 $5 x=1+2;y<=z",
         "...!!!  ,,, --- (a) [b]/c //d", "a\nb\n\n  c\r\n\r\n\td \t \n e   ", "你好，世界！漢字かなカナ 안녕하세요 세계 привет мир ñandú",
         "٣٤٥ ½ ² Ⅷ @user #tag <|x|> IMGIMGAAZ ^~|`", "don'ts 'llama it'some;\nx 'M", "हिन्दी क्षत्रिय สวัสดี"]


def windows(texts: Sequence[str], longest: int = 7) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocab, merges) in which every piece of the texts of up to so many bytes is a token, so that ids tell where words were cut."""
    vocab = {"<|endoftext|>": 0} | {char: i + 1 for i, char in enumerate(CHAR_OF_BYTE.values())}
    merges = []
    for n in range(2, longest + 1):
        for text in map(to_chars, map(str.encode, texts)):
            for at in range(len(text) - n + 1):
                if (token := text[at : at + n]) not in vocab:
                    vocab[token] = len(vocab)
                    merges.append((token[:-1], token[-1]))
    return vocab, merges


def write(path: Path, model: str | None, tokens: Sequence[str] | None, kinds: Sequence[int] | None, *, scores: Sequence[float] | None = None,
          merges: Sequence[tuple[str, str]] | None = None, pre: str | None = None, change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
          **facts: Any) -> Path:
    """facts: bos_token_id=1, add_bos_token=True and so on, by the writer's own names."""
    writer = gguf.GGUFWriter(path, "llama")
    listed: Mapping[str, Any] = {"tokenizer_model": model, "tokenizer_pre": pre, "token_list": tokens, "token_types": kinds, "token_scores": scores,
                                 "token_merges": None if merges is None else [" ".join(pair) for pair in merges], **facts}
    for name, value in listed.items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_level(path: Path, pre: str | None, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]] | None, special: Mapping[str, int] = {},
               **facts: Any) -> Path:
    """A byte-level vocabulary; special: text -> kind of tokens that follow it, or stand in it."""
    tokens = [*sorted(vocab, key=vocab.__getitem__), *(text for text in special if text not in vocab)]
    return write(path, "gpt2", tokens, [special.get(token, NORMAL) for token in tokens], merges=merges, pre=pre, **facts)
