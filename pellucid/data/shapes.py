"""What a row says, whatever its columns are called: a conversation, a text, two answers of which one is better, or an answer with a verdict.

    messages        {"messages": [{"role", "content"}, ...], "tools"?}                     OpenAI's; the last message is the assistant's
    sharegpt        {"conversations": [{"from": "human" | "gpt" | "system", "value"}, ...]}
    alpaca          {"instruction", "input"?, "output", "system"?}
    prompt          {"prompt", "completion"}                                              texts, or lists of messages
    preference      {"prompt"?, "chosen", "rejected"}                                     texts, or lists of messages
    ranking         {"prompt", "responses": [best, ..., worst]}
    verdict         {"prompt", "completion", "label": true | false}
    text            {"text"}
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from pellucid.data.rows import Read, Row
from pellucid.errors import BadData, BadRequest, did_you_mean, nearest

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages, as a chat template reads them; the assistant has the last word. n_prompt: so many of them are never learned, whatever their role."""

    messages: tuple[Message, ...]
    origin: str
    tools: tuple[Any, ...] = ()
    n_prompt: int = 0


@dataclass(frozen=True, slots=True)
class Continued:
    """A text and what comes after it, without a template."""

    prompt: str
    completion: str
    origin: str


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    origin: str


Answered = Conversation | Continued


@dataclass(frozen=True, slots=True)
class Preferred:
    chosen: Answered
    rejected: Answered
    origin: str


@dataclass(frozen=True, slots=True)
class Judged:
    answered: Answered
    good: bool
    origin: str


Said = Conversation | Continued | Document | Preferred | Judged
SHAPES = ("messages", "sharegpt", "alpaca", "prompt", "preference", "ranking", "verdict", "text")
_NEEDS: dict[str, tuple[str, ...]] = {"messages": ("messages",), "sharegpt": ("conversations",), "alpaca": ("instruction", "output"),
                                      "verdict": ("prompt", "completion", "label"), "prompt": ("prompt", "completion"), "preference": ("chosen", "rejected"),
                                      "ranking": ("prompt", "responses"), "text": ("text",)}
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bot": "assistant", "system": "system",
          "tool": "tool", "function": "tool"}


def detect(columns: Sequence[str], where: str) -> str:
    """The shape whose columns these are. Raises BadRequest where none is, or two are."""
    found = [shape for shape in SHAPES if set(_NEEDS[shape]) <= set(columns)]
    if "verdict" in found:
        found = [shape for shape in found if shape != "prompt"]
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadRequest(f"{where} has the columns {', '.join(columns)}, which are of no shape that is read. Say what they are: shape (one of "
                         f"{', '.join(SHAPES)}) and columns, such as columns: {{text: {columns[0] if columns else 'body'}}}", field="data")
    raise BadRequest(f"the columns of {where} ({', '.join(columns)}) are of {len(found)} shapes: {', '.join(found)}. Say which: shape: {found[0]}",
                     field="data")


def said(read: Read, shape: str, columns: Mapping[str, str]) -> list[Said]:
    """What a row says; a ranking says as much as its pairs. Raises BadData that names the row and what is missing of it."""
    return _SAYS[shape](_Cells(read, shape, columns))


def check_shape(shape: str, columns: Mapping[str, str]) -> None:
    """Raises BadRequest for a shape nobody knows, or columns that it does not have."""
    if shape not in ("auto", *SHAPES):
        raise BadRequest(f"data has shape={shape!r}, which is none of auto, {', '.join(SHAPES)}.{did_you_mean(nearest(shape, SHAPES))}", field="data")
    known = {*_NEEDS.get(shape, {name for needs in _NEEDS.values() for name in needs}), *_ALSO}
    for name in columns:
        if name not in known:
            raise BadRequest(f"data has columns for {name!r}, which {shape} does not read.{did_you_mean(nearest(name, known))}", field="data")


_ALSO = ("tools", "system", "input", "prompt")


class _Cells:
    """A row's columns under the names that the shape has for them."""

    def __init__(self, read: Read, shape: str, columns: Mapping[str, str]) -> None:
        self.row: Row = read.row
        self.origin, self.shape, self.columns = read.origin, shape, columns

    def __call__(self, name: str) -> Any:
        theirs = self.columns.get(name, name)
        if theirs not in self.row:
            raise BadData(f"{self.origin} has no column {theirs!r}.{did_you_mean(nearest(theirs, self.row))} It has {', '.join(self.row) or 'none'}; "
                          f"{self.shape} needs {', '.join(_NEEDS[self.shape])}. Name them: columns: {{{name}: ...}}", [self.origin])
        return self.row[theirs]

    def maybe(self, name: str) -> Any:
        return self.row.get(self.columns.get(name, name))

    def text(self, name: str) -> str:
        value = self(name)
        if not isinstance(value, str):
            raise BadData(f"{self.origin}: {name} is {type(value).__name__} ({value!r:.60}), and a text was expected", [self.origin])
        return value


def _messages(cells: _Cells, value: Any = None, name: str = "messages") -> tuple[Message, ...]:
    value = cells(name) if value is None else value
    if not isinstance(value, list) or not value:
        raise BadData(f"{cells.origin}: {name} is {value!r:.60}, and a list of messages was expected", [cells.origin])
    out = []
    for n, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadData(f"{cells.origin}: message {n + 1} of {name} has no role: {message!r:.80}. Each needs one of system, user, assistant, tool",
                          [cells.origin])
        out.append({key: each for key, each in message.items() if each is not None})  # Parquet writes every column of every message
    return tuple(out)


def _conversation(cells: _Cells, messages: Sequence[Message], tools: Any = None, n_prompt: int = 0) -> Conversation:
    last = messages[-1]
    if last["role"] != "assistant":
        raise BadData(f"{cells.origin} ends with a message of the {last['role']!r}, and nothing would be learned of it: the assistant's was expected last",
                      [cells.origin])
    for n, message in enumerate(messages, 1):
        if message["role"] == "assistant" and not str(message.get("content") or "").strip() and not message.get("tool_calls"):
            raise BadData(f"{cells.origin}: message {n}, the assistant's, is empty: the model would learn to say nothing. "
                          f"Fill it in, or take the row out", [cells.origin])
    return Conversation(tuple(messages), cells.origin, tuple(tools or ()), n_prompt)


def _says_messages(cells: _Cells) -> list[Said]:
    return [_conversation(cells, _messages(cells), cells.maybe("tools"))]


def _says_sharegpt(cells: _Cells) -> list[Said]:
    turns = cells("conversations")
    if not isinstance(turns, list) or not turns:
        raise BadData(f"{cells.origin}: conversations is {turns!r:.60}, and a list of turns was expected", [cells.origin])
    messages: list[Message] = []
    for n, turn in enumerate(turns, 1):
        role = _ROLES.get(str(turn.get("from", turn.get("role")))) if isinstance(turn, dict) else None
        value = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if role is None or not isinstance(value, str):
            raise BadData(f"{cells.origin}: turn {n} is {turn!r:.80}; expected {{'from': one of {', '.join(_ROLES)}, 'value': text}}", [cells.origin])
        messages.append({"role": role, "content": value})
    if isinstance(system := cells.maybe("system"), str) and system:
        messages.insert(0, {"role": "system", "content": system})
    return [_conversation(cells, messages)]


def _says_alpaca(cells: _Cells) -> list[Said]:
    asked = cells.text("instruction")
    if isinstance(more := cells.maybe("input"), str) and more.strip():
        asked = f"{asked}\n\n{more}"
    system = cells.maybe("system")
    first = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return [_conversation(cells, [*first, {"role": "user", "content": asked}, {"role": "assistant", "content": cells.text("output")}])]


def _answered(cells: _Cells, prompt: Any, answer: Any, name: str) -> Answered:
    """A prompt and its answer, both texts or both messages."""
    if isinstance(answer, str):
        if not answer.strip():
            raise BadData(f"{cells.origin}: {name} is empty: the model would learn to say nothing. Fill it in, or take the row out", [cells.origin])
        if isinstance(prompt, str):
            return Continued(prompt, answer, cells.origin)
        answer = [{"role": "assistant", "content": answer}]
    before = () if prompt is None else ({"role": "user", "content": prompt},) if isinstance(prompt, str) else _messages(cells, prompt, "prompt")
    whole = [*before, *_messages(cells, answer, name)]
    return _conversation(cells, whole, cells.maybe("tools"), len(before))


def _says_prompt(cells: _Cells) -> list[Said]:
    return [_answered(cells, cells("prompt"), cells("completion"), "completion")]


def _says_preference(cells: _Cells) -> list[Said]:
    prompt, chosen, rejected = cells.maybe("prompt"), cells("chosen"), cells("rejected")
    if prompt is None:  # what both begin with
        if not isinstance(chosen, list) or not isinstance(rejected, list):
            raise BadData(f"{cells.origin} has no prompt, and chosen and rejected are texts: what they have in common cannot be told from the answers. Give "
                          f"the prompt, or messages", [cells.origin])
        n = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
        prompt, chosen, rejected = chosen[:n], chosen[n:], rejected[n:]
    if chosen == rejected:
        raise BadData(f"{cells.origin}: chosen and rejected are the same, and nothing is to be learned of it. Take the row out", [cells.origin])
    return [Preferred(_answered(cells, prompt, chosen, "chosen"), _answered(cells, prompt, rejected, "rejected"), cells.origin)]


def _says_ranking(cells: _Cells) -> list[Said]:
    prompt, answers = cells("prompt"), cells("responses")
    if not isinstance(answers, list) or len(answers) < 2:
        raise BadData(f"{cells.origin}: responses is {answers!r:.60}, and a list of two or more, the best first, was expected", [cells.origin])
    each = [_answered(cells, prompt, answer, "responses") for answer in answers]
    return [Preferred(better, worse, cells.origin) for better, worse in combinations(each, 2)]


def _says_verdict(cells: _Cells) -> list[Said]:
    label = cells("label")
    if label not in (True, False, 0, 1, "true", "false", "True", "False"):
        raise BadData(f"{cells.origin}: label is {label!r:.60}, and true or false was expected", [cells.origin])
    return [Judged(_answered(cells, cells("prompt"), cells("completion"), "completion"), label in (True, 1, "true", "True"), cells.origin)]


def _says_text(cells: _Cells) -> list[Said]:
    text = cells.text("text")
    if not text.strip():
        raise BadData(f"{cells.origin}: text is empty. Take the row out", [cells.origin])
    return [Document(text, cells.origin)]


_SAYS: dict[str, Callable[[_Cells], list[Said]]] = {
    "messages": _says_messages, "sharegpt": _says_sharegpt, "alpaca": _says_alpaca, "prompt": _says_prompt, "preference": _says_preference,
    "ranking": _says_ranking, "verdict": _says_verdict, "text": _says_text}
