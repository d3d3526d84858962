"""Tool calls are read the same however the text is cut; what cannot be read stays text."""
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.errors import BadRequest
from pellucid.serve.tools import FORMATS, Call, Part, detect, forced_schema, reader

TOOLS = [{"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}]
CALL = Call("weather", '{"city": "Zürich", "days": 3}')
OBJECT = '{"name": "weather", "arguments": {"city": "Zürich", "days": 3}}'
WRITTEN = {  # format -> (text, thinking, calls, text that is left)
    "hermes": (f"Let me see.\n<tool_call>\n{OBJECT}\n</tool_call>\n<tool_call>\n{OBJECT}\n</tool_call>", "", [CALL, CALL], "Let me see."),
    "mistral": (f'[TOOL_CALLS][{OBJECT}, {OBJECT}]', "", [CALL, CALL], ""),
    "deepseek": ('Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Zürich", "days": 3}\n```<｜tool▁call▁end｜>'
                 "<｜tool▁calls▁end｜>", "", [CALL], "Well."),
    "llama3": ('{"name": "weather", "parameters": {"city": "Zürich", "days": 3}}; {"name": "weather", "parameters": {"city": "Zürich", "days": 3}}', "",
               [CALL, CALL], ""),
    "json": (f" {OBJECT} ", "", [CALL], ""),
    "harmony": ('<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>'
                '{"city": "Zürich", "days": 3}<|call|>', "Hm.", [CALL], ""),
}
OTHERS = {
    "hermes": ("<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>", [CALL]),
    "mistral": ('[TOOL_CALLS]weather[ARGS]{"city": "Zürich", "days": 3}[TOOL_CALLS]weather[ARGS]{"city": "Zürich", "days": 3}', [CALL, CALL]),
    "deepseek": ('<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Zürich", "days": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
                 [CALL]),
    "llama3": (f"<|python_tag|>{OBJECT}", [CALL]),
    "json": (f"[{OBJECT}]", [CALL]),
}


def heard(name: str, pieces: list[str]) -> tuple[str, str, list[Call]]:
    """(text, thinking, calls) of a text that comes in pieces."""
    one = reader(name, TOOLS)
    parts: list[Part] = [part for piece in pieces for part in one.push(piece)] + one.finish()
    told = {kind: "".join(part[1] for part in parts if isinstance(part, tuple) and part[0] == kind) for kind in ("text", "thinking")}
    return told["text"], told["thinking"], [part for part in parts if isinstance(part, Call)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read(name: str) -> None:
    text, thinking, calls, left = WRITTEN[name]
    assert heard(name, [text]) == (left, thinking, calls)


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_way_of_a_format_is_read_too(name: str) -> None:
    text, calls = OTHERS[name]
    assert heard(name, [text])[2] == calls


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_how_a_text_is_cut_changes_nothing(name: str, data: st.DataObject) -> None:
    marks = [*FORMATS[name][0], *FORMATS[name][1], "</tool_call>", OBJECT, WRITTEN[name][0], OTHERS.get(name, ("",))[0]]
    text = "".join(data.draw(st.lists(st.one_of(st.sampled_from(marks), st.text(alphabet='{}[]<>"|:, \nanméto_cl', max_size=6)), max_size=6)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert heard(name, pieces) == heard(name, [text]) == heard(name, list(text))


@pytest.mark.parametrize("name", ["hermes", "deepseek", "mistral", "llama3", "json"])
def test_what_is_no_call_stays_text(name: str) -> None:
    opening = {"hermes": "<tool_call>", "deepseek": "<｜tool▁calls▁begin｜>", "mistral": "[TOOL_CALLS]", "llama3": "<|python_tag|>", "json": "{"}[name]
    for text in (f"{opening} no JSON", f"{opening}{{}}", f"{opening}"):
        assert heard(name, list(text)) == (text, "", [])


def test_arguments_that_are_text_themselves_are_read() -> None:
    text = json.dumps({"name": "weather", "arguments": '{"city": "Zürich", "days": 3}'})
    assert heard("hermes", [f"<tool_call>{text}</tool_call>"])[2] == [CALL]


def test_a_final_channel_is_the_answer_and_analysis_is_thinking() -> None:
    assert heard("harmony", list("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.")) == ("Yes.", "Hm.", [])


@pytest.mark.parametrize(("template", "name"), [
    ("<tool_call>{{ x }}", "hermes"), ("[TOOL_CALLS]", "mistral"), ("<｜tool▁calls▁begin｜>", "deepseek"), ("Environment: ipython", "llama3"),
    ("<|start|>assistant<|channel|>", "harmony"), ("{{ messages }}", "json")])
def test_a_template_tells_the_format(template: str, name: str) -> None:
    assert detect(template) == name


def test_a_forced_call_is_one_of_the_tools_with_its_own_arguments() -> None:
    schema = forced_schema([*TOOLS, {"name": "time"}], parallel=False)
    assert schema["maxItems"] == 1
    assert schema["items"]["anyOf"][0]["properties"]["arguments"] == {**TOOLS[0]["parameters"], "additionalProperties": False}
    with pytest.raises(BadRequest, match="there are no tools"):
        forced_schema([], parallel=True)
