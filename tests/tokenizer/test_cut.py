"""RWKV's and PLaMo 2's tokenizers, out of GGUF files: every cut is the one that their definition names among all there are."""
from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid
from pellucid.errors import BadTokenizer
from pellucid.tokenizer import Tokenizer
from pellucid.tokenizer.cut import likeliest, longest, unescaped
from tests.tokenizer import ggufs, texts
from tests.tokenizer.ggufs import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

WORDS = sorted({data[at : at + n] for data in map(str.encode, texts.ALL) for at in range(0, len(data) - 7, 5) for n in (2, 3, 7)} - {b"<s>"})
BYTES = [bytes([b]) for b in range(256)]
PIECES = sorted({text[at : at + n] for text in texts.ALL for at in range(0, len(text) - 6, 4) for n in (1, 2, 6) if "\ufeff" not in text})
SCORES = {piece: -((i * 7919) % 1201) / 100 for i, piece in enumerate(PIECES)}  # hundredths, so that sums of ten thousandths are exact


def rwkv(path: Path, table: list[bytes] = BYTES + WORDS) -> Tokenizer:
    tokens = ["<s>", *(repr(data)[2:-1] for data in table), f"[PAD{len(table) + 1}]"]  # conversion/base.py, _set_vocab_rwkv_world
    return pellucid.load_tokenizer(ggufs.write(path / "m.gguf", "rwkv", tokens, [CONTROL, *[NORMAL] * len(table), UNUSED]))


def plamo2(path: Path, n_bytes: int = 256) -> Tokenizer:
    special = {"<|plamo:unk|>": UNKNOWN, "<|plamo:bos|>": CONTROL, "<|plamo:eos|>": CONTROL, "<tool>": USER_DEFINED}
    special |= {f"<0x{b:02X}>": BYTE for b in range(n_bytes)}
    kinds = [*special.values(), *[NORMAL] * len(PIECES)]
    return pellucid.load_tokenizer(ggufs.write(path / "m.gguf", "plamo2", [*special, *PIECES], kinds, scores=[0.0] * len(special) + list(SCORES.values())))


def test_rwkv_takes_the_longest_token_at_every_place(tmp_path: Path) -> None:
    ours, table = rwkv(tmp_path), {data: i + 1 for i, data in enumerate(BYTES + WORDS)}
    for text in texts.ALL:
        data, expected = text.encode(), []
        while data:
            found = max((token for token in table if data.startswith(token)), key=len)
            expected.append(table[found])
            data = data[len(found):]
        assert ours.encode(text) == expected
        assert ours.decode(expected) == text
    assert ours.encode_rendered("a<s>b") == [table[b"a"], 0, table[b"b"]]
    assert 0 not in ours.encode("a<s>b")
    assert (ours.bos_id, ours.token_of(1), ours.n_vocab) == (None, r"\x00", len(table) + 2)


@given(data=st.binary(max_size=20))
def test_a_token_of_bytes_is_read_as_python_shows_it(data: bytes) -> None:
    assert unescaped(repr(data)[2:-1]) == data
    assert longest({token: i for i, token in enumerate(BYTES)})("aé") == [97, 0xC3, 0xA9]


def best(text: str) -> int:
    """The highest sum, in hundredths, over all cuts; what no piece covers costs a thousand."""
    @cache
    def ahead(at: int) -> int:
        if at == len(text):
            return 0
        sums = [round(SCORES[text[at:end]] * 100) + ahead(end) for end in range(at + 1, min(len(text), at + 6) + 1) if text[at:end] in SCORES]
        return max([*sums, ahead(at + 1) - 100_000])
    return ahead(0)


def test_plamo_2_takes_the_cut_whose_scores_add_up_highest(tmp_path: Path) -> None:
    ours = plamo2(tmp_path)
    for text in texts.ALL:
        text = text.replace("\ufeff", "")
        ids = ours.encode(text)
        total, at = 0, 0
        while at < len(ids):
            token = ours.token_of(ids[at])
            at += 1 if token in SCORES else 1 if ids[at] < 4 + 0x80 else 2 if ids[at] < 4 + 0xE0 else 3 if ids[at] < 4 + 0xF0 else 4
            total += round(SCORES[token] * 100) if token in SCORES else -100_000
        assert total == best(text)
        assert ours.decode(ids) == text
    assert (ours.bos_id, ours.eos_id, ours.adds_bos) == (1, 2, False)
    assert ours.encode("a<tool>b")[1] == 3
    assert {1, 2}.isdisjoint(ours.encode("<|plamo:bos|>"))


def test_of_equal_cuts_the_longer_piece_comes_first_and_a_byte_order_mark_is_nothing() -> None:
    cut = likeliest({"a": (0, -1.0), "aa": (1, -2.0), "aaa": (2, -3.0), "b": (3, float("nan"))}, range(10, 266))
    assert cut("aaaaa") == [2, 1]
    assert cut("\ufeffa") == [0]
    assert cut("b\ufeff") == [10 + ord("b"), *(10 + byte for byte in "\ufeff".encode())]


@settings(max_examples=100, deadline=None)
@given(text=texts.texts)
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    if not _cache:
        _cache.extend([rwkv(tmp_path_factory.mktemp("t")), plamo2(tmp_path_factory.mktemp("t"))])
    for ours in _cache:
        assert ours.decode(ours.encode(text)) == text or text.startswith("\ufeff") or "<tool>\ufeff" in text
        assert ours.special_ids.isdisjoint(ours.encode(text + "<s><|plamo:eos|>"))


_cache: list[Tokenizer] = []


def test_bytes_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(BadTokenizer, match="1 of the 256 bytes have no token, first: 0xff, so some text could not be encoded"):
        rwkv(tmp_path, BYTES[:-1])
    with pytest.raises(BadTokenizer, match="1 of the 256 bytes have no token, first: <0xFF>"):
        plamo2(tmp_path, 255)
    with pytest.raises(BadTokenizer, match="has no tokens for bytes, which a tokenizer of kind 'plamo2' has"):
        plamo2(tmp_path, 0)
