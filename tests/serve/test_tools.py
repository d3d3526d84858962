"""Tool calls are read the same however the text is cut; what cannot be read stays text."""
from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.engine.grammar import Compiled, Vocabulary, compile_grammar
from pellucid.errors import BadRequest, ConstraintFailed
from pellucid.serve.held import forced_schema, held
from pellucid.serve.tools import FORMATS, Call, Part, detect, reader

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


def heard(name: str, pieces: list[str], strict: Collection[str] = (), *, parallel: bool = True) -> tuple[str, str, list[Call]]:
    """(text, thinking, calls) of a text that comes in pieces. strict: of STRICT_TOOLS."""
    one = reader(name, STRICT_TOOLS if strict else TOOLS, strict, parallel=parallel)
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


# What holds calls while the model chooses whether it calls

STRICT = {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}}, "required": ["city"], "additionalProperties": False}
STRICT_TOOLS = [{"name": "weather", "parameters": STRICT}, {"name": "time", "parameters": {"type": "object"}}]
NAMED, ROME = '{"name": "weather", "arguments": %s}', '{"city":"Rome"}'
WAYS = {  # how a format is written, told by its template -> (format, calls as `held` lets them be written)
    "<tool_call>": ("hermes", [f"Well. <tool_call>\n{NAMED}\n</tool_call>", f"<tool_call>\n{NAMED}\n</tool_call>\n<tool_call>\n{NAMED}\n</tool_call>."]),
    "[TOOL_CALLS]": ("mistral", [f"[TOOL_CALLS][{NAMED}]", f"Well. [TOOL_CALLS] [{NAMED}, {NAMED}]"]),
    "[TOOL_CALLS][ARGS]": ("mistral", ["Well.[TOOL_CALLS]weather[ARGS]%s", "[TOOL_CALLS]weather[ARGS]%s[TOOL_CALLS]weather[ARGS]%s"]),
    "[TOOL_CALLS][CALL_ID][ARGS]": ("mistral", ["[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]%s"]),
    "<｜tool▁calls▁begin｜>": ("deepseek", ["<｜tool▁calls▁begin｜>" + 2 * "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>%s<｜tool▁call▁end｜>"
                                           + "<｜tool▁calls▁end｜>"]),
    "<｜tool▁calls▁begin｜>```json": ("deepseek", ["Well.<｜tool▁calls▁begin｜>" + "\n".join(
        2 * ["<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n%s\n```<｜tool▁call▁end｜>"]) + "<｜tool▁calls▁end｜>"]),
    "Environment: ipython": ("llama3", ["; ".join(2 * ['{"name": "weather", "parameters": %s}'])]),
    "": ("json", [NAMED, f"{NAMED}; {NAMED}"]),
    "<|channel|><|message|>": ("harmony", ["<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
                                           "<|constrain|>json<|message|>%s"]),
}
MARKS = sorted({mark for _, shown, _ in FORMATS.values() for mark in shown})
TOKENS = [*(bytes([i]) for i in range(256)), *(mark.encode() for mark in MARKS), b"<eos>"]


def vocabulary(*, special: bool) -> Vocabulary:
    """Bytes, the marks of all formats, which plain text never becomes where they are special, and an end."""
    return Vocabulary(TOKENS, range(256, len(TOKENS)) if special else (), (len(TOKENS) - 1,))


def ids_of(text: str, *, special: bool) -> list[int]:
    parts = re.split(f"({'|'.join(map(re.escape, MARKS))})", text) if special else [text]
    return [i for part in parts for i in ([256 + MARKS.index(part)] if part in MARKS else part.encode())]


def holding(template: str, *, special: bool, parallel: bool = True) -> Compiled:
    source = held(WAYS[template][0], STRICT_TOOLS, {"weather"}, template, lambda mark: 256 + MARKS.index(mark) if special else mark, parallel=parallel)
    return compile_grammar("tags", source, vocabulary(special=special))


def stops(compiled: Compiled, ids: list[int]) -> int | None:
    """The first of these ids that the grammar refuses, as its number; len(ids) where they are no whole output."""
    constraint = compiled.start()
    for i, each in enumerate(ids):
        try:
            constraint.advance(each)
        except ConstraintFailed:
            return i
    return None if constraint.can_end else len(ids)


@pytest.mark.parametrize("special", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("template", WAYS)
def test_a_strict_tool_is_called_with_arguments_of_its_schema_in_every_format(template: str, special: bool) -> None:
    name, texts = WAYS[template]
    assert detect(template) == name
    if name == "harmony" and not special:
        with pytest.raises(BadRequest, match=r"tool 'weather' is strict, and calls as this model writes them \(harmony\) are not held"):
            holding(template, special=special)
        return
    compiled = holding(template, special=special)
    told = "<|channel|>final<|message|>No call" if name == "harmony" else "No call"
    assert stops(compiled, ids_of(told, special=special)) is None
    for text in texts:
        right = text.replace("%s", ROME)
        assert stops(compiled, ids_of(right, special=special)) is None, right
        assert heard(name, [right], strict={"weather"})[2] == [Call("weather", '{"city": "Rome"}')] * text.count("%s")
        before = text.split("%s")[0]
        at = stops(compiled, ids_of(before + '{"city":"Oslo"}', special=special))
        assert at == len(ids_of(before + '{"city":"', special=special))
        assert stops(compiled, ids_of(before + ROME[:-1], special=special)) is not None  # cut


@pytest.mark.parametrize("template", WAYS)
def test_one_call_is_one_where_more_are_not_wanted(template: str) -> None:
    name, texts = WAYS[template]
    compiled = holding(template, special=True, parallel=False)
    for text in texts:
        told = stops(compiled, ids_of(text.replace("%s", ROME), special=True))
        assert (told is None) == (text.count("%s") == 1 and text.endswith(("%s", "}", ">", "]")))
        assert len(heard(name, [text.replace("%s", ROME)], parallel=False)[2]) <= 1


ANSWER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("template", WAYS)
def test_beside_an_answer_of_a_schema_there_are_calls_and_no_other_text(template: str, parallel: bool) -> None:
    name, texts = WAYS[template]

    def spell(mark: str) -> int:
        return 256 + MARKS.index(mark)
    if name in ("llama3", "json"):
        with pytest.raises(BadRequest, match=rf"this model writes them \({name}\) are JSON as the answer is, so that nothing tells them apart"):
            held(name, STRICT_TOOLS, (), template, spell, parallel=parallel, answer=ANSWER)
        return
    compiled = compile_grammar("tags", held(name, STRICT_TOOLS, {"weather"}, template, spell, parallel=parallel, answer=ANSWER), vocabulary(special=True))
    final = "<|channel|>final<|message|>" if name == "harmony" else ""
    for text, fits in (('{"n": 3}', True), ('{"m": 3}', False), ("No call", False), ("", False)):
        assert (stops(compiled, ids_of(final + text, special=True)) is None) == fits
    for text in texts:
        call = text.replace("Well. ", "").replace("Well.", "").rstrip(".")
        assert (stops(compiled, ids_of(call.replace("%s", ROME), special=True)) is None) == (parallel or call.count("%s") == 1)
        assert stops(compiled, ids_of(call.replace("%s", '{"city":"Oslo"}'), special=True)) is not None
        assert stops(compiled, ids_of(call.replace("%s", ROME) + '{"n": 3}', special=True)) is not None


@pytest.mark.parametrize("template", WAYS)
def test_whatever_is_drawn_its_calls_follow_their_schemas(template: str) -> None:
    name, texts = WAYS[template]
    compiled, tokens = holding(template, special=True), [token.decode("latin-1") if i < 256 else token.decode() for i, token in enumerate(TOKENS)]
    draw, called = random.Random(0), 0
    pieces = [ids_of(piece, special=True) for text in texts for piece in (text.split("%s")[0], ROME, '{"city":"Oslo"}', text.split("%s")[-1])]
    for _ in range(60):
        constraint, ids = compiled.start(), []
        for _ in range(draw.randrange(1, 8)):  # what such a model likes to write, as far as it may, and then anything that may come
            for each in [*draw.choice(pieces), *(draw.choice(b'{}",: \naRome<|') for _ in range(draw.randrange(3)))]:
                with contextlib.suppress(ConstraintFailed):
                    constraint.advance(each)
                    ids.append(each)
        text = "".join(tokens[i] for i in ids)
        for call in heard(name, [text])[2]:  # by the grammar alone
            called += 1
            assert call.name != "weather" or json.loads(call.arguments)["city"] in ("Bern", "Rome")
    assert called


def test_a_mark_spelled_out_opens_no_call_of_a_strict_tool() -> None:
    spelled = f'<tool_call>{NAMED % json.dumps({"city": "Oslo"})}</tool_call>'
    assert stops(holding("<tool_call>", special=True), list(spelled.encode())) is None  # for the grammar it is text
    for name, text in (("hermes", spelled), ("harmony", '<|channel|>commentary to=functions.weather<|message|>{"city": "Oslo"}')):
        text_of = heard(name, list(text), strict={"weather"})
        assert text_of[2] == []
        assert "Oslo" in text_of[0]
