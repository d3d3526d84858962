"""Windows score every token once, and say when there is too little text."""
from __future__ import annotations

import pytest

from pellucid.audit.held_out import LEAST, encoded, spread, windows
from pellucid.errors import BadRequest, BadTokenizer
from pellucid.tokenizer import load_tokenizer
from tests.api.scripted import bytes_tokenizer


@pytest.mark.parametrize("bos", [None, 9999])
@pytest.mark.parametrize("length", [64, 100, 5000])
def test_every_token_is_scored_once_after_what_comes_before_it(bos: int | None, length: int) -> None:
    ids = list(range(3_000))
    cut = windows(ids, length, bos=bos)
    assert [i for window in cut for i in window.scored] == ids[0 if bos is not None else 1 :]
    for window in cut:
        assert len(window.ids) <= length
        assert window.ids[0] == (bos if bos is not None else window.start - window.n_context)
        before = window.ids[bool(bos) : window.n_context]
        assert list(before) == ids[window.start - len(before) : window.start]
        assert window.n_context >= 1
    assert all(window.n_context - bool(bos) == length // 8 for window in cut[1:])


def test_fewer_tokens_are_windows_spread_over_the_text() -> None:
    cut = windows(list(range(100_000)), 256, bos=None, most=2_000)
    n = sum(len(window.scored) for window in cut)
    assert 2_000 <= n < 2_000 + 256
    starts = [window.start for window in cut]
    assert starts == sorted(starts)
    assert starts[0] == 1
    assert starts[-1] > 80_000
    assert spread(cut, len(cut)) == cut


def test_a_text_that_is_too_short_is_an_error_with_both_counts() -> None:
    with pytest.raises(BadRequest, match=r"^the text has 1,022 tokens to score, and 1,024 are the least from which intervals can be told\. Give more text$"):
        windows(list(range(LEAST - 1)), 128, bos=None)
    with pytest.raises(BadRequest, match=r"the text has 100 tokens to score, .* Give more text or a larger --tokens"):
        windows(list(range(5_000)), 128, bos=None, most=100)
    assert sum(len(window.scored) for window in windows(list(range(LEAST)), 128, bos=7)) == LEAST


def test_a_window_that_holds_nothing_is_an_error() -> None:
    with pytest.raises(BadRequest, match="--window 3: a window holds at least 4 tokens"):
        windows(list(range(5_000)), 3, bos=None)


def test_another_tokenizer_is_an_error_that_names_the_first_token(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tokenizer = bytes_tokenizer()
        if name == "b":
            tokenizer.add_tokens(["river"])
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    a, b = (load_tokenizer(tmp_path / name) for name in ("a", "b"))
    assert encoded("The sea", a, b) == a.encode("The sea")
    assert encoded("The river", a, None) == a.encode("The river")
    with pytest.raises(BadTokenizer, match=r"'A' and 'B' have different tokenizers: token 4 of the text is 81 'r' to A and 259 'river' to B\. .*converted"):
        encoded("The river", a, b)
