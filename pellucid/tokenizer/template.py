"""Chat templates: messages -> the text a model was trained on. Sandboxed Jinja, and nothing is guessed.

Templates come with checkpoints and are programs; they run in jinja2's immutable sandbox, see plain data only, and an attempt to leave is an
error. The functions and filters are those that transformers gives them, so that a published template renders to the same text.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from pellucid.errors import BadRequest, BadTemplate, did_you_mean, nearest

if TYPE_CHECKING:
    from pellucid.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]
_HINT = "--chat-template FILE|NAME"
# What is marked with one of these is found again after rendering; the one used stands nowhere in the inputs. Signs of the Phaistos Disc,
# since a mark must pass through every filter and through Python's repr (`{{ documents }}`) as it is: printable, caseless, no space.
_MARKS = [chr(c) for c in range(0x101D0, 0x101FD)]


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: what the assistant wrote. The marks are variables, empty unless spans are asked for."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        mark = [nodes.Output([nodes.Name(name, "load")], lineno=line) for name in ("_generation_begins", "_generation_ends")]
        return [mark[0], nodes.Scope(body, lineno=line), mark[1]]


class _Namespace(Namespace):
    """`namespace(...)` without names that begin with an underscore, through which Python's internals could be reached."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}, which begins with an underscore")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
            sort_keys: bool = False) -> str:
    """JSON as it is: jinja2's own filter escapes < > & for HTML, which no model was trained on."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    for mark in _MARKS if ensure_ascii else ():  # marks stay what they are
        text = text.replace(json.dumps(mark)[1:-1], mark)
    return text


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, in which reaching for what is forbidden is an error even where the template does nothing with it."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise jinja2.exceptions.SecurityError(f"access to {attribute!r} of {type(obj).__name__} is forbidden")


def _environment() -> _Sandbox:
    env = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _Namespace}
    del env.globals["lipsum"]  # random text has no place in a prompt
    return env


class ChatTemplate:
    """One template, compiled. Raises BadTemplate with the line where it does not compile.

    special_tokens: what the template may call bos_token, eos_token and so on.
    """

    def __init__(self, source: str, *, name: str = "default", special_tokens: Mapping[str, str] | None = None) -> None:
        self.source, self.name, self.special_tokens = source, name, dict(special_tokens or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise BadTemplate(f"chat template {name!r} does not compile, line {error.lineno}: {str(error.message).rstrip('.')}. Mend it, or pass another: "
                              f"{_HINT}") from None
        except Exception as error:  # a template can make the compiler itself fail, by nesting for instance
            raise BadTemplate(f"chat template {name!r} does not compile: {type(error).__name__}: {error}. Mend it, or pass another: "
                              f"{_HINT}") from None

    @classmethod
    def from_file(cls, path: str | Path, *, special_tokens: Mapping[str, str] | None = None) -> ChatTemplate:
        """A template from a file of Jinja, or from a .json with a `chat_template`. Raises BadTemplate where it cannot be read."""
        path = Path(path)
        try:
            source = path.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise BadTemplate(f"no chat template in {path}: {error}. Expected a text file of Jinja: {_HINT}") from None
        if path.suffix == ".json":
            try:
                stated = json.loads(source)["chat_template"]
            except (ValueError, KeyError, TypeError):
                stated = None
            if not isinstance(stated, str):
                raise BadTemplate(f"{path} is not an object with a chat_template that is a text. Expected one, or a text file of Jinja: "
                                  f"{_HINT}")
            source = stated
        return cls(source, name=str(path), special_tokens=special_tokens)

    def with_tokens(self, special_tokens: Mapping[str, str]) -> ChatTemplate:
        """The same template with these special tokens where it had none. It is not compiled again: that takes longer than a row's rendering and ids."""
        same = copy(self)
        same.special_tokens = {**special_tokens, **self.special_tokens}
        return same

    @cached_property
    def sha256(self) -> str:
        """Of the source, for run records."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @property
    def has_generation(self) -> bool:
        """Whether the template says which text is the assistant's."""
        return re.search(r"\{%-?\+?\s*generation\b", self.source) is not None

    @cached_property
    def reads(self) -> frozenset[str]:
        """The names it looks up among what it is given; not those it sets itself before it reads them."""
        return frozenset(meta.find_undeclared_variables(_environment().parse(self.source)))

    def render(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None,
               documents: Sequence[Mapping[str, Any]] | None = None, add_generation_prompt: bool = True, **extra: Any) -> str:
        """The text of a conversation. `extra` goes to the template as it is (enable_thinking=False, for instance).

        Raises BadTemplate with the template's own message where it refuses, and BadRequest for messages that are none and for
        tools, documents and arguments that it never reads.
        """
        return self._render(self._inputs(messages, tools, documents, extra), add_generation_prompt, "", "")

    def render_with_spans(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None,
                          documents: Sequence[Mapping[str, Any]] | None = None, add_generation_prompt: bool = False,
                          **extra: Any) -> tuple[str, list[tuple[int, int]]]:
        """(text, [(start, end), ...]): the characters inside `{% generation %}` blocks, what a loss is taken of.

        Raises BadTemplate also where the template has no such block.
        """
        if not self.has_generation:
            raise BadTemplate(f"chat template {self.name!r} has no {{% generation %}} block, so it does not say which text is the "
                              f"assistant's. "
                              f"Put the blocks around it and pass the file: {_HINT}")
        inputs = self._inputs(messages, tools, documents, extra)
        begin, end = _free_marks([inputs, self.special_tokens, self.source], 2)
        marked = self._render(inputs, add_generation_prompt, begin, end)
        spans, starts = [], []
        for n, match in enumerate(re.finditer(f"[{begin}{end}]", marked)):
            if match.group() == begin:
                starts.append(match.start() - n)  # n marks stand before it, which go
            elif starts:
                spans.append((starts.pop(), match.start() - n))
        return marked.replace(begin, "").replace(end, ""), sorted(spans)

    def _inputs(self, messages: Sequence[Message], tools: Any, documents: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
        """`_inputs`, held against what this template reads: the model would never see the rest."""
        inputs = _inputs(messages, tools, documents, extra)
        given = [name for name in ("tools", "documents") if inputs[name]] + list(extra)
        if unread := [name for name in given if name not in self.reads]:
            known = sorted(name for name in self.reads - {"messages", "add_generation_prompt"} if not name.startswith("_") and not name.endswith("_token"))
            raise BadRequest(f"chat template {self.name!r} never reads {unread[0]!r}, so the model would not see it.{did_you_mean(nearest(unread[0], known))} "
                             f"Beside the messages it reads {', '.join(known) or 'nothing'}. Leave {unread[0]!r} out, or pass another template: {_HINT}",
                             field=unread[0] if unread[0] in _FILLED_IN else "template_args")
        return inputs

    def _render(self, inputs: Mapping[str, Any], add_generation_prompt: bool, begin: str, end: str) -> str:
        try:
            return self._template.render({**self.special_tokens, **inputs, "add_generation_prompt": add_generation_prompt,
                                          "_generation_begins": begin, "_generation_ends": end})
        except jinja2.exceptions.SecurityError as error:
            raise BadTemplate(f"chat template {self.name!r} tried to leave its sandbox: {error}. Do not trust this file; pass another: "
                              f"{_HINT}") from None
        except jinja2.TemplateError as error:
            raise BadTemplate(f"chat template {self.name!r} refuses this conversation: {error}. Change the messages, or pass another: "
                              f"{_HINT}") from None
        except Exception as error:  # a template is a program: it can fail in every way a program can
            raise BadTemplate(f"chat template {self.name!r} does not render: {type(error).__name__}: {error}. "
                              f"Change the messages, or pass another: {_HINT}") from None


_FILLED_IN = ("messages", "tools", "documents", "add_generation_prompt")


def _inputs(messages: Sequence[Message], tools: Any, documents: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees, as plain data of its own: a template can neither reach an object's methods nor change the caller's lists."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise BadRequest(f"messages is {messages!r:.80}; expected a list of at least one {{\"role\": ..., "
                         f"\"content\": ...}}", field="messages")
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRequest(f"messages[{n}] is {message!r:.80}; expected an object with a role, such as {{\"role\": \"user\", "
                             f"\"content\": ...}}",
                             field="messages")
    for name, value in (("tools", tools), ("documents", documents)):
        if value is not None and (not isinstance(value, Sequence) or not all(isinstance(item, Mapping) for item in value)):
            raise BadRequest(f"{name} is {value!r:.80}; expected a list of objects", field=name)
    if not isinstance(extra, Mapping) or not all(isinstance(key, str) for key in extra):
        raise BadRequest(f"template_args is {extra!r:.80}; expected an object of names and values", field="template_args")
    if reserved := sorted(k for k in extra if k in _FILLED_IN or k.startswith("_")):
        raise BadRequest(f"{reserved[0]!r} is no name for a template argument: {', '.join(_FILLED_IN)} and names that begin with an underscore are filled "
                         f"in for the template", field="template_args")
    plain = [_with_reasoning(message) for message in _plain(messages, "messages")]
    return {"messages": plain, "tools": _plain(tools, "tools"), "documents": _plain(documents, "documents")} | {
        key: _plain(value, key) for key, value in extra.items()}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning stands under the two names that published templates read, whichever of three it came under."""
    found = next((message[key] for key in ("reasoning_content", "thinking", "reasoning") if message.get(key) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def _plain(value: Any, where: str) -> Any:
    """The value out of JSON's types alone. Raises BadRequest for anything else."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):  # subclasses (enums, numpy scalars) as what they stand for
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {_plain(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{n}]") for n, v in enumerate(value)]
    raise BadRequest(f"{where} holds {type(value).__name__}; a template takes texts, numbers, booleans, null, lists and objects",
                     field=re.split(r"[.\[]", where)[0])


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for k, v in value.items():
            yield from _texts(k)
            yield from _texts(v)
    elif isinstance(value, list):
        for v in value:
            yield from _texts(v)


def _free_marks(values: list[Any], n: int) -> list[str]:
    """Characters that stand nowhere in the values."""
    used = set("".join(text for value in values for text in _texts(value)))
    free = [c for c in _MARKS if c not in used]
    if len(free) < n:
        raise BadRequest("the messages hold every sign of the Phaistos Disc (U+101D0 to U+101FC), one of which must be free. Leave one out.",
                         field="messages")
    return free[:n]


def choose(tokenizer: Tokenizer, template: ChatTemplate | str | None = None, *, tools: object = None) -> ChatTemplate:
    """The template to use: the one given, by name or file, else the tokenizer's ("tool_use" with tools, where it has one of that name).

    Raises BadTemplate where there is none, naming those there are, BadRequest for one that is not there.
    """
    named = tokenizer.chat_templates
    if isinstance(template, ChatTemplate):
        return template.with_tokens(tokenizer.special_tokens)
    if isinstance(template, str):
        if template in named:
            return named[template]
        if Path(template).is_file():
            return ChatTemplate.from_file(template, special_tokens=tokenizer.special_tokens)
        raise BadRequest(f"no chat template {template!r}: neither a file nor a name this model has "
                         f"({', '.join(named) or 'it has none'}). Pass one: {_HINT}", field="chat_template")
    if tools and "tool_use" in named:
        return named["tool_use"]
    if (default := tokenizer.chat_template) is not None:
        return default
    if named:
        raise BadTemplate(f"the model {tokenizer.source} has several chat templates and none is its default: {', '.join(named)}. Choose "
                          f"one: {_HINT}")
    raise BadTemplate(f"the model {tokenizer.source} has no chat template, so its prompt format is not known; a base model has none. "
                      f"Complete a plain prompt instead, or pass one: {_HINT}")


def chat_ids(tokenizer: Tokenizer, messages: Sequence[Message], *, template: ChatTemplate | str | None = None,
             tools: Sequence[Mapping[str, Any]] | None = None, documents: Sequence[Mapping[str, Any]] | None = None,
             add_generation_prompt: bool = True, template_args: Mapping[str, Any] | None = None) -> list[int]:
    """The ids of a conversation. Special tokens come from the template alone: one that is spelled in a message stays text.

    template_args reach the template by name. Raises BadTemplate where there is no template, where it does not render, where BOS stands
    twice at the beginning, and where the tokenizer wants BOS and the template writes none.
    """
    chosen = choose(tokenizer, template, tools=tools)
    inputs = chosen._inputs(messages, tools, documents, {} if template_args is None else template_args)
    [mark] = _free_marks([inputs, chosen.special_tokens, chosen.source], 1)
    rendered = chosen._render(_defused(inputs, tokenizer, mark), add_generation_prompt, "", "")
    plain = rendered.replace(mark, "")
    parts = [p if isinstance(p, int) else p.replace(mark, "") for p in tokenizer.split_special(rendered)]
    # Encoding part by part needs a second copy of the vocabulary, so only where a message really spells a special token.
    harmless = [p for p in parts if p != ""] == tokenizer.split_special(plain)
    ids = tokenizer.encode_rendered(plain) if harmless else tokenizer.encode_mixed(parts)
    return _with_one_bos(tokenizer, ids, chosen)


def _defused(value: Any, tokenizer: Tokenizer, mark: str, key: str = "") -> Any:
    """The inputs with a mark inside everything that reads as a special token, or could once texts are put side by side.

    A text that ends in the beginning of a token gets the mark there: two parts of a message may stand next to each other. Not so the words
    that templates compare and build tokens of (`'<|' + role + '|>'`).
    """
    if isinstance(value, str):
        value = tokenizer.special_pattern.sub(lambda m: m.group()[0] + mark + m.group()[1:], value)
        ends_open = key not in ("role", "type") and any(value.endswith(start) for start in tokenizer.special_beginnings(value[-1:]))
        return value + mark if ends_open else value
    if isinstance(value, dict):
        return {_defused(k, tokenizer, mark, "role"): _defused(v, tokenizer, mark, k if isinstance(k, str) else "") for k, v in value.items()}
    if isinstance(value, list):
        return [_defused(v, tokenizer, mark, key) for v in value]
    return value


def _with_one_bos(tokenizer: Tokenizer, ids: list[int], template: ChatTemplate) -> list[int]:
    bos = tokenizer.bos_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise BadTemplate(f"chat template {template.name!r} writes the beginning-of-sequence token {tokenizer.token_of(bos)!r} twice. "
                          f"Models answer worse to that; mend the template and pass it: {_HINT}")
    if bos is not None and tokenizer.adds_bos and ids[:1] != [bos]:
        raise BadTemplate(f"chat template {template.name!r} does not begin with the beginning-of-sequence token "
                          f"{tokenizer.token_of(bos)!r}, with which this "
                          f"model's texts begin. Put {{{{ bos_token }}}} first and pass the template: {_HINT}")
    return ids


_EXAMPLE: list[Message] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Spain?"},
]


def example(tokenizer: Tokenizer, template: ChatTemplate | str | None = None) -> str:
    """A conversation as the model sees it, special tokens between ⟦ and ⟧, up to where the assistant is to write.

    Where the template refuses a system message, the first line says so and the conversation has none. Raises BadTemplate as `chat_ids`
    does.
    """
    chosen, note = choose(tokenizer, template), ""
    try:
        text = chosen.render(_EXAMPLE)
    except BadTemplate as refusal:
        text = chosen.render(_EXAMPLE[1:])
        note = f"(without a system message: {refusal})\n"
    _with_one_bos(tokenizer, tokenizer.encode_rendered(text), chosen)
    return note + "".join(p if isinstance(p, str) else f"⟦{tokenizer.token_of(p)}⟧" for p in tokenizer.split_special(text))
