"""A JSON file that is a list of objects, or an object one of whose values is such a list: its rows, a piece of the file at a time."""
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

from pellucid.errors import BadData

_PIECE = 1 << 20  # characters; a row may be longer
_SPACE = re.compile(r"[ \t\n\r]*")
_OBJECTS, _OPEN = re.compile(r"\[[ \t\n\r]*\{"), re.compile(r"\[[ \t\n\r]*")
_OF_NUMBERS = re.compile(r"[-+.eE0-9]*")
_CUT = 16  # characters before the end of what was read within which a fault may be one of the cut: a literal, an escape
_decode = json.JSONDecoder().raw_decode


def rows_of(text: TextIO, path: str, piece: int = _PIECE) -> Iterator[Any]:
    """Each entry of the list, of whatever kind. Raises BadData, with line and column, where the file stops being what was expected."""
    reader = _Reader(text, path, piece)
    first = reader.peek()
    if first == "[":
        yield from _entries(reader)
    elif first == "{":
        yield from _inside(reader)
    elif first == "":
        raise BadData(f"{path} is empty. Is it the right file, and whole?", [path])
    else:
        raise BadData(f"{path} holds {type(reader.value()).__name__}, and a list of objects was expected", [path])
    if reader.peek():
        line, column = reader.where()
        raise BadData(f"{path} holds several JSON values one after another, the second in line {line} column {column}. If it has one a line, call it .jsonl",
                      [path])


def _entries(reader: _Reader) -> Iterator[Any]:
    reader.take("[")
    while reader.peek() != "]":
        yield reader.value()
        if reader.peek() != "]":
            reader.take(",")
            if reader.peek() == "]":
                reader.fail("a row was expected after the comma")
    reader.take("]")


def _inside(reader: _Reader) -> Iterator[Any]:
    """The rows of the one value that is a list of objects; other values are small facts about the set."""
    reader.take("{")
    lists: list[str] = []
    keys: list[str] = []
    while reader.peek() != "}":
        if reader.peek() != '"':
            reader.fail("a key was expected")
        key = reader.value()
        keys.append(key)
        reader.take(":")
        if reader.opens_objects():
            lists.append(key)
            if len(lists) > 1:
                raise BadData(f"{reader.path} is an object with two lists of objects, {' and '.join(lists)}. One was expected: take the other out",
                              [reader.path])
            yield from _entries(reader)
        else:
            reader.value()
        if reader.peek() != "}":
            reader.take(",")
            if reader.peek() == "}":
                reader.fail("a key was expected after the comma")
    reader.take("}")
    if not lists and not reader.peek():  # else it is a file of lines, and that is said
        raise BadData(f"{reader.path} is an object without a list of objects (it has {', '.join(keys[:8]) or 'nothing'}); a list of rows was expected, or an "
                      f"object that has one", [reader.path])


@dataclass(slots=True)
class _Reader:
    """The file from where it has been read to: buffer[at:], and more when that ends. line, column: of the buffer's first character, counted from 1."""

    text: TextIO
    path: str
    piece: int
    buffer: str = ""
    at: int = 0
    line: int = 1
    column: int = 1
    ended: bool = False

    def more(self, n: int) -> None:
        """Reads on, and lets go of what has been used."""
        self.line, self.column = self.where()
        new = self.text.read(n)
        self.ended = not new
        self.buffer, self.at = self.buffer[self.at :] + new, 0

    def where(self) -> tuple[int, int]:
        newline = self.buffer.rfind("\n", 0, self.at)
        return self.line + self.buffer.count("\n", 0, self.at), self.at - newline if newline >= 0 else self.column + self.at

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while (match := _SPACE.match(self.buffer, self.at)) and match.end() == len(self.buffer) and not self.ended:
            self.more(self.piece)
        self.at = match.end() if match else self.at
        return self.buffer[self.at : self.at + 1]

    def opens_objects(self) -> bool:
        """Whether a list comes next whose first entry is an object."""
        self.peek()
        while _OPEN.fullmatch(self.buffer, self.at) and not self.ended:
            self.more(self.piece)
        return _OBJECTS.match(self.buffer, self.at) is not None

    def take(self, mark: str) -> None:
        if self.peek() != mark:
            self.fail(f"{mark!r} was expected")
        self.at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        n = self.piece
        while True:
            try:
                value, end = _decode(self.buffer, self.at)
                if _OF_NUMBERS.match(self.buffer, end).end() < len(self.buffer) or self.ended:  # type: ignore[union-attr]  # 1 may become 1.5
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                # A text that the piece cuts shows as one without an end; what else the piece may have cut shows at its end. All other faults are faults.
                if self.ended or (not error.msg.startswith("Unterminated") and error.pos < len(self.buffer) - _CUT):
                    self.at = error.pos
                    self.fail(error.msg[0].lower() + error.msg[1:])
            except RecursionError:
                self.fail("nested too deeply")
            self.more(n)
            n *= 2  # a value that is long is looked at few times

    def fail(self, why: str) -> NoReturn:
        line, column = self.where()
        here = self.buffer[self.at : self.at + 40]
        raise BadData(f"{self.path} is not JSON: line {line} column {column}: {why}, found {repr(here) if here else 'the end of the file'}. "
                      f"{'Mend it there' if here else 'Is the file whole?'}", [f"{self.path}:{line}"])
