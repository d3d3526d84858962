"""Regular expressions in the part of the language that the grammar engine and Python read alike; everything else is an error that names it.

ECMA-262, which JSON Schema's `pattern` speaks, Rust's regex crate, which llguidance speaks, and Python's re differ in what \\d, \\w, \\s, $, nested
classes and `*+` mean. One scan settles each: \\d, \\w and \\s are ASCII and written out, $ is the end of the text and nothing before it.
"""
from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from pellucid.errors import BadRequest

Refuse = Callable[[str, str], BadRequest]  # (what was found, what to do instead)

SHORT = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\v"}  # what each stands for inside a class; the capital is its complement
GROUPS = {"?=": "look-ahead", "?!": "look-ahead", "?<=": "look-behind", "?<!": "look-behind", "?>": "an atomic group", "?(": "a conditional",
          "?P=": "a back-reference", "?P>": "a recursive group"}
FLAGS = re.compile(r"\?[is]+[:)]")  # ignore case, and . for newlines as well: the two that all dialects share
LITERAL = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[nrtfv]|[^0-9A-Za-z])", re.S)


@dataclass(frozen=True, slots=True)
class Regex:
    """source: as it was given. rust: as llguidance reads it. python: as re reads it, for the same texts.

    quick: whether re, which goes back and tries again, must be quick with any text. (x+x+)+y takes it hours over forty letters.
    """

    source: str
    rust: str
    python: str
    quick: bool


def read_regex(source: object, where: str, field: str) -> Regex:
    """Raises BadRequest for what cannot be enforced, with its position. where: what the message calls the pattern."""
    if not isinstance(source, str):
        raise BadRequest(f"{where} must be a string, got {type(source).__name__} {source!r:.60}", field=field)
    rust, python, quick = _scanned(source, where, field)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(python)
    except (re.error, FutureWarning, RecursionError, OverflowError) as error:
        raise BadRequest(f"{where} is not a regular expression: {error} in {source!r:.120}", field=field) from None
    return Regex(source, rust, python, quick)


def _scanned(source: str, where: str, field: str) -> tuple[str, str, bool]:
    """(rust, python, quick)"""
    def refused(what: str, instead: str) -> BadRequest:
        return BadRequest(f"{where} has {what} at position {i}: {source!r:.120}. It cannot be enforced token by token; {instead}", field=field)

    rust: list[str] = []
    python: list[str] = []
    outside: list[str] = []  # of classes
    i, in_class = 0, False
    while i < len(source):
        piece = both = source[i]
        if piece == "\\":
            piece, both = _escape(source, i, in_class, refused)
        elif in_class:
            both = "\\" + piece if piece in "[&~" else piece  # [ opens a nested class in Rust, && and ~~ are operators there
            if source[i : i + 2] == "--":
                raise refused("-- inside a class", r"write the hyphen as \-")
            in_class = piece != "]"
        elif piece == "[":
            piece = both = re.match(r"\[\^?", source[i:]).group()  # type: ignore[union-attr]
            in_class = True
            if source[i + len(piece) : i + len(piece) + 1] == "]":
                raise refused("a class that begins with ]", r"write \] for the bracket")
        elif piece == "(" and source[i + 1 : i + 2] == "?":
            _check_group(source[i + 1 :], refused)
        elif piece == "+" and rust and rust[-1] in ("*", "+", "?", "}"):
            raise refused("a possessive quantifier", "leave out the second +")
        if not in_class:
            outside.append(piece)
        rust.append(both)
        python.append(r"\Z" if both == "$" and not in_class else both)
        i += len(piece)
    return "".join(rust), "".join(python), _quick(outside)


def _quick(pieces: list[str]) -> bool:
    """At most one repetition of no fixed count, and none of a group that may match in several ways."""
    varies, n = [False], 0
    for i, piece in enumerate(pieces):
        if piece == "(":
            varies.append(False)
        elif piece == ")" and len(varies) > 1:
            inner = varies.pop()
            if inner and pieces[i + 1 : i + 2] in (["*"], ["+"], ["{"]):
                return False
            varies[-1] |= inner
        elif piece in ("*", "+", "{", "|") or (piece == "?" and pieces[i - 1 : i] != ["("]):
            varies[-1] = True
            n += piece in ("*", "+", "{")
    return n <= 1


def _check_group(rest: str, refused: Refuse) -> None:
    kind = next((what for start, what in GROUPS.items() if rest.startswith(start)), None)
    if kind:
        raise refused(kind, "say it without, as an alternation of what may stand there")
    if not rest.startswith(("?:", "?P<")) and not FLAGS.match(rest):
        raise refused(f"({rest[:3]}", "known: (?:...), (?P<name>...), and the flags i and s at the start")


def _escape(source: str, i: int, in_class: bool, refused: Refuse) -> tuple[str, str]:
    """(what stands there, what both dialects read)"""
    following = source[i + 1 : i + 2]
    if following in SHORT:
        return source[i : i + 2], SHORT[following] if in_class else f"[{SHORT[following]}]"
    if following.lower() in SHORT and following:
        if in_class:
            raise refused(f"\\{following} inside a class", f"write it outside, or list what the class holds instead of \\{following}")
        return source[i : i + 2], f"[^{SHORT[following.lower()]}]"
    if found := LITERAL.match(source, i):
        return found.group(), found.group()
    if following.isdigit() or following == "k":
        raise refused("a back-reference", "say it without, as an alternation of what may stand there")
    if following in ("b", "B"):
        raise refused(f"a word boundary (\\{following})", "write what may stand there")
    raise refused(f"\\{following}", r"known: \d \w \s \D \W \S \n \r \t \f \v \xHH \uHHHH and escaped punctuation")
