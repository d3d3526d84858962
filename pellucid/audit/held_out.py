"""Text that models are judged on, cut into windows: every token is scored once, with what comes before it as context."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pellucid.errors import BadRequest, BadTokenizer
from pellucid.tokenizer import Tokenizer

LEAST = 1024  # tokens: sixteen blocks for the intervals, below which nothing is said
SHARE = 8  # of a window, the part that is read again as context: a token then has at least so much before it, but for the text's first


@dataclass(frozen=True, slots=True)
class Window:
    """`ids` are read, BOS first where the model wants one; those from `n_context` on are scored. start: where the first of them stands in the text."""

    ids: tuple[int, ...]
    n_context: int
    start: int

    @property
    def scored(self) -> tuple[int, ...]:
        return self.ids[self.n_context :]


def windows(ids: Sequence[int], length: int, *, bos: int | None, most: int | None = None) -> list[Window]:
    """The text in windows of at most `length`, in its order; where `most` tokens are fewer than it has, windows spread evenly over it.

    Without BOS the text's first token has nothing before it, and is not scored. Raises BadRequest for fewer than LEAST tokens to score, with both counts.
    """
    begin = 0 if bos is not None else 1
    if (n := min(len(ids) - begin, most or len(ids))) < LEAST:
        raise BadRequest(f"the text has {max(0, n):,} tokens to score, and {LEAST:,} are the least from which intervals can be told. Give more text"
                         f"{' or a larger --tokens' if most is not None and most < len(ids) else ''}", field="text")
    head = (bos,) if bos is not None else ()
    if length < 4 or length <= len(head) + length // SHARE:
        raise BadRequest(f"--window {length}: a window holds at least 4 tokens", field="window")
    cut, start = [], begin
    while start < len(ids):
        before = start if start == begin else length // SHARE
        stop = min(len(ids), start - before + length - len(head))
        cut.append(Window((*head, *ids[start - before : stop]), len(head) + before, start))
        start = stop
    few = n // max(len(window.scored) for window in cut)
    choices = (spread(cut, k) for k in range(max(1, few), len(cut) + 1))
    return next(chosen for chosen in choices if sum(len(window.scored) for window in chosen) >= n)


def spread(cut: Sequence[Window], n: int) -> list[Window]:
    """So many of the windows, evenly over all."""
    return [cut[i * len(cut) // n] for i in range(n)]


def encoded(text: str, a: Tokenizer, b: Tokenizer | None, names: tuple[str, str] = ("A", "B")) -> list[int]:
    """The ids of the text, which must be the same for both models. Raises BadTokenizer where they are not, with the first that differs."""
    ids = a.encode(text)
    if b is None:
        return ids
    others = b.encode(text)
    for i, (mine, other) in enumerate(zip(ids, others, strict=False)):
        if mine != other or a.token_of(mine) != b.token_of(other):
            raise _unlike(names, f"token {i:,} of the text is {mine} {a.token_of(mine)!r} to {names[0]} and {other} {b.token_of(other)!r} to {names[1]}")
    if len(ids) != len(others):
        raise _unlike(names, f"the text has {len(ids):,} tokens for {names[0]} and {len(others):,} for {names[1]}")
    begins = [tokenizer.bos_id if tokenizer.adds_bos else None for tokenizer in (a, b)]
    if begins[0] != begins[1]:
        first, second = ("no BOS" if i is None else f"BOS, {i}," for i in begins)
        raise _unlike(names, f"a text begins with {first} for {names[0]} and {second} for {names[1]}")
    return ids


def _unlike(names: tuple[str, str], why: str) -> BadTokenizer:
    return BadTokenizer(f"{names[0]!r} and {names[1]!r} have different tokenizers: {why}. Their probabilities are of different tokens, and only models with "
                        f"the same tokenizer can be compared. Was one of them converted from another revision?")
