"""Streaming: the pieces join to the whole text, and no piece holds half a character."""
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.tokenizer import Tokenizer, load_tokenizer
from pellucid.tokenizer.bytelevel import GPT2_PATTERN
from tests.tokenizer import texts
from tests.tokenizer.test_library import llama2, llama3, metaspace
from tests.tokenizer.test_sentencepiece import OPTIONS, train
from tests.tokenizer.test_tiktoken import make_ranks, write


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    found = []
    for name, build in (("llama3", llama3), ("llama2", llama2), ("metaspace", metaspace)):
        build().save(str(tmp_path_factory.mktemp(name) / "tokenizer.json"))
        found.append(load_tokenizer(tmp_path_factory.getbasetemp() / f"{name}0" / "tokenizer.json"))
    for options in OPTIONS.values():
        file = tmp_path_factory.mktemp("spm") / "tokenizer.model"
        file.write_bytes(train(**options))
        found.append(load_tokenizer(file))
    return [*found, load_tokenizer(write(tmp_path_factory.mktemp("ranks") / "x.tiktoken", make_ranks(GPT2_PATTERN, 400)), pattern=GPT2_PATTERN)]


def with_bytes(tokenizers: list[Tokenizer]) -> list[Tokenizer]:
    """Those that write a character they do not know as its bytes, and nothing after it."""
    found = [t for t in tokenizers if t.decode(t.encode("𒀭")) == "𒀭"]
    assert len(found) >= 6
    return found


def pieces(tokenizer: Tokenizer, ids: list[int], **how: bool) -> list[str]:
    stream = tokenizer.stream(**how)
    return [*map(stream.push, ids), stream.finish()]


@settings(max_examples=60, deadline=None)
@given(text=texts.texts)
def test_pieces_join_to_the_whole_and_hold_no_half_character(every_kind: list[Tokenizer], text: str) -> None:
    for tokenizer in every_kind:
        ids = tokenizer.encode(text)
        streamed = pieces(tokenizer, ids)
        assert "".join(streamed) == tokenizer.decode(ids)
        if "\ufffd" not in text:  # nothing was cut: a cut character would show as one
            assert not any("\ufffd" in piece for piece in streamed)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shown=st.booleans())
def test_pieces_of_any_ids_join_to_the_whole(every_kind: list[Tokenizer], data: st.DataObject, shown: bool) -> None:
    """Random ids are mostly half characters and special tokens in odd places; ids past the vocabulary come too."""
    for tokenizer in every_kind:
        ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab + 2), max_size=12))
        assert "".join(pieces(tokenizer, ids, special=shown)) == tokenizer.decode(ids, special=shown)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_piece_is_final(every_kind: list[Tokenizer], data: st.DataObject) -> None:
    """What was shown after n ids is how the text of all ids begins: nothing has to be taken back."""
    for tokenizer in every_kind:
        ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=12))
        whole, shown = tokenizer.decode(ids), ""
        for piece in pieces(tokenizer, ids):
            shown += piece
            assert whole.startswith(shown)


def test_a_character_of_several_tokens_comes_with_its_last_one(every_kind: list[Tokenizer]) -> None:
    for tokenizer in with_bytes(every_kind):
        ids = tokenizer.encode("𒀭")
        assert len(ids) >= 4
        assert pieces(tokenizer, ids) == [""] * (len(ids) - 1) + ["𒀭", ""]


def test_a_character_that_never_completes_shows_at_the_end(every_kind: list[Tokenizer]) -> None:
    for tokenizer in with_bytes(every_kind):
        *streamed, last = pieces(tokenizer, tokenizer.encode("a𒀭")[:-1])
        assert "\ufffd" not in "".join(streamed)
        assert set(last) == {"\ufffd"}


def test_a_continuation_keeps_its_space_and_finishes_a_character_of_the_prompt(every_kind: list[Tokenizer]) -> None:
    for tokenizer in every_kind:
        ids = tokenizer.encode("hello world 𒀭 is hello")
        for cut in range(1, len(ids)):
            stream = tokenizer.stream(after=ids[:cut])
            rest = "".join([*map(stream.push, ids[cut:]), stream.finish()])
            assert rest == tokenizer.decode(ids[cut:], after=ids[:cut])
            assert tokenizer.decode(ids).endswith(rest)
            complete = tokenizer.stream()
            assert "".join(map(complete.push, ids[:cut])) + rest == tokenizer.decode(ids)


@pytest.mark.shared
def test_the_published_story_streams_to_its_published_text(shared: Path) -> None:
    import json

    golden = json.loads((shared / "stories260k/golden_greedy.json").read_text())
    tokenizer = load_tokenizer(shared / "stories260k")
    assert "".join(pieces(tokenizer, golden["token_ids"])) == golden["expected_text"]
