"""The finished text against what was asked, by other means than those that wrote it: jsonschema, Python's re, equality.

Grammars, and expressions over which re could take for ever, are read again byte by byte, without the model's tokens. Numbers are compared as
decimals, so that 0.3 is a multiple of 0.1; patterns and formats are those that were enforced.
"""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pellucid.engine.formats import FORMATS
from pellucid.engine.grammar import Vocabulary, compile_source
from pellucid.engine.source import Source, read_source
from pellucid.errors import ConstraintFailed, MissingExtra

if TYPE_CHECKING:
    from pellucid.engine.grammar import Compiled
    from pellucid.engine.regex import Regex
    from pellucid.engine.request import FinishReason
    from pellucid.engine.schema import Schema

DIGITS = 400  # of a number: more than any reader of JSON keeps


@dataclass(frozen=True, slots=True)
class Verdict:
    """cut: the output ended before it was complete, whatever it happens to be. invalid: it is complete and not what was asked; reason says why."""

    status: Literal["valid", "cut", "invalid"]
    reason: str = ""


def judge(text: str | None, compiled: Compiled, finish_reason: FinishReason, ended_by: str | None = None) -> Verdict:
    """Whether a finished text is what was asked.

    text: the answer alone, `compiled.text(ids)`; None where the mark it begins after never came. ended_by: what ended it from outside, such as a
    stop string.
    """
    if (cut := _cut(compiled.source.name, finish_reason, ended_by)) is not None:
        return cut
    if text is None:
        return Verdict("cut", "the output ended before its mark came, after which the answer begins")
    reason = _fault(text, compiled)
    if reason and compiled.mark is not None and text != text.lstrip():  # white space may follow the mark
        reason = _fault(text.lstrip(), compiled)
    return Verdict("invalid", reason) if reason else Verdict("valid")


def judge_schema(text: str, schema: Schema, finish_reason: FinishReason, ended_by: str | None = None) -> Verdict:
    """The same for JSON that is part of an output."""
    if (cut := _cut("schema", finish_reason, ended_by)) is not None:
        return cut
    reason = against(text, schema)
    return Verdict("invalid", reason) if reason else Verdict("valid")


def _cut(name: str, finish_reason: FinishReason, ended_by: str | None) -> Verdict | None:
    if ended_by is not None:
        return Verdict("cut", f"{ended_by!r} ended it before the {name} was known to be complete")
    if finish_reason == "stop":
        return None
    why = {"length": "max_tokens was reached", "context": "the context was full"}.get(finish_reason, f"it was {finish_reason}")
    return Verdict("cut", f"{why} before the {name} was complete")


def _fault(text: str, compiled: Compiled) -> str:
    """What is wrong, empty where nothing is."""
    source = compiled.source
    if source.regex is not None:
        matches = re.fullmatch(source.regex.python, text) if source.regex.quick else not _parsed(text, source)
        return "" if matches else f"{text!r:.80} does not match {source.regex.source!r:.80}"
    if source.choices:
        return "" if text in source.choices else f"{text!r:.80} is none of the {len(source.choices)} choices"
    if source.schema is not None:
        return against(text, source.schema)
    return _parsed(text, source)


def _parsed(text: str, source: Source) -> str:
    """Read again byte by byte, without the model's tokens."""
    constraint = _bytewise(source.lark, source.name).start()
    for i, byte in enumerate(text.encode()):
        try:
            constraint.advance(byte)
        except ConstraintFailed:
            return f"the {source.name} allows no {text.encode()[i:i + 1]!r} at byte {i}: {text!r:.80}"
    return "" if constraint.can_end else f"the {source.name} wants more after {text!r:.80}"


@lru_cache(maxsize=16)
def _bytewise(lark: str, name: str) -> Compiled:
    return compile_source(Source("lark", name, lark), Vocabulary([*(bytes([i]) for i in range(256)), b"<end>"], (), (256,)))


def _found(regex: Regex, text: str) -> bool:
    """Whether a pattern of a schema is found in a string."""
    if regex.quick:
        return re.search(regex.python, text) is not None
    spelled = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # as llguidance spells strings
    return not _parsed(spelled, read_source("schema", json.dumps({"type": "string", "pattern": regex.source})))


def against(text: str, schema: Schema) -> str:
    """What is wrong with a text as JSON of this schema, empty where nothing is."""
    try:
        value = json.loads(text, parse_float=_number, parse_int=_whole, parse_constant=_constant)
    except RecursionError:
        return "it is nested deeper than can be read"
    except ValueError as error:
        return f"it is not JSON: {error}"
    try:
        fault = next(_validator(schema).iter_errors(value), None)
    except RecursionError:
        return "it is nested deeper than can be judged"
    return "" if fault is None else f"at {'/'.join(['#', *map(str, fault.absolute_path)])}: {fault.message:.200}"


def _number(digits: str) -> Decimal:
    mantissa, _, exponent = digits.lower().partition("e")
    if len(mantissa) > DIGITS or abs(int(exponent[:9] or 0)) > DIGITS:
        raise ValueError(f"the number {digits:.40} is beyond what readers of JSON keep")
    return Decimal(digits)


def _whole(digits: str) -> int:
    return int(_number(digits))


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _validator(schema: Schema) -> Any:
    try:
        from jsonschema import Draft202012Validator, FormatChecker, ValidationError
        from jsonschema.validators import extend, validator_for
    except ImportError:
        raise MissingExtra("a check against a schema", "grammar") from None
    root = _exact(schema.root, schema)
    base = validator_for(root, default=Draft202012Validator) if isinstance(root, dict) else Draft202012Validator

    def multiple_of(_: Any, of: Any, instance: Any, __: Any) -> Any:
        if isinstance(instance, int | Decimal) and not isinstance(instance, bool) and Fraction(instance) % Fraction(of):
            yield ValidationError(f"{instance} is not a multiple of {of}")

    def whole(_: Any, x: Any) -> bool:
        return (isinstance(x, int) and not isinstance(x, bool)) or (isinstance(x, Decimal) and x == x.to_integral_value())

    def pattern(_: Any, source: Any, instance: Any, __: Any) -> Any:
        if isinstance(instance, str) and not _found(schema.patterns[source], instance):
            yield ValidationError(f"{instance!r:.80} does not match {source!r:.80}")

    checker = FormatChecker(formats=())
    for name, (whole_text, longest) in FORMATS.items():
        found = re.compile(whole_text)
        checker.checks(name)(lambda x, p=found, n=longest: not isinstance(x, str) or bool(p.fullmatch(x) and len(x) <= (n or len(x))))
    kinds = base.TYPE_CHECKER.redefine("integer", whole)
    return extend(base, {"multipleOf": multiple_of, "pattern": pattern}, type_checker=kinds)(root, format_checker=checker)


def _exact(node: Any, schema: Schema) -> Any:
    """The schema with decimals for floats, and with its patterns as Python reads them."""
    if isinstance(node, float):
        return Decimal(repr(node))
    if isinstance(node, list):
        return [_exact(each, schema) for each in node]
    if not isinstance(node, Mapping):
        return node
    return {key: _patterned(key, value, schema) for key, value in node.items()}


def _patterned(key: str, value: Any, schema: Schema) -> Any:
    if key == "patternProperties" and isinstance(value, Mapping):
        return {schema.patterns[p].python if p in schema.patterns else p: _exact(each, schema) for p, each in value.items()}
    return _exact(value, schema)
