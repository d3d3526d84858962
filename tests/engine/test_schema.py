"""A schema before anything runs: what cannot be enforced is named with its place, what nothing satisfies is refused, the rest means what it did."""
from __future__ import annotations

import json
from datetime import date, datetime, time
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.engine.formats import FORMATS
from pellucid.engine.grammar import Constraint, compile_grammar
from pellucid.engine.regex import read_regex
from pellucid.engine.schema import ACTS_ON, ANNOTATIONS, MAX_DEPTH, UNSUPPORTED, Schema
from pellucid.engine.verdict import Verdict, judge
from pellucid.errors import BadRequest, ConstraintFailed
from tests.engine.test_grammar import BYTES, drawn, told

REF = {"$ref": "#/$defs/x"}


def refusal(schema: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        Schema(schema)
    assert caught.value.field == "schema"
    return str(caught.value)


def takes(schema: Any, text: str) -> bool:
    return follows(compile_grammar("schema", schema, BYTES).start(), text)


def follows(constraint: Constraint, text: str) -> bool:
    """Whether a constraint takes a text as the whole output."""
    try:
        return told(constraint, text.encode()).can_end
    except ConstraintFailed:
        return False


@pytest.mark.parametrize(("schema", "message"), [
    ([], "schema at #: a schema is an object, true or false; got list []"),
    ({"items": 3}, "schema at #/items: a schema is an object, true or false; got int 3"),
    (False, "schema at #: the schema is false, which nothing satisfies"),
    ({"additionalproperties": False},
     "schema at #/additionalproperties: 'additionalproperties' is not a keyword of JSON Schema. Did you mean additionalProperties, additionalItems, "
     "minProperties?"),
    ({"properties": {"a/b~": {"requierd": []}}}, "schema at #/properties/a~1b~0/requierd: 'requierd' is not a keyword of JSON Schema. Did you mean "
                                                 "required?"),
    ({"nullable": True}, "schema at #/nullable: nullable cannot be enforced token by token; OpenAPI 3.0's; write type: [..., 'null']"),
    ({"$defs": {"unused": {"not": {}}}}, "schema at #/$defs/unused/not: not cannot be enforced token by token; list what may come instead, as anyOf"),
    ({"uniqueItems": True}, "schema at #/uniqueItems: uniqueItems cannot be enforced token by token; an object with one property a choice can say "
                            "the same"),
    ({"$schema": "http://json-schema.org/draft-04/schema#"}, "schema at #/$schema: 'http://json-schema.org/draft-04/schema#' is not a draft known "
                                                             "here "
     "(https://json-schema.org/draft/2020-12/schema, https://json-schema.org/draft/2019-09/schema, http://json-schema.org/draft-07/schema). Leave "
     "it out if the "
     "schema means 2020-12"),
    ({"properties": {"a": {"$id": "http://b"}}}, "schema at #/properties/a/$id: $id makes this place a document of its own, which is not "
                                                 "implemented. Leave it out"),
    ({"$ref": "#/$defs/nmae", "$defs": {"name": {}}}, "schema at #/$ref: '#/$defs/nmae' points to nothing: there is no 'nmae'. Did you mean name?"),
    ({"$ref": "https://a/b"}, "schema at #/$ref: 'https://a/b' is not a place in this document. Expected one such as '#/$defs/name'; nothing is "
                              "fetched"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"x": {}}, "properties": {"a": {"$ref": "#/definitions/x", "minimum": 2}}},
     "schema at #/properties/a/$ref: draft 7 ignores what stands beside a $ref, here minimum. Take it out, or write $schema: "
     "https://json-schema.org/draft/2020-12/schema"),
    ({"type": "strin"}, "schema at #/type: 'strin' is not a type. Known: null, boolean, number, string, array, object, integer"),
    ({"type": []}, "schema at #/type: [] is empty: nothing can be of no type"),
    ({"type": ["null", "null"]}, "schema at #/type: ['null', 'null'] names a type twice"),
    ({"type": "string", "minimum": 3}, "schema at #/minimum: minimum says something of a number, and type is 'string': it would do nothing. Take "
                                       "one out"),
    ({"minimum": "3"}, "schema at #/minimum: expected a number, got '3'"),
    ({"exclusiveMinimum": True}, "schema at #/exclusiveMinimum: expected a number, got True (as draft 4 had it)"),
    ({"maximum": 2**53 + 1}, "schema at #/maximum: 9007199254740993 is beyond what is enforced exactly: magnitudes of 1e-15 to 2**53 "
                             "(9007199254740992). A string "
     "with a pattern can hold it"),
    ({"minimum": 5, "maximum": 3}, "schema at #/minimum: minimum 5 leaves nothing below maximum 3. Change one of them"),
    ({"exclusiveMinimum": 3, "maximum": 3}, "schema at #/exclusiveMinimum: exclusiveMinimum 3 leaves nothing below maximum 3. Change one of them"),
    ({"minimum": 3, "exclusiveMaximum": 3, "maximum": 3},
     "schema at #/minimum: minimum 3 leaves nothing below exclusiveMaximum 3. Change one of them"),
    ({"type": "integer", "exclusiveMinimum": 1, "maximum": 1.9}, "schema at #/exclusiveMinimum: no integer lies between exclusiveMinimum 1 and "
                                                                 "maximum 1.9. "
     "Change one of them"),
    ({"multipleOf": 0}, "schema at #/multipleOf: expected a number above 0, got 0"),
    ({"minLength": 3, "maxLength": 2}, "schema at #/minLength: minLength 3 is more than maxLength 2. Change one of them"),
    ({"maxLength": -1}, "schema at #/maxLength: expected a count from 0, got -1"),
    ({"minItems": 1.5}, "schema at #/minItems: expected a count from 0, got 1.5"),
    ({"format": "iban"}, "schema at #/format: 'iban' is not a format that is enforced (known: date, time, date-time, duration, email, hostname, "
                         "ipv4, ipv6, uuid, "
     "uri). Use a pattern, or leave it out"),
    ({"pattern": "a(?!b)"}, "schema at #/pattern has look-ahead at position 1: 'a(?!b)'. It cannot be enforced token by token; say it without, as "
                            "an alternation "
     "of what may stand there"),
    ({"patternProperties": {"[": {}}}, "schema at #/patternProperties is not a regular expression: unterminated character set at position 0 in '['"),
    ({"prefixItems": [{}], "items": False, "minItems": 2}, "schema at #/minItems: minItems 2 is more than the 1 that prefixItems lists, and items: "
                                                           "false forbids more"),
    ({"prefixItems": []}, "schema at #/prefixItems: expected a list of schemas, at least one; got []"),
    ({"items": {}, "additionalItems": {}}, "schema at #/additionalItems: additionalItems does nothing beside items that is not a list; use "
                                           "prefixItems and items"),
    ({"properties": []}, "schema at #/properties: expected an object of names to schemas, got []"),
    ({"required": ["a", "a"]}, "schema at #/required/1: 'a' is there twice"),
    ({"required": [1]}, "schema at #/required/0: 1 is not a name"),
    ({"required": ["q"], "properties": {"p": {}}, "additionalProperties": False},
     "schema at #/required/0: 'q' is required, and additionalProperties: false forbids it. Add it to properties"),
    ({"required": ["q"], "properties": {"q": False}}, "schema at #/required/0: 'q' is required, and properties: false forbids it. Add it to "
                                                      "properties"),
    ({"required": ["a", "b"], "maxProperties": 1}, "schema at #/maxProperties: maxProperties is 1, and 2 properties are required"),
    ({"minProperties": 2}, "schema at #/minProperties: minProperties 2 cannot be enforced beyond what is required (0): the same name might come "
                           "twice. List names "
     "under required"),
    ({"enum": []}, "schema at #/enum: expected a list of values, at least one; got []"),
    ({"type": "string", "enum": ["a", None]}, "schema at #/enum/1: null is not of type string, so it could never come. Change the type or the value"),
    ({"type": "integer", "const": 1.5}, "schema at #/const: 1.5 is not of type integer, so it could never come. Change the type or the value"),
    ({"const": "a", "enum": ["b", "c"]}, 'schema at #/const: "a" is none of the values that enum lists, so nothing could come. Take one out'),
    ({"type": "string", "enum": ["ab", "c"], "minLength": 2}, 'schema at #/enum/1: "c" does not meet minLength 2, so it could never come. Change one of them'),
    ({"enum": ["ab", "c"], "maxLength": 1}, 'schema at #/enum/0: "ab" does not meet maxLength 1, so it could never come. Change one of them'),
    ({"enum": ["ab", "c"], "pattern": "^a"}, 'schema at #/enum/1: "c" does not meet pattern "^a", so it could never come. Change one of them'),
    ({"const": "12.5.2026", "format": "date"}, 'schema at #/const: "12.5.2026" does not meet format "date", so it could never come. Change one of them'),
    ({"enum": [0.3, 0.35], "multipleOf": 0.1}, "schema at #/enum/1: 0.35 does not meet multipleOf 0.1, so it could never come. Change one of them"),
    ({"enum": [1, "a", 3], "exclusiveMaximum": 3}, "schema at #/enum/2: 3 does not meet exclusiveMaximum 3, so it could never come. Change one of them"),
    ({"const": [1, 2], "maxItems": 1}, "schema at #/const: [1, 2] does not meet maxItems 1, so it could never come. Change one of them"),
    ({"const": {"a": 1}, "required": ["b"]}, 'schema at #/const: {"a": 1} does not meet required ["b"], so it could never come. Change one of them'),
    ({"const": {1}}, "schema is not JSON: Object of type set is not JSON serializable"),
    ({"const": [2**60]}, "schema at #/const: 1152921504606846976 is beyond what is enforced exactly: magnitudes of 1e-15 to 2**53 "
                         "(9007199254740992). A string "
     "with a pattern can hold it"),
    ({"anyOf": []}, "schema at #/anyOf: expected a list of schemas, at least one; got []"),
    ({"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "number"}]},
     "schema at #/oneOf: branches 1 and 2 may both hold of one value, which oneOf forbids "
     "and nothing here can prevent. Use anyOf, or give both a required property with a const of their own"),
    ({"$ref": "#"}, "schema at #: every value needs another of its kind inside, without end. Make that property optional, or give it an alternative "
                    "that ends"),
    ({**REF,
      "$defs": {"x": {"type": "object", "properties": {"y": {"$ref": "#/$defs/y"}}, "required": ["y"]},
                "y": {"type": "array", "items": REF, "minItems": 1}}},
     "schema at #/$defs/x: every value needs another of its kind inside, without end. Make that property optional, or give it an alternative that "
     "ends"),
    ({"anyOf": [False, False]}, "schema at #: no value can satisfy it: every alternative is forbidden or needs another inside, without end"),
])
def test_what_cannot_be_is_refused_with_its_place(schema: Any, message: str) -> None:
    assert refusal(schema) == message


@pytest.mark.parametrize("keyword", sorted({*UNSUPPORTED, "whatever"}))
def test_no_keyword_is_passed_over(keyword: str) -> None:
    assert f"schema at #/properties/a/{keyword}: " in refusal({"properties": {"a": {keyword: {}}}})


def test_every_keyword_of_the_drafts_is_known_one_way_or_the_other() -> None:
    """Of the metaschemas that jsonschema carries."""
    for validator in (jsonschema.Draft202012Validator, jsonschema.Draft201909Validator, jsonschema.Draft7Validator):
        ours = {*ACTS_ON, *ANNOTATIONS, *UNSUPPORTED, "type", "enum", "const", "anyOf", "allOf", "oneOf", "$ref"}
        assert set(validator.VALIDATORS) | set(validator.META_SCHEMA.get("properties", ())) <= ours


def test_schemas_too_deep_to_compile_safely_are_refused() -> None:
    """llguidance follows references without a bound and runs out of stack, which ends the process: 1,000 in a chain are enough."""
    chain = {f"d{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(2000)}
    message = refusal({"$ref": "#/$defs/d0", "$defs": {**chain, "d2000": {"type": "null"}}})
    assert message.endswith(f": schemas stand more than {MAX_DEPTH} deep inside each other, references followed. Flatten it")
    n = MAX_DEPTH // 2 - 2
    assert takes({"$ref": "#/$defs/d0", "$defs": {**{f"d{i}": chain[f"d{i}"] for i in range(n)}, f"d{n}": {"type": "null"}}}, "{}")
    nested: dict[str, Any] = {}
    for _ in range(200):
        nested = {"items": nested}
    assert "schemas stand more than" in refusal(nested)


def test_a_number_that_json_does_not_have_is_refused() -> None:
    assert refusal({"const": float("nan")}).startswith("schema is not JSON: Out of range float values are not JSON compliant")


def test_annotations_pass() -> None:
    schema = dict.fromkeys(ANNOTATIONS - {"$schema", "$defs", "definitions"}, "x")
    assert takes({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "null"}, "null")


def test_a_recursive_schema_that_can_end_is_one() -> None:
    tree = {"$ref": "#/$defs/node",
            "$defs": {"node": {"type": "object",
                               "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                                                       "required": ["v"], "additionalProperties": False}}}
    assert takes(tree, '{"v": 1, "kids": [{"v": 2}, {"v": 3, "kids": []}]}')
    assert not takes(tree, '{"v": 1, "kids": [{"kids": []}]}')
    assert takes({"anyOf": [{"type": "array", "items": {"$ref": "#"}, "minItems": 1}, {"type": "null"}]}, "[[null], null]")


def test_references_are_read_as_pointers_are() -> None:
    """llguidance itself takes ~1 and %25 for what they spell."""
    schema = {"properties": {"a": {"$ref": "#/$defs/x~1y~0%25"}, "b": {"$ref": "#/properties/c/prefixItems/0"},
                             "c": {"type": "array", "prefixItems": [{"const": 7}]}},
              "$defs": {"x/y~%": {"const": "here"}}, "type": "object", "additionalProperties": False}
    assert takes(schema, '{"a": "here", "b": 7, "c": [7]}')
    assert not takes(schema, '{"a": "there"}')


def test_branches_that_a_required_constant_tells_apart_are_a_one_of() -> None:
    """What pydantic writes for a tagged union; llguidance cannot see through the references."""
    tagged = {k: {"type": "object", "properties": {"kind": {"const": k, "type": "string"}, "n": {"type": "integer"}}, "required": ["kind", "n"]}
              for k in ("cat", "dog")}
    schema = {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "$defs": tagged, "discriminator": {"propertyName": "kind"}}
    assert takes(schema, '{"kind": "dog", "n": 3}')
    assert not takes(schema, '{"kind": "cow", "n": 3}')
    assert takes({"oneOf": [{"enum": [1, "a"]}, {"const": 2}, {"type": "object"}], "anyOf": [{"type": "number"}]}, "2")
    assert "branches 0 and 1" in refusal({"oneOf": [{"enum": [1, "a"]}, {"const": 1.0}]})
    assert "branches 0 and 1" in refusal({"oneOf": [tagged["cat"], {**tagged["dog"], "required": ["n"]}]})


def test_a_schema_s_own_properties_come_before_those_of_its_all_of() -> None:
    schema = {"allOf": [{"properties": {"b": {"const": 2}}, "required": ["b"]}], "type": "object", "properties": {"a": {"const": 1}},
              "required": ["a"]}
    assert takes(schema, '{"a": 1, "b": 2}')
    assert not takes(schema, '{"b": 2, "a": 1}')


def test_additional_properties_know_of_patterns_wherever_they_stand() -> None:
    """llguidance reads keywords in order, and an anyOf between the two would part them."""
    schema = {"additionalProperties": False, "anyOf": [{"type": "object"}], "patternProperties": {"^x": {"const": 1}},
              "properties": {"a": {"const": 2}}}
    assert takes(schema, '{"a": 2, "x1": 1}')
    assert not takes(schema, '{"y": 1}')


def test_lists_of_items_are_those_of_draft_7() -> None:
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"const": 1}, {"const": 2}],
              "additionalItems": {"type": "null"}}
    assert takes(schema, "[1, 2, null]")
    assert not takes(schema, "[2, 1]")
    assert judge("[1, 2, 3]", compile_grammar("schema", schema, BYTES), "stop").status == "invalid"


READERS = {"date": date.fromisoformat, "time": time.fromisoformat, "date-time": datetime.fromisoformat, "ipv4": IPv4Address, "ipv6": IPv6Address,
           "uuid": UUID,
           "uri": urlsplit}


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_allows_its_readers_read(name: str) -> None:
    compiled = compile_grammar("schema", {"type": "string", "format": name}, BYTES)
    for seed in range(40):
        ids, reason = drawn(compiled, seed)
        text = json.loads(b"".join(BYTES.text[i] for i in ids))
        assert reason == "stop"
        READERS.get(name, str)(text)
        if name in ("email", "hostname"):
            host = text.rpartition("@")[2]
            assert len(host) <= 253
            assert all(1 <= len(label) <= 63 for label in host.split("."))


@pytest.mark.parametrize(("name", "good", "bad"), [
    ("date", ["2024-02-29", "2000-02-29", "0001-01-01"], ["2023-02-29", "1900-02-29", "2024-04-31", "2024-13-01", "0000-01-01", "2024-1-1"]),
    ("time", ["23:59:59Z", "00:00:00.123+05:30"], ["24:00:00Z", "23:59:60Z", "12:00:00"]),
    ("date-time", ["2024-02-29T00:00:00Z"], ["2024-02-29 00:00:00Z"]),
    ("duration", ["P1Y2M3DT4H5M6S", "PT1S", "P4W", "P1DT2H"], ["P", "PT", "P1Y2D", "P1S"]), ("email", ["a.b+c@x-y.org"], ["a@", "a..b@c", "a@-b"]),
    ("hostname", ["a", "a.b-c.de"], ["-a", "a.", "a" * 64, ".".join(["a" * 60] * 5)]),
    ("ipv4", ["0.0.0.0", "255.249.199.9"], ["256.1.1.1", "01.1.1.1", "1.1.1"]),
    ("ipv6", ["::", "::1", "1::", "1:2:3:4:5:6:7:8", "fe80::a:b"], ["1:2:3:4:5:6:7", ":::", "1::2::3", "1:2:3:4:5:6:7:8:9"]),
    ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    ("uri", ["https://u@a.b:80/c/d?e=f#g", "mailto:x@y.z", "file:///etc/x", "a:"], ["//a", "http//a", "http://a b"]),
])
def test_formats_hold_what_their_rfc_does(name: str, good: list[str], bad: list[str]) -> None:
    schema = {"type": "string", "format": name}
    compiled = compile_grammar("schema", schema, BYTES)
    for text in good:
        assert takes(schema, json.dumps(text)), text
        assert judge(json.dumps(text), compiled, "stop") == Verdict("valid")
    for text in bad:
        assert not takes(schema, json.dumps(text)), text
        assert judge(json.dumps(text), compiled, "stop").status == "invalid"


# Regular expressions

@pytest.mark.parametrize(("source", "what"), [
    ("a(?=b)", "look-ahead at position 1"), ("(?!a)b", "look-ahead at position 0"), ("(?<=a)b", "look-behind at position 0"),
    ("(?<!a)b", "look-behind at position 0"),
    (r"(a)\1", "a back-reference at position 3"), (r"(?P<n>a)(?P=n)", "a back-reference at position 8"),
    (r"\bx", r"a word boundary (\b) at position 0"),
    ("a*+b", "a possessive quantifier at position 2"), ("(?>a)", "an atomic group at position 0"), ("(a)?(?(1)b|c)", "a conditional at position 4"),
    ("(?<n>a)", "(?<n at position 0"), (r"\p{L}", r"\p at position 0"), (r"[\D]", r"\D inside a class at position 1"),
    ("[a--b]", "-- inside a class at position 2"),
    ("[]a]", "a class that begins with ] at position 0"), ("(?m)^a", "(?m) at position 0"), ("a\\", "\\ at position 1")])
def test_what_no_grammar_can_follow_is_named_with_its_position(source: str, what: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_regex(source, "regex", "regex")
    assert str(caught.value).startswith(f"regex has {what}: {source!r}. It cannot be enforced token by token; ")


@pytest.mark.parametrize(("source", "message"), [("(", "regex is not a regular expression: missing ), unterminated subpattern at position 0 in '('"),
                                                 ("a{2,1}", "regex is not a regular expression: min repeat greater than max repeat at position 2 in "
                                                            "'a{2,1}'"),
                                                 (3, "regex must be a string, got int 3")])
def test_what_is_no_regular_expression_is_said(source: Any, message: str) -> None:
    with pytest.raises(BadRequest, match="regex") as caught:
        read_regex(source, "regex", "regex")
    assert str(caught.value) == message


@settings(max_examples=200, deadline=None)
@given(pattern=st.sampled_from([r"^a+$", r"\d\w\s", r"[\d_]x", r"[^\w]", r"[a[b]+", "[a&&b]", "[~~]", r"a$|^b", r"^a|b$", "x{2,}?", "(?i)kS", "(?s).",
                                ".", r"\S\D\W", r"\*+", "é[à-ü]?",
                                r"a\/b", "a/b", "(a|A)*b?", "[ab]*x*", "(.|k+)+", r"\u00e9\x41", "[)(]"]),
       text=st.text(st.sampled_from("aAbxkKsS1_ \n\té٣[&~*/()\u212a\u017f"), max_size=3))
def test_both_dialects_accept_the_same_texts(pattern: str, text: str) -> None:
    """The finished text is judged by Python's re, the tokens by Rust's: neither may know of a text what the other does not."""
    regex = compile_grammar("regex", pattern, BYTES)
    assert follows(regex.start(), text) == (judge(text, regex, "stop") == Verdict("valid"))
    schema = {"type": "string", "pattern": pattern}
    assert takes(schema,
                 json.dumps(text, ensure_ascii=False)) == (judge(json.dumps(text), compile_grammar("schema", schema, BYTES),
                                                                 "stop").status == "valid")


# The judge

@pytest.mark.parametrize(("schema", "text", "reason"), [
    ({"type": "integer"}, "1.5", "at #: Decimal('1.5') is not of type 'integer'"),
    ({"properties": {"a": {"maxLength": 1}}}, '{"a": "xy"}', "at #/a: 'xy' is too long"),
    ({"multipleOf": 0.1}, "0.35", "at #: 0.35 is not a multiple of 0.1"),
    ({}, "[1", "it is not JSON: Expecting ',' delimiter: line 1 column 3 (char 2)"),
    ({}, "NaN", "it is not JSON: NaN is not JSON"), ({}, "1e999", "it is not JSON: the number 1e999 is beyond what readers of JSON keep"),
    ({}, "9" * 500, "it is not JSON: the number " + "9" * 40 + " is beyond what readers of JSON keep"),
    ({}, "[" * 100_000, "it is nested deeper than can be read"),
    ({"pattern": "^a$"}, '"a\\n"', r"at #: 'a\n' does not match '^a$'")])
def test_the_judge_says_what_is_wrong_and_where(schema: Any, text: str, reason: str) -> None:
    assert judge(text, compile_grammar("schema", schema, BYTES), "stop") == Verdict("invalid", reason)


@pytest.mark.parametrize(("schema", "text"),
                         [({"multipleOf": 0.1}, "0.3"), ({"const": 0.1}, "0.1"), ({"type": "integer"}, "2.0"), ({"enum": [1.5]}, "1.50"),
                          ({"maximum": 0.7}, "0.7")])
def test_numbers_are_judged_as_they_are_written(schema: Any, text: str) -> None:
    compiled = compile_grammar("schema", schema, BYTES)
    assert judge(text, compiled, "stop") == Verdict("valid")


def test_no_expression_makes_the_judge_take_for_ever() -> None:
    """Python's re would need days for each of these."""
    for text in ("x" * 60, "x" * 60 + "z"):
        status = "valid" if text[-1] == "x" else "invalid"
        assert judge(text, compile_grammar("regex", "(x+x+)+y|x+", BYTES), "stop").status == status
        schema = {"type": "string", "pattern": "^((x+x+)+y|x+)$"}
        assert judge(json.dumps(text), compile_grammar("schema", schema, BYTES), "stop").status == status
    assert refusal({"patternProperties": {"^(x+x+)+y$": {}}}) == ("schema at #/patternProperties: '^(x+x+)+y$' repeats more than once, which can "
                                                                  "take the "
                                                                  "judge of the finished text for ever. One * or + is fine")
    for quick in (r"^a[*+|]+$", "(?:ab|c)d*", "a{3}", "[a-z]+", "(ab)+"):
        assert read_regex(quick, "regex", "regex").quick
    for slow in ("(a|b)*", "a*b*", "(a?)+", "(?:a+)+", "((a|b)c)*"):
        assert not read_regex(slow, "regex", "regex").quick


def test_a_text_nested_too_deep_to_judge_is_invalid() -> None:
    nest = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}
    assert judge("[" * 400 + "]" * 400, compile_grammar("schema", nest, BYTES), "stop") == Verdict("invalid",
        "it is nested deeper than can be judged")


def test_an_output_cut_short_is_never_valid() -> None:
    compiled = compile_grammar("regex", "a*", BYTES)
    assert judge("aa", compiled, "length") == Verdict("cut", "max_tokens was reached before the regex was complete")
    assert judge("aa", compiled, "context") == Verdict("cut", "the context was full before the regex was complete")
    assert judge("aa", compiled, "cancelled") == Verdict("cut", "it was cancelled before the regex was complete")
    assert judge("aa", compiled, "stop") == Verdict("valid")
    assert judge("ab", compiled, "stop") == Verdict("invalid", "'ab' does not match 'a*'")
    assert judge("c", compile_grammar("choice", ["a", "b"], BYTES), "stop") == Verdict("invalid", "'c' is none of the 2 choices")


def test_white_space_after_a_mark_is_no_fault() -> None:
    marked = compile_grammar("choice", ["a"], BYTES, after="</think>")
    assert judge("\n\na", marked, "stop") == Verdict("valid")
    assert judge("\n\na", compile_grammar("choice", ["a"], BYTES), "stop").status == "invalid"
