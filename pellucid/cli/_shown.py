"""Text that a model wrote, on a terminal or into a pipe."""
from __future__ import annotations

import sys
import unicodedata
from typing import Any, TextIO

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def show(piece: str, to: TextIO | None = None, *, dim: bool = False) -> None:
    """A piece of text, at once. On a terminal control characters are made visible: a model's output must not steer it."""
    to = to or sys.stdout
    if to.isatty():
        piece = f"{DIM}{harmless(piece)}{PLAIN}" if dim else harmless(piece)
    to.write(piece)
    to.flush()


def harmless(text: str) -> str:
    """The text with control characters other than newline and tab replaced by their pictures: escape becomes ␛."""
    return "".join(map(_pictured, text))


def _pictured(c: str) -> str:
    if c in "\n\t" or unicodedata.category(c) != "Cc":
        return c
    return chr(0x2400 + ord(c)) if c < " " else "␡" if c == "\x7f" else "\ufffd"  # the pictures stop at delete; what is above has none


def summary(completion: Any) -> str:
    """One line on what a completion took."""
    usage, rate = completion.usage, completion.tokens_per_second
    reused = f", {usage.reused_tokens:,} of them from memory" if usage.reused_tokens else ""
    why = {"stop": "stopped", "length": "max tokens reached", "context": "context full"}[completion.finish_reason]
    speed = f" · {rate:,.1f} tokens/s" if rate is not None else ""
    first = completion.prefill_seconds
    waited = f"{first:.2f} s" if first >= 0.1 else f"{1000 * first:.0f} ms"
    seed = f" · seed {completion.seed}" if completion.settings["temperature"] else ""  # a greedy run has no use for one
    return (f"{usage.completion_tokens:,} tokens, {why}{speed} · prompt {usage.prompt_tokens:,} tokens{reused}, first token after "
            f"{waited}{seed}")
