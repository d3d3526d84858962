"""Exact match: how many of the rows held out are answered with the row's own answer, free and held to a JSON Schema, before and after."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pellucid.api import Model
from pellucid.data.example import Example, Item
from pellucid.errors import BadRequest
from pellucid.tokenizer import Tokenizer

How = Literal["free", "schema"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One row: what was asked, what its row says, what the model said."""

    prompt: str
    expected: str
    said: str
    hit: bool
    origin: str


@dataclass(frozen=True, slots=True)
class Exact:
    """how: free, or held to the schema. valid: answers that are JSON, where all that was expected is."""

    how: How
    answers: tuple[Answer, ...]
    valid: int | None

    @property
    def hits(self) -> int:
        return sum(answer.hit for answer in self.answers)

    @property
    def share(self) -> float:
        return self.hits / len(self.answers)


def exact_match(model: Model, items: Sequence[Item], *, schema: Mapping[str, Any] | None = None, max_tokens: int = 256,
                adapter: str | None = None) -> Exact:
    """Asks for every row's answer at once, each time the likeliest token. Raises BadRequest for rows that are not one prompt and its answer.

    Answers that are both JSON are compared as values, so that white space and the order of keys do not count; others as texts.
    """
    asked = [_asked(item, model.stop_ids()) for item in items]
    held = {} if schema is None else {"compact": schema}
    done = model.batch([prompt for prompt, _ in asked], max_tokens=max_tokens, temperature=0, adapter=adapter, **held)  # type: ignore[typeddict-item]
    tokenizer = model.tokenizer
    expected = [tokenizer.decode(answer).strip() for _, answer in asked]
    said = [completion.text.strip() for completion in done]
    answers = tuple(Answer(_readable(tokenizer, prompt), right, text, same(text, right), item.origin)
                    for (prompt, _), right, text, item in zip(asked, expected, said, items, strict=True))
    valid = sum(value_of(text) is not None for text in said) if all(value_of(right) is not None for right in expected) else None
    return Exact("free" if schema is None else "schema", answers, valid)


def same(said: str, expected: str) -> bool:
    """Equal as JSON values where both are JSON, else equal texts."""
    ours, theirs = value_of(said), value_of(expected)
    return said == expected if ours is None or theirs is None else ours == theirs


def value_of(text: str) -> tuple[Any] | None:
    """The JSON value of a text, in a tuple as null is one; None where it is no JSON."""
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):
        return None


def _asked(item: Item, stop_ids: frozenset[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(prompt, answer without the token that ends it)."""
    if not isinstance(item, Example):
        raise BadRequest(f"eval.exact_match answers prompts, and {item.origin} is a {type(item).__name__.lower()}. Leave it out", field="eval.exact_match")
    begin = item.learned.index(True)
    if not all(item.learned[begin:]) or begin < 2:
        raise BadRequest(f"eval.exact_match needs rows of one prompt and one answer at its end, and {item.origin} has learned tokens elsewhere. Leave it out",
                         field="eval.exact_match")
    answer = item.ids[begin:]
    return item.ids[:begin], answer[:-1] if answer[-1] in stop_ids else answer


def _readable(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode([i for i in ids if i != tokenizer.bos_id]).strip()
