"""Byte-level BPE: every byte is written as one visible character, so that no text is unknown. GPT-2's alphabet.

Source of the alphabet: https://github.com/openai/gpt-2/blob/a74da5d99abaaba920de8131d64da2862a8f213b/src/encoder.py#L8-L28
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from pellucid.errors import BadTokenizer
from pellucid.records import read_object

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The pattern of Qwen 1 to 3: as Llama 3's, but digits one by one.
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# Split patterns of the classes that save vocab.json + merges.txt; a class that is not here needs `pattern=`.
PATTERNS = {"GPT2Tokenizer": GPT2_PATTERN, "CodeGenTokenizer": GPT2_PATTERN, "Qwen2Tokenizer": QWEN_PATTERN}


def _alphabet() -> dict[int, str]:
    """Byte -> character: printable Latin-1 as itself, the other 68 bytes as U+0100 onwards, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in set(printable)]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


CHAR_OF_BYTE = _alphabet()
BYTE_OF_CHAR = {char: byte for byte, char in CHAR_OF_BYTE.items()}


def to_chars(data: bytes) -> str:
    """The token that stands for these bytes."""
    return data.decode("latin-1").translate(CHAR_OF_BYTE)


def to_bytes(token: str) -> bytes:
    """The bytes a token stands for; a token with any character outside the alphabet stands for its own text."""
    try:
        return bytes(map(BYTE_OF_CHAR.__getitem__, token))
    except KeyError:
        return token.encode()


def build(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], pattern: str | Sequence[str], *, whole_words_first: bool = False,
          add_prefix_space: bool = False, normalize_nfc: bool = False, where: str) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer from its parts.

    pattern: how text is split; of several, each splits the pieces the last one left.
    whole_words_first: a word of the vocabulary is one token even where no merge leads to it, as tiktoken does.
    Raises BadTokenizer for a pattern that does not compile and for merges that the vocabulary does not hold.
    """
    try:
        model = models.BPE(dict(vocab), list(merges), ignore_merges=whole_words_first)
        splits = [pre_tokenizers.Split(Regex(anchored(each)), behavior="isolated") for each in ([pattern] if isinstance(pattern, str) else pattern)]
    except Exception as error:  # the tokenizers library raises plain Exception
        what = "split pattern does not compile" if "Oniguruma" in str(error) else "vocabulary and merges contradict each other"
        raise BadTokenizer(f"{where}: its {what}: {error}. Is the file whole?") from None
    tokenizer = tokenizers.Tokenizer(model)
    if normalize_nfc:
        tokenizer.normalizer = normalizers.NFC()
    if add_prefix_space and pattern != GPT2_PATTERN:
        raise BadTokenizer(f"{where}: add_prefix_space=true with a split pattern that is not GPT-2's is not implemented. Is there a "
                           f"tokenizer.json?")
    if add_prefix_space:  # the space must be there before the split, so the library's own GPT-2 split does both
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def anchored(pattern: str) -> str:
    """The pattern with `^` and `$` meaning the ends of the text, as in Rust and Python; Oniguruma takes them as the ends of a line."""
    out, depth, i = [], 0, 0
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            out.append(pattern[i:i + 2])
            i += 2
            continue
        depth += (char == "[") - (char == "]" and depth > 0)
        out.append({"^": r"\A", "$": r"\z"}.get(char, char) if depth == 0 else char)
        i += 1
    return "".join(out)


def read_vocab_and_merges(vocab_file: Path, pattern: str, *, add_prefix_space: bool = False,
                          normalize_nfc: bool = False) -> tokenizers.Tokenizer:
    """vocab.json with merges.txt beside it. Raises BadTokenizer where either is missing or not what its name says."""
    merges_file = vocab_file.with_name(vocab_file.name.replace("vocab.json", "merges.txt"))
    if merges_file == vocab_file or not merges_file.is_file():
        raise BadTokenizer(f"{vocab_file} needs its merges in {merges_file.name if merges_file != vocab_file else 'merges.txt'} beside "
                           f"it, which is not there.")
    vocab = read_object(vocab_file, BadTokenizer, str(vocab_file))
    if not all(type(i) is int and 0 <= i < 2**32 for i in vocab.values()):
        raise BadTokenizer(f"{vocab_file} is not a table of token -> id. Expected what GPT-2 saves as vocab.json.")
    merges = []
    for n, line in enumerate(merges_file.read_text("utf-8").split("\n"), 1):
        if not line.strip() or (n == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise BadTokenizer(f"{merges_file}, line {n}: {line!r} is not two tokens with a space between. Is the file whole?")
        merges.append((pair[0], pair[1]))
    return build(vocab, merges, pattern, add_prefix_space=add_prefix_space, normalize_nfc=normalize_nfc, where=str(vocab_file))
