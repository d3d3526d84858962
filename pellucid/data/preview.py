"""Items as they are learned from: their text in runs that are targets or not, as plain data for a report or a page, and in colors for a terminal."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pellucid.data.example import Comparison, Example, Item, Verdict
from pellucid.tokenizer import Tokenizer

LEARNED, PLAIN, DIM = "\x1b[30;42m", "\x1b[0m", "\x1b[2m"  # black on green: seen on dark and on light


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens beside each other that are all targets, or all none. The texts of an example's spans join to what its ids decode to, special tokens shown."""

    text: str
    learned: bool
    n_tokens: int


def spans(tokenizer: Tokenizer, example: Example) -> list[Span]:
    """In order. A character whose bytes are of two spans is of the later one."""
    stream = tokenizer.stream(special=True)
    out: list[Span] = []
    for token, learned in zip(example.ids, example.learned, strict=True):
        text = stream.push(token)
        if out and out[-1].learned == learned:
            out[-1] = Span(out[-1].text + text, learned, out[-1].n_tokens + 1)
        else:
            out.append(Span(text, learned, 1))
    return [*out[:-1], Span(out[-1].text + stream.finish(), out[-1].learned, out[-1].n_tokens)]


def named(item: Item) -> Iterator[tuple[str, Example]]:
    """The sequences of an item with what each is to it; "" for the only one."""
    if isinstance(item, Comparison):
        yield from (("chosen", item.chosen), ("rejected", item.rejected))
    elif isinstance(item, Verdict):
        yield "good" if item.good else "bad", item.example
    else:
        yield "", item


def plain(tokenizer: Tokenizer, item: Item) -> dict[str, Any]:
    """As JSON has it: {"origin", "sequences": [{"role", "tokens", "learned", "spans": [{"text", "learned", "tokens"}]}]}."""
    return {"origin": item.origin, "sequences": [
        {"role": role, "tokens": len(each.ids), "learned": each.n_learned,
         "spans": [{"text": span.text, "learned": span.learned, "tokens": span.n_tokens} for span in spans(tokenizer, each)]}
        for role, each in named(item)]}


def shown(tokenizer: Tokenizer, item: Item, *, colors: bool, harmless: Callable[[str], str]) -> str:
    """For a terminal: what is learned in black on green; where there are no colors, between ⟦ and ⟧. harmless: makes control characters visible."""
    begin, end, dim = (LEARNED, PLAIN, DIM) if colors else ("⟦", "⟧", "")
    lines = []
    for role, each in named(item):
        lines.append(f"{dim}{harmless(item.origin)}{f' · {role}' if role else ''} · {len(each.ids):,} tokens, {each.n_learned:,} learned"
                     f"{PLAIN if colors else ''}")
        lines.append("".join(_painted(harmless(span.text), begin, end) if span.learned else harmless(span.text) for span in spans(tokenizer, each)))
    return "\n".join(lines)


def _painted(text: str, begin: str, end: str) -> str:
    """Each line by itself, so that a color does not run to the edge of the window; the end of a line that is learned is seen as one."""
    *lines, last = text.split("\n")
    return "".join([*(f"{begin}{line}⏎{end}\n" for line in lines), f"{begin}{last}{end}" if last else ""])
