"""When the library's cut is known to be SentencePiece's, over vocabularies made to tie. (Against SentencePiece itself: test_sentencepiece.py.)"""
from __future__ import annotations

import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.tokenizer import unigram
from pellucid.tokenizer.unigram import Lattice, Unigram

PIECES = ("▁", "a", "b", "▁a", "aa", "aaaa", "ab", "ba", "bab")
BYTES = {byte: 20 + byte for byte in range(256)}


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def made(scores: list[float], bytes: dict[int, int] = BYTES) -> Unigram:
    pieces = {text: (i + 1, float32(score)) for i, (text, score) in enumerate(zip(PIECES, scores, strict=True))}
    return Unigram(Lattice(pieces, {}, 0), 300, bytes)


def forbidden(*_: object) -> None:
    raise AssertionError("cut here, and not by the library")


# Few distinct scores, so that sums tie or nearly tie; and sums so large that float32 has few digits left for the difference.
SCORES = st.lists(st.one_of(st.sampled_from([-1.5, -3.0, -3.0000002, -3.0001, -6.0]), st.floats(-9, -1)), min_size=len(PIECES), max_size=len(PIECES))


@settings(max_examples=300, deadline=None)
@given(scores=SCORES, word=st.text("ab▁c", min_size=1, max_size=12), before=st.floats(-99_000, 0))
def test_a_certain_word_is_cut_alike_after_any_text_by_the_library_too(scores: list[float], word: str, before: float) -> None:
    made_of = made(scores)
    lattice, limit = made_of._lattice, made_of._certain_to(word)
    exact, _ = lattice.cut(word, float32(before))
    if limit > abs(before):
        assert exact == lattice.cut(word)[0]
        assert made_of._library.encode(word).ids == [q for i, piece in exact for q in ([BYTES[b] for b in piece.encode()] if i == 0 else [i])]


@pytest.mark.parametrize("k", range(8, 16))
def test_no_text_before_a_word_turns_its_cut_within_the_limit(k: int) -> None:
    """"a ba" against "ab a", nearer and nearer to a tie: how large a sum before does it take?"""
    made_of = made([-9.0, -2.0, -9.0, -9.0, -9.0, -9.0, -3.0, -3.0 - 2.0**-k, -9.0])
    best = made_of._lattice.cut("aba")[0]
    before, random = 1.0, Random(k)
    while made_of._lattice.cut("aba", float32(-before))[0] == best:
        before *= random.uniform(1, 1.0005)
    assert made_of._certain_to("aba") < before < 6 * made_of._certain_to("aba")  # and the limit is not far from it


@settings(max_examples=100, deadline=None)
@given(scores=SCORES, text=st.text("ab▁c", max_size=300), block=st.sampled_from([1, 3, 64]))
def test_a_text_is_cut_as_its_lattice_cuts_it_whole(scores: list[float], text: str, block: int) -> None:
    for bytes in (BYTES, {}):
        made_of = made(scores, bytes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unigram, "_BLOCK", block)
            ids = made_of.ids(text)
        exact = made_of._exactly(text, 0.0)[0]
        if not bytes:  # a run of unknown characters is one id or several
            ids, exact = ([i for before, i in zip([-1, *x], x, strict=False) if not before == i == 0] for x in (ids, exact))
        assert ids == exact


def test_the_library_cuts_what_is_certain_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    made_of = made([-3.0, -4.0, -4.5, -5.0, -6.0, -7.0, -6.5, -6.25, -9.0])
    assert made_of._lattice.lead("aaaaa") == (0.0, 2)  # aaaa a, a aaaa
    assert made_of._lattice.lead("▁a") == (2.0, 1)
    assert made_of._lattice.lead("c") == (float("inf"), 1)
    assert made_of._certain_to("aaaaa") < 0 < made_of._certain_to("▁a") < 1e8 < made_of._certain_to("c")
    monkeypatch.setattr(made_of._lattice, "cut", forbidden)
    assert made_of.ids("▁a▁ba") == [4, 1, 8]
    for text in ("aaaaa", "▁a" + "ba" * 30, "▁<0x61>"):  # a tie; a word too long to be known; what the library would take for a byte
        with pytest.raises(AssertionError, match="cut here"):
            made_of.ids(text)


def test_a_bytes_name_in_a_text_is_text() -> None:
    assert made([-3.0] * len(PIECES)).ids("▁<0x61>") == [1, *(BYTES[b] for b in b"<0x6"), *(BYTES[b] for b in b"1>")]


def test_where_a_piece_crosses_words_or_is_named_like_a_byte_nothing_is_certain() -> None:
    for odd in ("a▁b▁", "<0x41>"):
        made_of = Unigram(Lattice({"a": (1, -2.0), "▁": (2, -3.0)}, {odd: 3}, 0), 300, BYTES)
        assert made_of.ids(f"▁a{odd}") == [2, 1, 3]
        assert made_of._words is None


def test_only_so_many_words_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "_KEPT", 2)
    made_of = made([-3.0, -4.0, -4.5, -5.0, -6.0, -7.0, -6.5, -6.25, -9.0])
    for text in ("▁a", "▁b", "▁ab", "▁ba", "▁a▁b"):
        assert made_of.ids(text) == made_of._exactly(text, 0.0)[0]
        assert len(made_of._limits) <= 3
