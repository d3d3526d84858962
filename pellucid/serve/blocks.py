"""An answer as blocks one after the other, thinking, text and calls, as the newer APIs stream it."""
from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pellucid.serve.tools import Call, Part

What = Literal["opens", "says", "ends"]


@dataclass(slots=True)
class Block:
    """One of them; `text` is what it has said so far: of a call its arguments."""

    index: int
    kind: Literal["thinking", "text", "call"]
    name: str = ""  # of a call's function
    text: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(12))


class Blocks:
    """Takes parts in order; tells which block opens, what it says, and when it ends."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None

    @property
    def called(self) -> bool:
        return any(block.kind == "call" for block in self.all)

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.all if block.kind == "text")

    def take(self, parts: Sequence[Part]) -> Iterator[tuple[What, Block, str]]:
        for part in parts:
            if isinstance(part, Call):
                yield from self.end()
                yield from self._say("call", part.arguments, part.name)
                yield from self.end()
            else:
                kind, piece = part
                if self._open is not None and self._open.kind != kind:
                    yield from self.end()
                yield from self._say(kind, piece)

    def end(self) -> Iterator[tuple[What, Block, str]]:
        if self._open is not None:
            block, self._open = self._open, None
            yield "ends", block, ""

    def _say(self, kind: Literal["thinking", "text", "call"], piece: str, name: str = "") -> Iterator[tuple[What, Block, str]]:
        if self._open is None:
            self._open = Block(len(self.all), kind, name)
            self.all.append(self._open)
            yield "opens", self._open, ""
        self._open.text += piece
        yield "says", self._open, piece
