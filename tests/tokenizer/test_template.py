"""Chat templates: the text that transformers renders, errors instead of guesses, and messages that cannot speak as the template."""
from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from pellucid.errors import BadRequest, BadTemplate
from pellucid.tokenizer import Tokenizer, load_tokenizer
from pellucid.tokenizer.template import ChatTemplate, chat_ids, choose, example
from tests.tokenizer import templates, texts
from tests.tokenizer.test_library import llama3
from tests.tokenizer.test_sentencepiece import OPTIONS, train

NAMES = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
USER, ASSISTANT, SYSTEM = ({"role": role, "content": text} for role, text in
                           (("user", " What's <b> \"2 & 3\"?\n"), ("assistant", "\n<think>\nhm\n</think>\n\nFive é."), ("system", "Be brief.")))
TOOL = {"type": "function", "function": {"name": "weather", "description": "It's <the> weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string", "description": "Where: Zürich & co"}, "days": {"type": "integer", "nullable": True}}, "required": ["city"]}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "abc123def", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}]}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abc123def", "content": '{"c": 21.5}'}
THOUGHT = {"role": "assistant", "content": "Sun.", "reasoning": "It is 21."}

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one": {"messages": [USER]},
    "turns": {"messages": [USER, ASSISTANT, USER]},
    "system": {"messages": [SYSTEM, USER, ASSISTANT, USER]},
    "ends with assistant": {"messages": [SYSTEM, USER, ASSISTANT], "add_generation_prompt": False},
    "tools": {"messages": [SYSTEM, USER, CALL, RESULT, THOUGHT, USER], "tools": [TOOL, TOOL]},
    "thinking off": {"messages": [USER, THOUGHT], "enable_thinking": False, "thinking": True, "reasoning_effort": "high"},
    "documents": {"messages": [USER], "documents": [{"title": "One", "text": "x"}, {"title": "Two", "text": "ü"}], "date_string": "1 May"},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "?"}]}]},
    "unknown role": {"messages": [USER, {"role": "critic", "content": "no"}]},
}


def theirs(source: str, *, add_generation_prompt: bool = True, messages: list[dict[str, Any]], **how: Any) -> str:
    [text], _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=add_generation_prompt, **NAMES, **how)
    return str(text)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("style", templates.ALL)
def test_text_is_that_of_transformers_and_refusals_too(style: str, conversation: str) -> None:
    template, how = ChatTemplate(templates.ALL[style], special_tokens=NAMES), CONVERSATIONS[conversation]
    read = {name: value for name, value in how.items() if name in {"messages", "add_generation_prompt"} | template.reads}
    try:
        expected, refusal = theirs(template.source, **how), None
    except Exception as error:
        expected, refusal = None, error
    if refusal is None:
        assert template.render(**read) == expected
    else:
        with pytest.raises(BadTemplate, match=re.escape(str(refusal))):
            template.render(**read)
    for unread in how.keys() - read.keys():  # had it any effect, the text above would not be theirs
        with pytest.raises(BadRequest, match=f"never reads '{unread}', so the model would not see it"):
            template.render(how["messages"], **{unread: how[unread]})


def test_most_styles_take_most_conversations() -> None:
    """Guards the test above: were everything refused, it would prove nothing."""
    taken = 0
    for source in templates.ALL.values():
        for how in CONVERSATIONS.values():
            try:
                theirs(source, **how)
                taken += 1
            except Exception:
                continue
    assert taken > 70


@pytest.mark.parametrize("conversation", ["turns", "system", "ends with assistant"])
def test_spans_of_generation_blocks_are_those_of_transformers(conversation: str) -> None:
    how = CONVERSATIONS[conversation]
    template = ChatTemplate(templates.GENERATION, special_tokens=NAMES)
    [text], [spans] = render_jinja_template([how["messages"]], chat_template=template.source, return_assistant_tokens_mask=True,
                                            add_generation_prompt=how.get("add_generation_prompt", True), **NAMES)
    ours = template.render_with_spans(**{"add_generation_prompt": True, **how})
    assert ours == (text, spans)
    assert [text[a:b] for a, b in spans] == [m["content"] + "<|im_end|>" for m in how["messages"] if m["role"] == "assistant"]


def test_spans_are_right_where_text_is_built_before_it_is_written() -> None:
    """Inside a macro and a set block nothing is written yet, so counting what was written is not enough."""
    source = ("{% macro say(m) %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
              "{% else %}{{ m.content }}{% endif %}{% endmacro %}"
              "{% set all %}{% for m in messages %}[{{ say(m) }}]{% endfor %}{% endset %}{{ 'start ' ~ all }}")
    messages = [{"role": role, "content": content} for role, content in (("user", "q"), ("assistant", "one"), ("user", "q"), ("assistant", "two"))]
    text, spans = ChatTemplate(source).render_with_spans(messages)
    assert text == "start [q][one][q][two]"
    assert [text[a:b] for a, b in spans] == ["one", "two"]


def test_a_name_set_inside_a_generation_block_does_not_leave_it() -> None:
    source = "{% set x = 'out' %}{% generation %}{% set x = 'in' %}{{ x }}{% endgeneration %}{{ x }}"
    assert ChatTemplate(source).render([USER]) == theirs(source, messages=[USER]) == "inout"


@pytest.mark.parametrize("source", [
    "{{ {'a<b': 'é', 'z': [1, none, true]} | tojson }}", "{{ messages | tojson(indent=2) }}", "{{ messages | tojson(ensure_ascii=True, sort_keys=True) }}",
    "{{ [1, 2] | tojson(separators=(',', ':')) }}", "{{ messages[0].nope }}|{{ nope }}|{{ nope is defined }}", "{{ strftime_now('%Y') }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "  {% if true %}\n  a\n  {% endif %}\nb\n\n", "{{ tools }}{{ documents }}{{ add_generation_prompt }}", "{{ bos_token }}{{ pad_token }}",
    "{{ dict(a=1) }}{{ messages | map(attribute='role') | list }}", "{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}",
    "{{ 'a-b'.split('-') }}{{ ' x '.strip() }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
])
def test_functions_and_filters_are_those_of_transformers(source: str) -> None:
    assert ChatTemplate(source, special_tokens=NAMES).render([USER, ASSISTANT]) == theirs(source, messages=[USER, ASSISTANT])


def test_strftime_now_is_the_local_time() -> None:
    before, text, after = datetime.now(), ChatTemplate("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}").render([USER]), datetime.now()
    assert before <= datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f") <= after


@pytest.mark.parametrize("source", [
    "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].update({'a': 1}) }}", "{{ raise_exception.__globals__ }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "{{ namespace(__init__=1) }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}", "{{ '%s' | format(()).__class__ }}", "{{ ('{0.__class__}' | attr('format'))(1) }}", "{{ ''.join.__self__ }}",
    "{{ range(10**9) | list }}", "{{ lipsum() }}",
])
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(BadTemplate, match=r"--chat-template FILE\|NAME"):
        ChatTemplate(source).render([USER])


def test_an_attempt_to_leave_is_called_one() -> None:
    with pytest.raises(BadTemplate, match=r"chat template 'evil' tried to leave its sandbox: .*Do not trust this file"):
        ChatTemplate("{{ messages.__class__.__bases__[0].__subclasses__() }}", name="evil").render([USER])


def test_messages_are_left_as_they_were() -> None:
    messages = [{"role": "user", "content": "a", "reasoning": "r"}]
    ChatTemplate("{% set m = messages[0] %}{{ m.reasoning_content }}").render(messages)
    assert messages == [{"role": "user", "content": "a", "reasoning": "r"}]


@pytest.mark.parametrize(("source", "message"), [
    ("{% if %}", r"does not compile, line 1: Expected an expression"),
    ("a\n{{ b | nofilter }}", r"does not compile, line 2: No filter named 'nofilter'"),
    ("{% generation %}x", r"does not compile, line 1: "),
    ("{{ raise_exception('Only two turns') }}", r"refuses this conversation: Only two turns. Change the messages"),
    ("{{ messages[0].nope.deeper }}", r"refuses this conversation: 'dict object' has no attribute 'nope'"),
    ("{{ 'a' + 1 }}", r"does not render: TypeError: "),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"does not render: RecursionError"),
    ("{{ 1 / 0 }}", r"does not render: ZeroDivisionError"),
])
def test_a_template_that_does_not_render_says_why(source: str, message: str) -> None:
    with pytest.raises(BadTemplate, match=message):
        ChatTemplate(source).render([USER])


def test_nesting_that_breaks_the_compiler_is_an_error_of_the_template() -> None:
    with pytest.raises(BadTemplate, match="does not compile"):
        ChatTemplate("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


@pytest.mark.parametrize(("how", "field", "message"), [
    ({"messages": []}, "messages", r"messages is \[\]; expected a list of at least one"),
    ({"messages": "hi"}, "messages", "messages is 'hi'; expected a list"),
    ({"messages": [{"content": "x"}]}, "messages", r"messages\[0\] is .*; expected an object with a role"),
    ({"messages": [USER], "tools": {"a": 1}}, "tools", "tools is .*; expected a list of objects"),
    ({"messages": [USER], "documents": ["x"]}, "documents", "documents is .*; expected a list of objects"),
    ({"messages": [{"role": "user", "content": object()}]}, "messages", r"messages\[0\]\.content holds object; a template takes"),
    ({"messages": [USER], "_generation_begins": "x"}, "template_args", "'_generation_begins' is no name for a template argument"),
])
def test_messages_that_are_none_are_a_bad_request(how: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        ChatTemplate("x").render(**how)
    assert caught.value.field == field


@pytest.mark.parametrize(("how", "field", "message"), [
    ({"tools": [TOOL]}, "tools", "'chatml' never reads 'tools', so the model would not see it. Beside the messages it reads enable_thinking, mood. "
                                 "Leave 'tools' out, or pass another template: --chat-template FILE|NAME"),
    ({"documents": [{"t": "x"}]}, "documents", "never reads 'documents'"),
    ({"enable_thinkng": False}, "template_args", "never reads 'enable_thinkng', so the model would not see it. Did you mean enable_thinking? Beside"),
    ({"own": 1}, "template_args", "never reads 'own'"),
])
def test_what_a_template_never_reads_is_a_bad_request(how: dict[str, Any], field: str, message: str) -> None:
    source = "{% set own = 2 %}{{ own }}{% if not mood is defined %}{% set mood = 1 %}{% endif %}{% macro m(tools) %}{{ tools }}{% endmacro %}" \
             "{{ m(3) }}{{ mood }}{{ bos_token }}{{ enable_thinking }}{{ messages[0].documents }}{% if add_generation_prompt %}!{% endif %}"
    template = ChatTemplate(source, name="chatml")
    assert template.render([USER], mood=5, enable_thinking=6, tools=[], documents=None) == "2356!"
    with pytest.raises(BadRequest) as caught:
        template.render([USER], **how)
    assert message in str(caught.value)
    assert caught.value.field == field


def test_a_text_that_holds_every_mark_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="every sign of the Phaistos Disc"):
        ChatTemplate(templates.GENERATION).render_with_spans([{"role": "user", "content": "".join(map(chr, range(0x101D0, 0x101FD)))}])


def test_spans_need_a_generation_block() -> None:
    with pytest.raises(BadTemplate, match=r"has no \{% generation %\} block"):
        ChatTemplate(templates.CHATML).render_with_spans([USER])


def test_the_hash_is_that_of_the_source() -> None:
    assert ChatTemplate("é").sha256 == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"  # printf é | sha256sum


# Templates of a model: where they are found, which is used, and the ids that come out.

@pytest.fixture(scope="module")
def library() -> Library:
    return llama3()


def folder_with(tmp_path: Path, library: Library, **config: Any) -> Path:
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|begin|>", "eos_token": "<|end|>"} | config))
    return tmp_path


BOS_CHATML = "{{ bos_token }}" + templates.CHATML


def test_ids_are_those_of_transformers(tmp_path: Path, library: Library) -> None:
    ours = load_tokenizer(folder_with(tmp_path, library, chat_template=BOS_CHATML))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for how in ("one", "turns", "system"):
        messages = CONVERSATIONS[how]["messages"]
        assert chat_ids(ours, messages) == theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.chat_template is not None
    assert ours.encode_rendered(ours.chat_template.render([USER])) == chat_ids(ours, [USER])


@pytest.mark.parametrize("where", ["string", "list", "jinja", "json"])
def test_templates_are_found_where_models_keep_them(tmp_path: Path, library: Library, where: str) -> None:
    source = "{{ bos_token }}" + where
    stated: Any = {"string": source, "list": [{"name": "default", "template": source}, {"name": "rag", "template": "r"}]}.get(where, "other")
    folder = folder_with(tmp_path, library, chat_template=stated)
    if where == "jinja":
        (folder / "chat_template.jinja").write_text(source)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    elif where == "json":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": source}))
    ours = load_tokenizer(folder)
    assert ours.chat_template is not None
    assert ours.chat_template.render([USER]) == "<|begin|>" + where
    assert sorted(ours.chat_templates) == (["default", "rag"] if where in ("list", "jinja") else ["default"])


def test_a_template_is_chosen_by_name_by_file_and_for_tools(tmp_path: Path, library: Library) -> None:
    named = [{"name": "default", "template": "{{ bos_token }}d{% if tools %}{% endif %}"},
             {"name": "tool_use", "template": "{{ bos_token }}t{% if tools %}{% endif %}"}]
    ours = load_tokenizer(folder_with(tmp_path, library, chat_template=named))
    (tmp_path / "mine.jinja").write_text("{{ bos_token }}m{{ eos_token }}")
    (tmp_path / "mine.json").write_text('{"chat_template": "{{ bos_token }}j"}')
    begin, end = ours.bos_id, ours.eos_id
    assert chat_ids(ours, [USER]) == [begin, *ours.encode("d")]
    assert chat_ids(ours, [USER], tools=[TOOL]) == [begin, *ours.encode("t")]
    assert chat_ids(ours, [USER], tools=[TOOL], template="default") == [begin, *ours.encode("d")]
    assert chat_ids(ours, [USER], template=str(tmp_path / "mine.jinja")) == [begin, *ours.encode("m"), end]
    assert chat_ids(ours, [USER], template=ChatTemplate.from_file(tmp_path / "mine.json")) == [begin, *ours.encode("j")]


def test_what_is_missing_is_an_error_that_says_what_to_pass(tmp_path: Path, library: Library) -> None:
    ours = load_tokenizer(folder_with(tmp_path, library))
    assert ours.chat_template is None
    with pytest.raises(BadTemplate, match=r"has no chat template, so its prompt format is not known.*--chat-template FILE\|NAME"):
        chat_ids(ours, [USER])
    with pytest.raises(BadRequest, match=r"no chat template 'nope': neither a file nor a name this model has \(it has none\)"):
        chat_ids(ours, [USER], template="nope")
    ours = load_tokenizer(folder_with(tmp_path, library, chat_template=[{"name": "a", "template": "a"}, {"name": "b", "template": "b"}]))
    with pytest.raises(BadTemplate, match=r"has several chat templates and none is its default: a, b\. Choose one"):
        choose(ours)
    with pytest.raises(BadTemplate, match=r"no chat template in .*nope\.jinja: "):
        ChatTemplate.from_file(tmp_path / "nope.jinja")
    (tmp_path / "x.json").write_text('{"chat_template": 1}')
    with pytest.raises(BadTemplate, match=r"x\.json is not an object with a chat_template that is a text"):
        ChatTemplate.from_file(tmp_path / "x.json")


def test_a_doubled_or_missing_bos_is_an_error(tmp_path: Path, library: Library) -> None:
    ours = load_tokenizer(folder_with(tmp_path, library, chat_template="{{ bos_token }}" + BOS_CHATML))
    with pytest.raises(BadTemplate, match=r"writes the beginning-of-sequence token '<\|begin\|>' twice.*mend the template and pass it"):
        chat_ids(ours, [USER])
    assert ours.adds_bos
    with pytest.raises(BadTemplate, match=r"does not begin with the beginning-of-sequence token '<\|begin\|>'.*Put \{\{ bos_token \}\} first"):
        chat_ids(ours, [USER], template=ChatTemplate(templates.CHATML))


def both_kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    """A tokenizer.json and a SentencePiece model, with ChatML's tokens and one of two words."""
    first, second = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    folder_with(first, llama3(), chat_template=BOS_CHATML)
    (second / "tokenizer.model").write_bytes(train(**OPTIONS["llama"] | {"control_symbols": ["<|im_start|>", "<|im_end|>"]}))
    (second / "chat_template.jinja").write_text(BOS_CHATML)
    return [load_tokenizer(first), load_tokenizer(second)]


_cache: list[Tokenizer] = []
SPELLED = st.lists(st.one_of(st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<", "|", "<|begin|>", "<s>", "</s>", " ", "\n", "hi", "é"]),
                             texts.texts), max_size=6).map("".join)


@settings(max_examples=120, deadline=None)
@given(contents=st.lists(SPELLED, min_size=1, max_size=4))
def test_no_message_can_write_a_special_token(tmp_path_factory: pytest.TempPathFactory, contents: list[str]) -> None:
    """However messages spell them, the special ids are those of the template alone, and the text reads as it was written."""
    if not _cache:
        _cache.extend(both_kinds(tmp_path_factory))
    for ours in _cache:
        ids = chat_ids(ours, [{"role": "user", "content": c} for c in contents])
        turn = [ours.id_of("<|im_start|>"), ours.id_of("<|im_end|>")]
        assert [i for i in ids if i in ours.special_ids] == [ours.bos_id, *turn * len(contents), turn[0]]
        if ours.id_of("<0x00>") is None:  # byte-level: what was written reads back exactly
            assert ours.decode(ids[1:], special=True) == "".join(f"<|im_start|>user\n{c}<|im_end|>\n" for c in contents) + "<|im_start|>assistant\n"


@pytest.mark.parametrize("template", [
    "{{ bos_token }}{% for part in messages[0].content %}{{ part.text }}{% endfor %}",
    "{{ bos_token }}{{ messages[0].content | tojson(ensure_ascii=True) }}{{ tools | tojson }}{{ documents }}{{ extra }}",
    "{{ bos_token }}{{ messages[0].content | map(attribute='text') | join }}",
])
def test_neither_parts_nor_tools_nor_documents_can(tmp_path: Path, library: Library, template: str) -> None:
    ours = load_tokenizer(folder_with(tmp_path, library, chat_template=template))
    parts = [{"type": "text", "text": t} for t in ("<|im_", "end|", ">", "<|im_end|>", "<", "|im_start|>")]
    more: dict[str, Any] = {"tools": [{"<|im_end|>": "<|im_start|>"}], "documents": [{"t": "<|end|>"}]} if "tools" in template else {}
    extra = {"extra": "<|end|>"} if "extra" in template else {}
    ids = chat_ids(ours, [{"role": "user", "content": parts}], **more, template_args=extra)
    assert [i for i in ids if i in ours.special_ids] == [ours.bos_id]
    assert ours.decode(ids) == ours.chat_template.render([{"role": "user", "content": parts}], **more, **extra).removeprefix("<|begin|>")  # type: ignore[union-attr]


def test_a_role_still_builds_the_token_of_its_name(tmp_path: Path, library: Library) -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    ours = load_tokenizer(folder_with(tmp_path, library, chat_template=source))
    assert chat_ids(ours, [{"role": "im_end", "content": "x"}]) == [ours.bos_id, ours.id_of("<|im_end|>"), *ours.encode("x")]


def test_the_example_shows_special_tokens_and_says_when_a_system_message_is_refused(tmp_path: Path, library: Library) -> None:
    ours = load_tokenizer(folder_with(tmp_path, library, chat_template=BOS_CHATML))
    shown = example(ours)
    assert shown.startswith("⟦<|begin|>⟧⟦<|im_start|>⟧system\nYou are a helpful assistant.⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\n")
    assert shown.endswith("And of Spain?⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n")
    ours = load_tokenizer(folder_with(tmp_path, library, chat_template=templates.GEMMA))
    first, rest = example(ours).split("\n", 1)
    assert first.startswith("(without a system message: ")
    assert "System role not supported" in first
    assert rest.startswith("⟦<|begin|>⟧")
    assert "<start_of_turn>model\nParis.<end_of_turn>\n" in rest


def test_the_example_refuses_what_a_chat_refuses(tmp_path: Path, library: Library) -> None:
    ours = load_tokenizer(folder_with(tmp_path, library, chat_template="{{ bos_token }}{{ bos_token }}{{ messages[0].content }}"))
    with pytest.raises(BadTemplate, match=r"writes the beginning-of-sequence token '<\|begin\|>' twice"):
        example(ours)


def test_special_tokens_are_added_without_compiling_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ChatTemplate("{{ bos_token }}|{{ eos_token }}", special_tokens={"eos_token": "E"})
    monkeypatch.setattr("pellucid.tokenizer.template._environment", lambda: pytest.fail("compiled again"))
    told = plain.with_tokens({"bos_token": "B", "eos_token": "other"})
    asked = [{"role": "user", "content": "x"}]
    assert (told.render(asked), plain.render(asked)) == ("B|E", "|E")
