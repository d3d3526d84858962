"""Text as it streams: cut at a stop string, and thinking told from answer. Whatever the pieces, the outcome is that of the whole text."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Kind = Literal["thinking", "text"]


class StopStrings:
    """Passes text on up to the first stop string; `met` is that string once it was seen.

    The first is the one that ends first in the text, and of those the longest. What could still become a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.met: str | None = None
        self._held = ""

    def push(self, piece: str) -> str:
        """What may be shown now. Nothing once a stop string was met."""
        if self.met is not None or not self.stops:
            return "" if self.stops else piece
        text = self._held + piece
        found = [(at + len(stop), at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.met = min(found)
            self._held = ""
            return text[:at]
        held = max((overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back and became no stop string after all."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, word: str) -> int:
    """Length of the longest end of `text` that begins `word` and is not all of it."""
    for n in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:n]):
            return n
    return 0


class Thinking:
    """Tells a model's thinking from its answer: `<think> ... </think> answer`.

    The opening mark counts only where the output begins: a model that writes about it later is quoting it. `opened`: the prompt already
    ended with it, as some chat templates do. White space around the thinking belongs to neither.
    """

    def __init__(self, opening: str, closing: str, *, opened: bool) -> None:
        self.opening, self.closing, self.opened = opening, closing, opened
        self._state: Literal["start", "thinking", "between", "text"] = "start"
        self._held = ""
        self._begun = False  # whether the thinking has shown anything

    @property
    def thought(self) -> bool | None:
        """Whether what has come so far is thinking, its marks included; None while that is open."""
        return None if self._state == "start" else self._state == "thinking"

    def push(self, piece: str) -> list[tuple[Kind, str]]:
        """The parts of what may be shown now, in order."""
        text, self._held = self._held + piece, ""
        parts: list[tuple[Kind, str]] = []
        if self._state == "start":
            text = self._start(text)
        if self._state == "thinking":
            text = self._think(text, parts)
        if self._state == "between" and (text := text.lstrip()):
            self._state = "text"
        if self._state == "text" and text:
            parts.append(("text", text))
        return parts

    def finish(self) -> list[tuple[Kind, str]]:
        """What was held back and became no mark after all."""
        held, self._held = self._held, ""
        thinking = self._state == "thinking" or (self._state == "start" and self.opened)
        shown = self._shown(held.rstrip()) if thinking else held
        return [("thinking" if thinking else "text", shown)] if shown else []

    def _start(self, text: str) -> str:
        """Decides, once enough is there, whether the output opens with thinking; what is left to look at."""
        begun = text.lstrip()
        if begun.startswith(self.opening):
            self._state = "thinking"
            return begun[len(self.opening) :]
        if self.opening.startswith(begun):  # still open; nothing but white space is, too
            self._held = text
            return ""
        self._state = "thinking" if self.opened else "text"
        return text

    def _think(self, text: str, parts: list[tuple[Kind, str]]) -> str:
        """Shows thinking up to the closing mark; what comes after it."""
        at = text.find(self.closing)
        rest = ""
        if at >= 0:
            self._state, shown, rest = "between", text[:at].rstrip(), text[at + len(self.closing) :]
        else:
            shown = text[: len(text) - overlap(text, self.closing)].rstrip()  # space is held, too: it may be the last
            self._held = text[len(shown) :]
        if shown := self._shown(shown):
            parts.append(("thinking", shown))
        return rest

    def _shown(self, text: str) -> str:
        text = text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        return text
