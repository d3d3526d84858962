"""Tool calls in what a model writes: one reader for each way of writing them, fed piece by piece. However the text is cut, what comes of it is the same.

A call is told once it is whole. What looks like one and cannot be read stays text, so that nothing is lost.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pellucid.api.text import overlap
from pellucid.engine.schema import Schema
from pellucid.engine.verdict import against

Kind = Literal["text", "thinking"]


@dataclass(frozen=True, slots=True)
class Call:
    """arguments: a JSON object, as text."""

    name: str
    arguments: str


Part = tuple[Kind, str] | Call
Allows = Callable[[Sequence[Call]], bool]  # whether calls that stand together are ones
Parse = Callable[[str], list[Call] | None]  # the text between two marks -> its calls, None where it is none


class Reader:
    """Passes text on, and takes calls out of it: from an opening mark to a closing one, or to the end where there is none.

    openings: marks a call begins with; one that is a single bracket counts only where the output begins. closing: None = the output's end.
    """

    def __init__(self, openings: Sequence[str], closing: str | None, parse: Parse) -> None:
        self._openings, self._closing, self._parse = tuple(openings), closing, parse
        self.allows: Allows = _any
        self._held = ""
        self._mark: str | None = None  # of the call that is being read
        self._begun = self._called = False  # whether anything but white space has come, and whether a call has

    def push(self, piece: str) -> list[Part]:
        """What may be told now."""
        parts: list[Part] = []
        self._held += piece
        while self._step(parts):
            pass
        return _joined(parts)

    def finish(self) -> list[Part]:
        """What was held back, at the end of the output."""
        parts: list[Part] = []
        if self._mark is not None:
            self._close(parts, self._held, "")
        elif self._held.strip() or not self._called:  # nor does what follows the last one
            parts.append(("text", self._held))
        self._held = ""
        return _joined(parts)

    def _step(self, parts: list[Part]) -> bool:
        """Reads up to the next mark. False where more text is needed."""
        if self._mark is None:
            return self._open(parts)
        at = -1 if self._closing is None else self._held.find(self._closing)
        if at < 0:
            return False
        assert self._closing is not None
        body, self._held = self._held[:at], self._held[at + len(self._closing):]
        self._close(parts, body, self._closing)
        return True

    def _open(self, parts: list[Part]) -> bool:
        bare = self._held.lstrip()
        if not self._begun and not bare:
            return False  # white space before a call is nothing, before text it is text
        usable = [mark for mark in self._openings if len(mark) > 1 or not self._begun]
        found = min(((at, mark) for mark in usable if (at := self._held.find(mark)) >= 0 and (len(mark) > 1 or not self._held[:at].strip())), default=None)
        if found is not None:
            at, self._mark = found
            before, self._held = self._held[:at], self._held[at + len(self._mark):]
            parts.append(("text", before.rstrip()))  # white space before a call belongs to nothing
            self._begun = True
            return True
        keep = max((overlap(self._held, mark) for mark in usable), default=0)
        keep = max(keep, len(self._held) - len(self._held[: len(self._held) - keep].rstrip()))  # white space that a call may follow
        if shown := self._held[: len(self._held) - keep]:
            parts.append(("text", shown))
            self._begun, self._held = True, self._held[len(self._held) - keep:]
        return False

    def _close(self, parts: list[Part], body: str, closing: str) -> None:
        assert self._mark is not None
        whole = self._mark + body if len(self._mark) == 1 else body
        calls = self._parse(whole)
        calls = calls if calls and self.allows(calls) else None
        parts += calls if calls else [("text", f"{self._mark}{body}{closing}")]
        self._called = self._called or bool(calls)
        self._mark = None


class Harmony:
    """gpt-oss: messages in channels, each `<|channel|>name to=functions.f<|message|>content<|end|>`.

    https://cookbook.openai.com/articles/openai-harmony: analysis is thinking, final the answer, commentary to a function a call.
    """

    MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")

    def __init__(self) -> None:
        self._held = self._header = self._body = ""
        self._inside = False  # a message's content
        self.allows: Allows = _any

    def push(self, piece: str) -> list[Part]:
        parts: list[Part] = []
        text, self._held = self._held + piece, ""
        while True:
            found = min(((at, mark) for mark in self.MARKS if (at := text.find(mark)) >= 0), default=None)
            if found is None:
                keep = max(overlap(text, mark) for mark in self.MARKS)
                self._take(text[: len(text) - keep], parts)
                self._held = text[len(text) - keep:]
                return _joined(parts)
            at, mark = found
            self._take(text[:at], parts)
            self._meet(mark, parts)
            text = text[at + len(mark):]

    def finish(self) -> list[Part]:
        parts: list[Part] = []
        self._take(self._held, parts)
        self._held = ""
        self._end(parts)
        return _joined(parts)

    def _take(self, text: str, parts: list[Part]) -> None:
        if not self._inside:
            self._header += text
        elif self._recipient is not None:
            self._body += text
        elif text:
            parts.append(("thinking" if self._header.split("<|channel|>")[-1].strip().startswith("analysis") else "text", text))

    def _meet(self, mark: str, parts: list[Part]) -> None:
        if mark == "<|message|>":
            self._inside = True
        elif mark in ("<|channel|>", "<|constrain|>") and not self._inside:
            self._header += mark
        else:
            self._end(parts)

    @property
    def _recipient(self) -> str | None:
        found = re.search(r"to=functions\.([^\s<]+)", self._header)
        return found[1] if found else None

    def _end(self, parts: list[Part]) -> None:
        if self._inside and (name := self._recipient) is not None:
            arguments = _object(self._body)
            call = None if arguments is None else Call(name, _dumped(arguments))
            parts.append(call if call is not None and self.allows([call]) else ("text", self._body))
        self._header = self._body = ""
        self._inside = False


AnyReader = Reader | Harmony


def _any(calls: Sequence[Call]) -> bool:
    return True


def _joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind as one, and none empty."""
    out: list[Part] = []
    for part in parts:
        if isinstance(part, tuple):
            if not part[1]:
                continue
            if out and isinstance(out[-1], tuple) and out[-1][0] == part[0]:
                out[-1] = (part[0], out[-1][1] + part[1])
                continue
        out.append(part)
    return out


def _dumped(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _call(value: Any) -> Call | None:
    """{"name": ..., "arguments" or "parameters": {...}}, also one level down, where OpenAI's own shape has it."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _object(arguments)
    return Call(value["name"], _dumped(arguments)) if isinstance(arguments, Mapping) else None


def _calls(values: Sequence[Any]) -> list[Call] | None:
    calls = [_call(value) for value in values]
    return [call for call in calls if call is not None] if calls and None not in calls else None


def json_calls(text: str) -> list[Call] | None:
    """One object, a list of them, or several with ";" between them, as Llama 3 writes them."""
    text, values, decoder = text.strip(), [], json.JSONDecoder()
    while text:
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return None
        values += value if isinstance(value, list) else [value]
        text = text[end:].lstrip().removeprefix(";").lstrip()
    return _calls(values)


def _mistral(text: str) -> list[Call] | None:
    """[{"name": ..., "arguments": ...}], or name[ARGS]{...} since Mistral's tokenizer v11, one mark before each."""
    if (calls := json_calls(text)) is not None:
        return calls
    found = []
    for part in text.split("[TOOL_CALLS]"):
        name, mark, arguments = part.partition("[ARGS]")
        value = _object(arguments)
        if not mark or value is None:
            return None
        found.append(Call(re.sub(r"\[CALL_ID\].*", "", name, flags=re.S).strip(), _dumped(value)))
    return found


def _deepseek(text: str) -> list[Call] | None:
    """V3 and R1 fence the arguments and say the type first, V3.1 does neither."""
    found = []
    for body in re.findall(r"<｜tool▁call▁begin｜>(.*?)<｜tool▁call▁end｜>", text, re.S):
        before, _, after = body.partition("<｜tool▁sep｜>")
        fenced = re.fullmatch(r"([^\n]+)\n```json\n(.*?)\n?```\s*", after, re.S)
        name, arguments = (fenced[1], fenced[2]) if fenced else (before, after)
        value = _object(arguments)
        if value is None or not name.strip():
            return None
        found.append(Call(name.strip(), _dumped(value)))
    return found or None


def _hermes(tools: Sequence[Mapping[str, Any]]) -> Parse:
    """JSON between the marks, or Qwen 3 Coder's <function=name><parameter=key>value</parameter></function>."""
    types = {tool["name"]: {key: (of or {}).get("type") for key, of in ((tool.get("parameters") or {}).get("properties") or {}).items()
                            if isinstance(of, Mapping)} for tool in tools}

    def parse(text: str) -> list[Call] | None:
        found = re.fullmatch(r"\s*<function=([^>\s]+)>(.*?)</function>\s*", text, re.S)
        if found is None:
            return json_calls(text)
        pairs = re.findall(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", found[2], re.S)
        return [Call(found[1], _dumped({key: _typed(value, types.get(found[1], {}).get(key)) for key, value in pairs}))]
    return parse


def _typed(text: str, kind: Any) -> Any:
    """A parameter that is no text by its schema, as JSON where it is some."""
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# Each: the marks that tell a template which writes calls so, the special tokens to show, and its reader.
FORMATS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[Sequence[Mapping[str, Any]]], AnyReader]]] = {
    "harmony": (("<|channel|>", "<|message|>"), Harmony.MARKS, lambda tools: Harmony()),
    "hermes": (("<tool_call>",), ("<tool_call>", "</tool_call>"), lambda tools: Reader(["<tool_call>"], "</tool_call>", _hermes(tools))),
    "mistral": (("[TOOL_CALLS]",), ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), lambda tools: Reader(["[TOOL_CALLS]"], None, _mistral)),
    "deepseek": (("<｜tool▁calls▁begin｜>",),
                 ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
                 lambda tools: Reader(["<｜tool▁calls▁begin｜>"], "<｜tool▁calls▁end｜>", _deepseek)),
    "llama3": (("<|python_tag|>", "Environment: ipython"), ("<|python_tag|>",), lambda tools: Reader(["<|python_tag|>", "{"], None, json_calls)),
    "json": ((), (), lambda tools: Reader(["{", "["], None, json_calls)),
}


def detect(template: str) -> str:
    """How a model of this chat template writes calls; plain JSON where no mark says otherwise."""
    return next((name for name, (marks, _, _) in FORMATS.items() if marks and any(mark in template for mark in marks)), "json")


def marks(name: str) -> tuple[str, ...]:
    return FORMATS[name][1]


def reader(name: str, tools: Sequence[Mapping[str, Any]], strict: Collection[str] = (), *, parallel: bool = True) -> AnyReader:
    """tools: {"name", "parameters"} each. What serve/held.py promises is held here too: what breaks it is text.

    For where a mark is a token, a model may still spell it out in plain text, which no grammar notices, and then write what it likes.
    """
    made = FORMATS[name][2](tools)
    schemas = {tool["name"]: Schema(arguments_of(tool), "tools") for tool in tools if tool["name"] in strict}
    n = 0

    def allows(calls: Sequence[Call]) -> bool:
        nonlocal n
        right = (parallel or n + len(calls) == 1) and not any(call.name in schemas and against(call.arguments, schemas[call.name]) for call in calls)
        n += len(calls) if right else 0
        return right
    made.allows = allows
    return made


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a tool does not name it cannot take, so none are written unless its schema says that others may be."""
    if "properties" not in schema:
        return dict(schema)
    return {"type": "object", **schema, **({} if "additionalProperties" in schema else {"additionalProperties": False})}


def arguments_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    return _closed(tool.get("parameters") or {"type": "object"})
