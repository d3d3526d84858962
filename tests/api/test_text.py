"""Stop strings and thinking: whatever the pieces, the outcome is that of the whole text."""
from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.api.text import StopStrings, Thinking, overlap

LETTERS = st.text("abc", max_size=30)


def streamed(stops: list[str], pieces: list[str]) -> tuple[str, str | None, list[str]]:
    """(what was shown, the stop met, what was shown at each step)."""
    stopper, shown = StopStrings(stops), []
    for piece in pieces:
        shown.append(stopper.push(piece))
        if stopper.met is not None:
            break
    return "".join(shown) + stopper.finish(), stopper.met, shown


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The same from the definition: read letter by letter until a stop string has just been completed, the longest if several."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(LETTERS, st.lists(st.integers(0, 30), max_size=8), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_the_same_wherever_the_pieces_end(text, cuts, stops):
    edges = [0, *sorted(min(at, len(text)) for at in cuts), len(text)]
    shown, met, _ = streamed(stops, [text[a:b] for a, b in itertools.pairwise(edges)])
    assert (shown, met) == cut(text, stops)


def test_a_stop_string_that_spans_pieces_is_never_shown_by_half():
    text, met, shown = streamed(["\nUser:"], ["Hello", "\n", "Us", "er", ": hi"])
    assert (text, met, shown) == ("Hello", "\nUser:", ["Hello", "", "", "", ""])


def test_what_only_looked_like_a_stop_string_is_shown_once_it_is_none():
    text, met, shown = streamed(["\nUser:"], ["Hello\nUs", "ing it", "\nU"])
    assert (text, met, shown) == ("Hello\nUsing it\nU", None, ["Hello", "\nUsing it", ""])


def test_without_stop_strings_everything_passes_at_once():
    assert streamed([], ["a", "", "b"]) == ("ab", None, ["a", "", "b"])


@pytest.mark.parametrize(("text", "word", "n"), [("xab", "abc", 2), ("abc", "abc", 0), ("aa", "aaa", 2), ("", "a", 0), ("xyz", "abc", 0), ("aba", "abab", 3)])
def test_overlap_is_the_longest_end_that_begins_the_word(text, word, n):
    assert overlap(text, word) == n


def thought(pieces: list[str], *, opened: bool = False) -> tuple[str, str]:
    splitter, said = Thinking("<think>", "</think>", opened=opened), {"thinking": "", "text": ""}
    for piece in pieces:
        for kind, part in splitter.push(piece):
            assert part
            said[kind] += part
    for kind, part in splitter.finish():
        said[kind] += part
    return said["thinking"], said["text"]


@pytest.mark.parametrize(("text", "opened", "expected"), [
    ("<think>\nsums\n</think>\n\nIt is 4.\n", False, ("sums", "It is 4.\n")),
    ("  <think>a b</think>c", False, ("a b", "c")),
    ("a b\n</think>\n\nc </think>", True, ("a b", "c </think>")),
    ("<think>\nagain\n</think> c", True, ("again", "c")),  # some models write the mark that the prompt had already
    ("<think></think>\n\nquick", False, ("", "quick")),
    ("<think>never ends, and < is no mark </thin", False, ("never ends, and < is no mark </thin", "")),
    ("\n half  ", True, ("half", "")),
    ("", True, ("", "")),
    ("  no thought <think>quoted</think>", False, ("", "  no thought <think>quoted</think>")),
    ("<thin", False, ("", "<thin")),
    ("<thin", True, ("<thin", "")),
    ("x</think>y", False, ("", "x</think>y")),
    ("<think>a</think>b <think>c</think>", False, ("a", "b <think>c</think>")),
])
def test_thinking_is_told_from_the_answer_at_any_cut(text, opened, expected):
    for size in (1, 2, 3, 5, len(text) or 1):
        assert thought([text[i : i + size] for i in range(0, len(text), size)], opened=opened) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", " ", "\n", "a", "<", "think>", "b c"]), max_size=12), st.data(), st.booleans())
def test_thinking_does_not_depend_on_the_pieces(words, data, opened):
    text = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    edges = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    match = re.fullmatch(r"\s*<think>(.*?)(?:</think>(.*))?", text, re.DOTALL)
    if match is None and opened:
        match = re.fullmatch(r"(.*?)(?:</think>(.*))?", text, re.DOTALL)
    expected = ("", text) if match is None else (match[1].strip(), (match[2] or "").lstrip())
    assert thought(pieces, opened=opened) == expected
