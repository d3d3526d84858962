"""The places of a text where two models differ most, with the tokens around them."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from pellucid.audit.damage import Seen
from pellucid.tokenizer import Tokenizer

AROUND = 14  # tokens shown before the worst one; half as many after it


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of the text, what the models held it for, and what each would have said."""

    text: str
    kl: float
    share_a: float
    share_b: float
    first_a: str
    first_b: str
    first_share_a: float
    first_share_b: float

    @property
    def flipped(self) -> bool:
        return self.first_a != self.first_b


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Tokens of the text in their order. worst: which of them the passage is shown for; place: where that one stands among the text's tokens."""

    tokens: tuple[Token, ...]
    worst: int
    place: int


def worst_passages(seen: Seen, tokenizer: Tokenizer, n: int = 12) -> list[Passage]:
    """Around the tokens of the largest KL; no token is in two of them."""
    passages: list[Passage] = []
    taken = torch.zeros(len(seen.ids), dtype=torch.bool)
    for i in seen.kl.argsort(descending=True).tolist():
        if len(passages) == n or not seen.kl[i] > 0:
            break
        if taken[i]:
            continue
        start, stop = i, i + 1  # within what was read in one piece
        while start > 0 and i - start < AROUND and not taken[start - 1] and seen.places[start - 1] == seen.places[start] - 1:
            start -= 1
        while stop < len(taken) and stop - i <= AROUND // 2 and not taken[stop] and seen.places[stop] == seen.places[stop - 1] + 1:
            stop += 1
        taken[start:stop] = True
        passages.append(Passage(tokens=tuple(_token(seen, j, tokenizer) for j in range(start, stop)), worst=i - start, place=int(seen.places[i])))
    return passages


def _token(seen: Seen, i: int, tokenizer: Tokenizer) -> Token:
    text, first_a, first_b = (spelled(tokenizer, int(each[i])) for each in (seen.ids, seen.first_a, seen.first_b))
    return Token(text=text, kl=seen.kl[i].item(), share_a=seen.logprob_a[i].exp().item(), share_b=seen.logprob_b[i].exp().item(), first_a=first_a,
                 first_b=first_b, first_share_a=seen.share_a[i].item(), first_share_b=seen.share_b[i].item())


def spelled(tokenizer: Tokenizer, i: int) -> str:
    """What an id reads as in the middle of a text; a row of the vocabulary that no token has is named by its number."""
    data = tokenizer.words.bytes_of(i)
    if data is None:
        return f"<{i}>"
    return data.decode("utf-8", "replace")


def n_bytes(tokenizer: Tokenizer, i: int) -> int:
    """Of text that an id spells."""
    return len(tokenizer.words.bytes_of(i) or b"")
