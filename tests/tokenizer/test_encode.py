"""Cutting a text at special tokens: the longest where several begin, white space with those that take it, and thousands of them as fast as one."""
from __future__ import annotations

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from pellucid.tokenizer.encode import Token, any_of, splitter

WORDS = st.lists(st.text("ab<. ", min_size=1, max_size=5), min_size=1, max_size=8)


@given(words=WORDS, text=st.text("ab<. ", max_size=30))
def test_the_tree_of_characters_finds_what_a_list_longest_first_finds(words: list[str], text: str) -> None:
    listed = "|".join(map(re.escape, sorted(set(words), key=len, reverse=True)))
    assert re.findall(any_of(words), text) == re.findall(listed, text)


def test_a_token_longer_than_patterns_may_nest() -> None:
    words = ["x" * n for n in (1, 3000, 2000)]
    assert [len(found) for found in re.findall(any_of(words), "x" * 5001)] == [3000, 2000, 1]


def test_white_space_goes_with_the_token_that_takes_it() -> None:
    split = splitter([Token(text="<m>", id=1, lstrip=True), Token(text="<r>", id=2, rstrip=True), Token(text="  ", id=3)])
    assert split("a <m> b") == ["a", 1, " b"]
    assert split("a<r> \n b") == ["a", 2, "b"]
    assert split("a  b<r>  c") == ["a", 3, "b", 2, "c"]
    assert split("<r>  <m>") == [2, 1]


def test_thousands_of_tokens_take_no_more_than_a_moment() -> None:
    """Gemma has 6,400. As one group each, 4,000 characters took 80 seconds."""
    split = splitter([Token(text=f"<unused{i}>", id=i) for i in range(6400)])
    started = time.process_time()
    assert split("<unused1><unused12><x>" * 500 + "a b " * 500)[:3] == [1, 12, "<x>"]
    assert time.process_time() - started < 2
