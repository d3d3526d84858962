"""What a grammar is made from: schemas, regular expressions, choices, Lark and GBNF, checked and written as Lark, which llguidance reads.

llguidance's Lark: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pellucid.engine.regex import Regex, read_regex
from pellucid.engine.request import check_names
from pellucid.engine.schema import Schema
from pellucid.errors import BadRequest

TAIL = '\n%llguidance {"no_forcing": true}\n'  # the model chooses how to cut forced text into tokens, so no tokenizer is called while masks are made
# White space in JSON: one space, or a new line and its indentation. llguidance's own default has no bound, and a model may never leave it.
SPACING = {"x-guidance": {"whitespace_pattern": r"\x20|\n[\x20\t]{0,40}"}}
COMPACT = {"x-guidance": {"whitespace_flexible": False}}  # none at all: what a machine reads
MAX_RULES = 1000  # of a grammar in Lark or GBNF: from about 2,500 in a chain llguidance runs out of stack and takes the process along
MAX_CHARACTERS = 1_000_000
KINDS = ("schema", "compact", "json", "regex", "choice", "lark", "gbnf", "tags")


@dataclass(frozen=True, slots=True)
class Source:
    """kind, and what messages call it. lark: what llguidance compiles. The rest by kind: what the finished text is held against."""

    kind: str
    name: str
    lark: str
    schema: Schema | None = None
    regex: Regex | None = None
    choices: tuple[str, ...] = field(default=())

    def refused(self, reason: str, retry: Callable[[str], str]) -> BadRequest:
        """The error for what llguidance will not compile. retry(lark): the reason it gives for another source, empty where it takes it."""
        if self.schema is not None:
            return self._refused_at(*_deepest(self.schema, "#", reason, retry))
        return self._refused_at("", reason)

    def hidden(self, retry: Callable[[str], str]) -> BadRequest | None:
        """The error for a part that nothing can meet, where the whole goes on without it: an optional property, one of several alternatives."""
        if (schema := self.schema) is None:
            return None
        for place in schema.joined():
            if "Unsatisfiable schema" in (reason := retry(_alone(schema, place))):  # what else it cannot do with a part it may well do with the whole
                return self._refused_at(*_deepest(schema, place, reason, retry))
        return None

    def _refused_at(self, place: str, reason: str) -> BadRequest:
        reason = re.split(r"\s\d+ \| ", reason)[0].rstrip(" .")  # what follows is the source itself
        return BadRequest(f"the {self.name}{f' at {place}' if place else ''} cannot be enforced: {reason}. Change it there", field=self.kind)


def read_source(kind: str, value: Any) -> Source:
    """Raises BadRequest for a source that is not what its kind says."""
    check_names([kind], KINDS)
    readers = {"schema": _schema, "compact": _compact, "json": _any_object, "regex": _regex, "choice": _choice, "lark": _lark, "gbnf": _gbnf, "tags": _tags}
    return readers[kind](value)


def _compact(value: Any) -> Source:
    return _schema(value, COMPACT)


def _schema(value: Any, spacing: Any = SPACING) -> Source:
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"schema is text that is not JSON: {error}", field="schema") from None
    schema = Schema(value)
    return Source("schema" if spacing is SPACING else "compact", "schema", f"start: {_json(schema.plain, spacing)}" + TAIL, schema=schema)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values under one name a reader of JSON keeps the last, and what the first one asked would be lost. Raises BadRequest."""
    names = [name for name, _ in pairs]
    if twice := [name for i, name in enumerate(names) if name in names[:i]] if len(set(names)) < len(names) else []:
        raise BadRequest(f"schema has {twice[0]!r:.60} twice in one object. Which of the two is meant, nothing says; leave one out", field="schema")
    return dict(pairs)


def _any_object(value: Any) -> Source:
    if value is not None:
        raise BadRequest(f"json takes no source, got {value!r:.60}; a schema goes under 'schema'", field="json")
    schema = Schema({"type": "object"}, "json")
    return Source("json", "JSON object", f"start: {_json(schema.plain)}" + TAIL, schema=schema)


def _json(plain: Any, spacing: Any = SPACING) -> str:
    try:
        return f"%json {json.dumps({**(plain if isinstance(plain, dict) else {}), **spacing}, allow_nan=False)}"
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"schema is not JSON: {error}", field="schema") from None


def _alone(schema: Schema, place: str) -> str:
    return f"start: {_json(schema.part(place))}" + TAIL


def _deepest(schema: Schema, at: str, reason: str, retry: Callable[[str], str]) -> tuple[str, str]:
    """The innermost place, from one on, that llguidance refuses by itself, and why."""
    seen = {at}
    while True:
        for place in schema.children(at):
            if place not in seen:
                seen.add(place)
                if found := retry(_alone(schema, place)):
                    at, reason = place, found
                    break
        else:
            return at, reason.split("failed to compile JSON schema: ")[-1]


def _regex(value: Any) -> Source:
    if value == "":
        raise BadRequest("regex is empty: nothing could be written", field="regex")
    regex = read_regex(value, "regex", "regex")
    return Source("regex", "regex", f"start: /{_slashed(regex.rust)}/" + TAIL, regex=regex)


def _slashed(rust: str) -> str:
    """A regular expression as it stands between slashes, on one line."""
    return re.sub(r"\\.|/|\n", lambda m: {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(m.group(), m.group()), rust, flags=re.S)


def _choice(value: Any) -> Source:
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple) or not value:
        raise BadRequest(f"choice must be a list of strings, at least one; got {value!r:.60}", field="choice")
    for i, each in enumerate(value):
        if not isinstance(each, str) or not each:
            raise BadRequest(f"choice {i} is {each!r:.60}; expected a text of at least one character", field="choice")
        if each in value[:i]:
            raise BadRequest(f"choice {i} is {each!r:.60}, which is there before. Name each once", field="choice")
    options = " | ".join(f'/{_slashed(re.escape(each))}/' for each in value)
    return Source("choice", "choice", f"start: {options}" + TAIL, choices=tuple(value))


def _lark(value: Any, kind: str = "lark") -> Source:
    if not isinstance(value, str) or not value.strip():
        raise BadRequest(f"{kind} must be the text of a grammar, got {value!r:.60}", field=kind)
    n_rules = len(re.findall(r"^[ \t]*[?!]?[A-Za-z_][\w.-]*(?:\[[^\]\n]*\])?[ \t]*:", value, re.M))
    if n_rules > MAX_RULES or len(value) > MAX_CHARACTERS:
        raise BadRequest(f"{kind} has {n_rules:,} rules in {len(value):,} characters; at most {MAX_RULES:,} in {MAX_CHARACTERS:,} can be compiled "
                         f"safely. "
                         f"Shorten it", field=kind)
    bare = re.sub(r'"(?:\\.|[^"\\\n])*"|/(?!/)(?:\\.|[^/\\\n])+/|(?://|#)[^\n]*', " ", value)  # without strings, expressions and comments
    for word, why in ((r"\[[^\]]*\btemperature\s*=", "a temperature of its own, which is set for the whole request"),
                      (r"<[^>\s]+>", "a special token, which the finished text cannot be checked for"),
                      (r"@\w", "another grammar, and there is one")):
        if found := re.search(word, bare):
            raise BadRequest(f"{kind} asks for {why}: {found.group()!r:.60}. Take it out", field=kind)
    return Source(kind, f"{'Lark' if kind == 'lark' else 'GBNF'} grammar", _plain_inside(value, kind) + TAIL)


def _plain_inside(lark: str, kind: str) -> str:
    """The grammar with every schema in it checked, as a schema of its own would be."""
    parts, i = [], 0
    for found in re.finditer(r"%json\s*(?=\{)", lark):
        if found.start() < i:
            continue  # inside the schema before
        try:
            value, end = json.JSONDecoder(object_pairs_hook=_each_once).raw_decode(lark, found.end())
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{kind} has a %json that is not JSON: {error}", field=kind) from None
        parts += [lark[i : found.start()], _json(Schema(value, kind).plain)]
        i = end
    return "".join([*parts, lark[i:]])


def _tags(value: Any) -> Source:
    """Free text in which what begins as a tag does goes on as one: its beginning, JSON of its schema without white space, its end.

    value: {"tags": [{"begin": parts, "schema": ..., "end": parts}], ...}; parts are texts, ids of special tokens, and {"regex": ...}. Beside the tags:
    open, close: parts around all tags of a row. separator: parts after which another tag may follow; None = one tag a row.
    last: nothing follows a row of tags. alone: they stand where the output begins or nowhere, and text then begins like none of them.
    free, between: the output is messages, of these parts each where it is none of the tags, with `between` after every one but the last; tags end it.
    answer, final: a schema, and the parts before its JSON: the output then is that, or tags with white space at most between them, and no free text.
    """
    try:
        rules = [f"{_parts(tag['begin'])} {_json(Schema(tag['schema'], 'tags').plain, COMPACT)} {_parts(tag['end'])}" for tag in value["tags"]]
        first = [tag["begin"][0] for tag in value["tags"]]
        opened, closed, free, between = (_parts(value.get(name, ())) for name in ("open", "close", "free", "between"))
        separator = None if value.get("separator") is None else _parts(value["separator"])
        answer = None if value.get("answer") is None else f"{_parts(value.get('final', ()))} {_json(Schema(value['answer'], 'schema').plain)}"
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise BadRequest(f"tags are {{'tags': [{{'begin': [...], 'schema': ..., 'end': [...]}}]}}; in what came, {type(error).__name__}: {error}",
                         field="tags") from None
    one = " | ".join(f"tag_{i}" for i in range(len(rules)))
    row = f"({one})" if separator is None else f"({one}) ({separator} ({one}))*"
    lines = []
    if answer is not None:
        more = "" if value.get("last") or free else "(GAP? called)*"
        lines += [f"start: {f'(free {between})*' if free else ''} (answer | called {more})", f"called: {opened} {row} {closed}", f"answer: {answer}",
                  *([f"free: {free}"] if free else [r"GAP: /\s{1,2}/"] if more else [])]
    elif free:
        lines += [f"start: (free {between})* (free | {opened} {row} {closed})", f"free: {free}"]
    elif value.get("alone"):
        taken = "".join(sorted({re.escape(begin[0]) for begin in first if isinstance(begin, str)}))  # the first character of each
        lines += [f"start: {row} | OTHER?", rf"OTHER: /[^\s{taken}](.|\n)*/"]
    else:  # a lazy expression ends where the beginning first stands, so that no text runs past it
        begins = {begin: f"begins_{i}" for i, begin in enumerate(dict.fromkeys([value["open"][0]] if opened else first))}
        if opened:
            row = f"begins_0 {_parts(value['open'][1:])} {row} {closed}"
        else:
            rules = [f"{begins[begin]} {rule.removeprefix(_parts([begin]))}" for begin, rule in zip(first, rules, strict=True)]
        lines += [f"{name}[lazy]: TEXT {_parts([begin])}" if isinstance(begin, str) else f"{name}: TEXT {_parts([begin])}" for begin, name in begins.items()]
        lines += [f"start: end | {row}" if value.get("last") else f"start: ({row})* end", "end: TEXT", r"TEXT: /(.|\n)*/"]
    return Source("tags", "tags", "\n".join([*(f"tag_{i}: {rule}" for i, rule in enumerate(rules)), *lines]) + TAIL)


def _parts(parts: Any) -> str:
    """Texts, expressions and token ids one after another, in Lark."""
    return " ".join(f"<[{part}]>" if isinstance(part, int) else f"/{part['regex']}/" if isinstance(part, dict) else json.dumps(part) for part in parts)


def _gbnf(value: Any) -> Source:
    """llama.cpp's notation: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md. llguidance's own converter writes the Lark."""
    if not isinstance(value, str) or not value.strip():
        raise BadRequest(f"gbnf must be the text of a grammar, got {value!r:.60}", field="gbnf")
    from pellucid.engine.grammar import library  # it imports this file

    library()
    from llguidance.gbnf_to_lark import gbnf_to_lark
    plain = re.sub(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", _character, value, flags=re.S)
    try:
        lark = gbnf_to_lark(plain)
    except RecursionError:
        raise BadRequest("gbnf is nested too deep. Flatten it", field="gbnf") from None
    except Exception as error:  # the converter raises its own kind, and plain Exception for a rule that is not there
        raise BadRequest(f"gbnf is not a grammar: {error}. A rule reads: name ::= ...; the first is root", field="gbnf") from None
    return _lark(lark.replace("%llguidance {}", ""), "gbnf")


def _character(escape: re.Match[str]) -> str:
    """\\uHHHH as the character itself: the converter drops the zeros, and with them the meaning."""
    digits = escape[1] or escape[2]
    if digits is None:
        return escape.group()
    code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise BadRequest(f"gbnf has {escape.group()}, which is no character", field="gbnf")
    return f"\\x{code:02x}" if code < 0x80 else chr(code)
