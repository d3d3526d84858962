"""Where the person's lines come from: a terminal with history and many-line input, or a pipe."""
from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pellucid.cli._frame import note
from pellucid.cli._options import utf8
from pellucid.errors import MissingExtra


def history_file() -> Path:
    """Where lines typed are kept between chats, readable by their owner alone."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    (state / "pellucid").mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state / "pellucid" / "chat_history"
    path.touch(mode=0o600)
    return path


def piped_lines() -> Iterator[str]:
    """Every line of stdin. Raises BadRequest for one that is not UTF-8."""
    for raw in sys.stdin.buffer:
        yield utf8(raw, "the message")


def terminal_lines(commands: list[str], status: Callable[[], str], **streams: Any) -> Iterator[str]:
    """What the person enters, until Ctrl-D. Raises MissingExtra without prompt_toolkit. `streams`: its input and output, for tests."""
    session = _session(commands, status, **streams)
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:  # Ctrl-C while typing drops the line
            continue
        except EOFError:
            return


def _session(commands: list[str], status: Callable[[], str], **streams: Any) -> Any:
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.output import create_output
        from prompt_toolkit.shortcuts import CompleteStyle
    except ImportError:
        raise MissingExtra("a conversation in the terminal", "chat") from None
    streams.setdefault("output", create_output(always_prefer_tty=True))  # stdout may be a pipe that wants the answers alone
    return PromptSession(history=_history(), auto_suggest=AutoSuggestFromHistory(), multiline=True, key_bindings=_keys(),
                         completer=WordCompleter(commands, sentence=True), complete_while_typing=False,
                         complete_style=CompleteStyle.READLINE_LIKE,  # the other styles keep eight empty lines for a menu
                         prompt_continuation="  ", bottom_toolbar=status, **streams)


def _history() -> Any:
    """What was typed in earlier chats. Where a home is read-only or missing, as in many containers, what is typed in this one."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    try:
        return FileHistory(str(history_file()))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        note(f"what you type is not kept for the next chat: {error}")
        return InMemoryHistory()


def _keys() -> Any:
    """Enter sends, Esc-Enter and a backslash before Enter begin a new line."""
    from prompt_toolkit.key_binding import KeyBindings
    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys
