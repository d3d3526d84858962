"""A preview shows every token once, what is learned apart from what is not, and nothing that would steer a terminal."""
from __future__ import annotations

import pytest

import pellucid
from pellucid.cli._options import SHIPPED
from pellucid.cli._shown import harmless
from pellucid.data.example import Comparison, Example, Verdict
from pellucid.data.preview import LEARNED, Span, plain, shown, spans
from pellucid.tokenizer import Tokenizer
from pellucid.weights.hub import resolve


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return pellucid.load_tokenizer(str(resolve(SHIPPED)))


def example(tokenizer: Tokenizer, asked: str, answer: str) -> Example:
    before, after = tokenizer.encode(asked, special=True), tokenizer.encode(answer)
    return Example((*before, *after), (False,) * len(before) + (True,) * len(after), "a.jsonl:1")


@pytest.mark.parametrize("cut", range(1, 9))
def test_the_spans_join_to_the_text_wherever_they_are_cut(shipped: Tokenizer, cut: int) -> None:
    ids = shipped.encode("Käse \U0001f9c0 und 漢字.\nEnde", special=True)  # a character may be of several tokens
    cut = cut * len(ids) // 9
    each = spans(shipped, Example(tuple(ids), (False,) * cut + (True,) * (len(ids) - cut), "a:1"))
    assert [(span.learned, span.n_tokens) for span in each] == [(False, cut), (True, len(ids) - cut)]
    assert "".join(span.text for span in each) == shipped.decode(ids, special=True)


def test_what_is_learned_is_colored_or_in_brackets_line_by_line(shipped: Tokenizer) -> None:
    one = example(shipped, "Question: a\x1b[2J", "b\nc")
    assert "".join(span.text for span in spans(shipped, one) if span.learned) == "b\nc"
    bare, colored = (shown(shipped, one, colors=colors, harmless=harmless) for colors in (False, True))
    assert bare.endswith("⟦b⏎⟧\n⟦c⟧")
    assert "␛[2J" in bare
    assert "\x1b" not in bare
    assert colored.count(LEARNED) == 2
    assert f"{len(one.ids)} tokens, {one.n_learned} learned" in bare


def test_pairs_and_verdicts_say_which_is_which(shipped: Tokenizer) -> None:
    good, bad = example(shipped, "Q:", " yes"), example(shipped, "Q:", " no")
    told = plain(shipped, Comparison(good, bad, "a.jsonl:1"))
    assert [(each["role"], each["spans"][-1]["text"].strip()) for each in told["sequences"]] == [("chosen", "yes"), ("rejected", "no")]
    assert "· bad ·" in shown(shipped, Verdict(bad, False, "a.jsonl:1"), colors=False, harmless=harmless)
    assert spans(shipped, good)[-1] == Span(" yes", True, good.n_learned)
