"""A conversation and the commands that steer it. It knows no terminal: chat.py reads and shows."""
from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pellucid.errors import BadRequest, did_you_mean, nearest

SAVED = "pellucid-conversation-1"  # what a saved file says it is
# Sampling that generation_config.json may recommend; a chat follows it where nothing else was asked, and says so.
RECOMMENDED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Leave(Exception):
    """The person wants to go."""


@dataclass
class Conversation:
    """What was said. A turn goes on from what the last one computed.

    options: for the API. seed: of the first answer; each later one counts on, so that /retry writes something else.
    """

    model: Any
    options: dict[str, Any]
    system: str | None = None
    template_args: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    show_thinking: bool = True
    messages: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seed = secrets.randbits(32) if self.seed is None else self.seed
        self.n_answers = 0
        self._asked: dict[str, Any] = {}  # the question whose answer is under way
        self.n_tokens = 0  # of prompt and answer, last time

    def ask(self, text: str) -> Any:
        """The answer to what the person says, as a Stream; `answered` keeps both. Raises what the model does."""
        seed = (self.seed + self.n_answers) % 2**63  # type: ignore[operator]
        self._asked = {"role": "user", "content": text}
        said = [*self._system(), *self.messages, self._asked]
        stream = self.model.stream_chat(said, template_args=self.template_args, reuse=True, seed=seed, **self.options)
        self.n_answers += 1
        return stream

    def answered(self, completion: Any) -> None:
        """Keeps question and answer; an empty answer is forgotten with its question."""
        self.n_tokens = completion.usage.total_tokens
        if not completion.text and not completion.thinking:
            return
        answer = {"role": "assistant", "content": completion.text}
        if completion.thinking is not None:
            answer["reasoning_content"] = completion.thinking  # the name that chat templates know
        self.messages += [self._asked, answer]

    def retract(self) -> str | None:
        """Takes back the last question and its answer; the question, None where there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return str(message["content"])
        return None

    def save(self, path: Path) -> None:
        """Writes the conversation as JSON, links followed. Raises BadRequest rather than write over a file that is something else."""
        path = Path(os.path.realpath(path))
        if os.path.lexists(path):
            _read(path)
        whole = {"kind": SAVED, "model": self.model.settings["model"], "system": self.system, "messages": self.messages}
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            try:
                fresh.write_text(json.dumps(whole, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
                os.replace(fresh, path)
            finally:
                fresh.unlink(missing_ok=True)
        except OSError as error:
            raise BadRequest(f"the conversation cannot be saved to {path}: {error.strerror}. Give another file") from None

    def load(self, path: Path) -> None:
        """Goes on with a saved conversation, in place of this one."""
        saved = _read(path)
        self.system, self.messages = saved["system"], saved["messages"]

    def clear(self) -> None:
        self.messages.clear()
        self.n_tokens = 0

    def _system(self) -> list[dict[str, Any]]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]


def _read(path: Path) -> dict[str, Any]:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a terminal would be waited for
        raise BadRequest(f"{path} is no file that a conversation could be in; it is left alone")
    try:
        saved = json.loads(path.read_bytes())
    except OSError as error:
        raise BadRequest(f"no conversation can be read at {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        saved = None
    if not _is_conversation(saved):
        raise BadRequest(f"{path} holds something else than a conversation that /save wrote; it is left alone")
    return saved  # type: ignore[no-any-return]


def _is_conversation(saved: Any) -> bool:
    return (isinstance(saved, dict) and saved.get("kind") == SAVED and isinstance(saved.get("system", 0), str | None)
            and isinstance(saved.get("messages"), list) and all(map(_is_message, saved["messages"])))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys() and all(isinstance(text, str) for text in value.values())


def recommended(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling that generation_config.json recommends; nothing where it wants no sampling."""
    if not generation.get("do_sample"):
        return {}
    return {name: generation[name] for name in RECOMMENDED if generation.get(name) is not None}


def command(conversation: Conversation, line: str, say: Callable[[str], None]) -> str | None:
    """Does what a line such as `/system Be brief.` asks; a question to answer now, if that follows.

    Raises BadRequest for an unknown or incomplete command, Leave for /exit.
    """
    name, _, argument = line.strip().partition(" ")
    if name not in COMMANDS:
        raise BadRequest(f"{name} is not a command.{did_you_mean(nearest(name, COMMANDS))} /help lists them; a line that should begin with / begins with //")
    return COMMANDS[name][2](conversation, argument.strip(), say)


def _system(conversation: Conversation, argument: str, say: Callable[[str], None]) -> None:
    if argument:
        conversation.system = None if argument == "off" else argument
    say(f"system: {conversation.system}" if conversation.system is not None else "no system message (/system TEXT sets one)")


def _save(conversation: Conversation, argument: str, say: Callable[[str], None]) -> None:
    conversation.save(_path(argument, "/save"))
    say(f"saved {len(conversation.messages)} messages to {argument}")


def _load(conversation: Conversation, argument: str, say: Callable[[str], None]) -> None:
    conversation.load(_path(argument, "/load"))
    say(f"loaded {len(conversation.messages)} messages from {argument}")


def _clear(conversation: Conversation, argument: str, say: Callable[[str], None]) -> None:
    conversation.clear()
    say("cleared; the system message stays" if conversation.system is not None else "cleared")


def _retry(conversation: Conversation, argument: str, say: Callable[[str], None]) -> str:
    question = conversation.retract()
    if question is None:
        raise BadRequest("there is nothing to retry yet")
    return question


def _think(conversation: Conversation, argument: str, say: Callable[[str], None]) -> None:
    if argument not in ("on", "off", ""):
        raise BadRequest(f"/think {argument}: on shows the model's thinking, off hides it")
    conversation.show_thinking = argument != "off" if argument else conversation.show_thinking
    say(f"thinking is {'shown' if conversation.show_thinking else 'hidden'}")


def _help(conversation: Conversation, argument: str, say: Callable[[str], None]) -> None:
    width = max(len(f"{name} {takes}") for name, (takes, _, _) in COMMANDS.items())
    for name, (takes, about, _) in COMMANDS.items():
        say(f"  {f'{name} {takes}':{width}}  {about}")
    say("Enter sends; Esc-Enter, or a \\ at the end of a line, begins a new line. Ctrl-C stops an answer, Ctrl-D leaves.")


def _exit(conversation: Conversation, argument: str, say: Callable[[str], None]) -> None:
    raise Leave


def _path(argument: str, name: str) -> Path:
    if not argument:
        raise BadRequest(f"{name} needs a file: {name} FILE")
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        raise BadRequest(f"{name} {argument}: there is no such home folder; write the path out") from None


Action = Callable[[Conversation, str, Callable[[str], None]], str | None]
COMMANDS: dict[str, tuple[str, str, Action]] = {
    # name: (what it takes, what it does, how)
    "/system": ("TEXT", "set the system message; `off` removes it", _system),
    "/retry": ("", "take back the last answer and write another", _retry),
    "/clear": ("", "forget the conversation", _clear),
    "/save": ("FILE", "write the conversation to a file", _save),
    "/load": ("FILE", "go on with a saved conversation", _load),
    "/think": ("on|off", "show or hide the model's thinking", _think),
    "/help": ("", "this list", _help),
    "/exit": ("", "leave", _exit),
}


def template_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs for the chat template; a value that is JSON is what it says, any other is text. Raises BadRequest."""
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise BadRequest(f"--template-arg {pair!r} is not KEY=VALUE, such as enable_thinking=false", field="template_args")
        try:
            out[key] = json.loads(value)
        except ValueError:
            out[key] = value
    return out
