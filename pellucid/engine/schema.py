"""JSON Schema before anything runs: every keyword is enforced, an annotation, or an error that says where it stands.

llguidance passes over keywords it does not know and says "Unsatisfiable schema" of a whole document; so our own walk comes first, and what it
hands on is plain: references by short names, formats and patterns as regular expressions both sides read alike, `oneOf` as `anyOf` once its
branches are proven apart. Draft 2020-12, and of 2019-09 and 7 what means the same. What llguidance implements: docs/json_schema.md and
parser/src/json/schema.rs of guidance-ai/llguidance @ c75b0d90.
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import unquote

from pellucid.engine.formats import FORMATS
from pellucid.engine.instances import TYPES, Plain, apart, broken, ends, scalars, spelled, type_of
from pellucid.engine.regex import Regex, read_regex
from pellucid.errors import BadRequest, did_you_mean, nearest

MAX_DEPTH = 100  # levels of schema inside schema, references followed: at about 900, llguidance runs out of stack and takes the process along
MAX_EXACT = 2**53  # llguidance reads numbers as float64
ANNOTATIONS = frozenset((
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly", "contentMediaType",
    "contentEncoding", "contentSchema", "$defs", "definitions", "discriminator"))  # the last is OpenAPI's hint beside a oneOf; pydantic writes it
DRAFTS = ("https://json-schema.org/draft/2020-12/schema", "https://json-schema.org/draft/2019-09/schema", "http://json-schema.org/draft-07/schema")
ACTS_ON = {  # keyword -> the one type it says something of
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), "number"),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "additionalItems"), "array"),
    **dict.fromkeys(("properties", "additionalProperties", "patternProperties", "required", "minProperties", "maxProperties"), "object")}
APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf", "const", "enum")  # for a value of any type
UNSUPPORTED = {  # keyword -> what to do instead
    **dict.fromkeys(("not", "if", "then", "else"), "list what may come instead, as anyOf"),
    **dict.fromkeys(("contains", "minContains", "maxContains"), "say by prefixItems and items what stands where"),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), "put the properties into one object and use additionalProperties or items"),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"), "list the combinations as anyOf"),
    **dict.fromkeys(("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$anchor", "$vocabulary"),
                    "use $ref to a place under $defs"),
    "propertyNames": "use patternProperties with additionalProperties: false", "nullable": "OpenAPI 3.0's; write type: [..., 'null']",
    "example": "OpenAPI 3.0's; write examples", "strict": "it belongs beside the schema, not in it", "id": "draft 4's; leave it out"}
NAMED = ("properties", "patternProperties")
HOLDERS = (*NAMED, "$ref", "items", "prefixItems", "additionalItems", "additionalProperties", "allOf", "anyOf", "oneOf")  # of schemas


class Schema:
    """A checked schema. Raises BadRequest for anything in it that is unknown, contradictory or cannot be enforced.

    plain: as llguidance is to read it; properties come in its order, a schema's own before those of its allOf.
    patterns: every regular expression in it, by its source.
    """

    def __init__(self, root: Any, field: str = "schema") -> None:
        self.field = field
        try:
            self.root = root = json.loads(json.dumps(root, allow_nan=False))  # plain lists and names, whatever Python had
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRequest(f"{field} is not JSON: {error}", field=field) from None
        self.patterns: dict[str, Regex] = {}
        self._names: dict[str, str] = {}  # place of a $ref's target -> its name in `plain`
        self._defs: dict[str, Plain] = {}
        self._depth = 0
        if isinstance(root, dict):
            stated = root.get("$schema", DRAFTS[0])
            if not isinstance(stated, str) or stated.rstrip("#") not in DRAFTS:
                raise self._error("#/$schema", f"{stated!r:.80} is not a draft known here ({', '.join(DRAFTS)}). Leave it out if the schema means "
                                               f"2020-12")
            self.draft_7 = stated.startswith(DRAFTS[2])
        self.plain = self.part("#")
        for group in ("$defs", "definitions"):  # what nothing refers to is checked as well
            for name in root.get(group, ()) if isinstance(root, dict) else ():
                self._node(root[group][name], _down(f"#/{group}", name))

    def part(self, at: str) -> Plain:
        """The schema at one place, as a document of its own."""
        node = self._node(self.resolve(at, at), at)
        plain = {**node, **({"$defs": self._defs} if self._defs else {})} if isinstance(node, dict) else node
        self._check_endings(plain, at)
        return plain

    def children(self, at: str) -> Iterator[str]:
        """The places of the schemas that the one at a place is made of, but for true and false."""
        for key, value in self.resolve(at, at).items():
            inside = f"{at}/{key}"
            places = ([value] if key == "$ref" else [_down(inside, name) for name in value] if key in NAMED else
                      [inside] if isinstance(value, dict) else [f"{inside}/{i}" for i in range(len(value))] if isinstance(value, list) else [])
            yield from (place for place in places if key in HOLDERS and isinstance(self.resolve(place, place), dict))

    def joined(self) -> Iterator[str]:
        """The places inside where several keywords speak of one value, so that each may be well and nothing meet them all."""
        seen, todo = {"#"}, ["#"] if isinstance(self.root, dict) else []
        while todo:
            for place in self.children(todo.pop()):
                if place not in seen:
                    seen.add(place)
                    todo.append(place)
                    node = self.resolve(place, place)
                    branches = node.keys() & {"$ref", "allOf", "anyOf", "oneOf"}
                    speaking = node.keys() - ANNOTATIONS - (set() if branches else {"type"})
                    if len(node.get("allOf", ())) > 1 or (len(speaking) > 1 and speaking & {*APPLICATORS, "pattern", "format", "multipleOf"}):
                        yield place

    def resolve(self, ref: Any, at: str) -> Any:
        """What a $ref points to. Raises BadRequest, naming the place of the $ref, for one that points nowhere."""
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise self._error(at, f"{ref!r:.80} is not a place in this document. Expected one such as '#/$defs/name'; nothing is fetched")
        found = self.root
        for step in ref.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                known = [*self.root.get("$defs", ()), *self.root.get("definitions", ())]
                raise self._error(at, f"{ref!r:.80} points to nothing: there is no {key!r:.40}.{did_you_mean(nearest(key, known))}")
        return found

    def _error(self, at: str, what: str) -> BadRequest:
        return BadRequest(f"{self.field} at {at}: {what}", field=self.field)

    # one node

    def _node(self, node: Any, at: str) -> Plain:
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise self._error(at, f"a schema is an object, true or false; got {type(node).__name__} {node!r:.60}")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(at, f"schemas stand more than {MAX_DEPTH} deep inside each other, references followed. Flatten it")
        try:
            return self._checked(node, at)
        finally:
            self._depth -= 1

    def _checked(self, node: dict[str, Any], at: str) -> Plain:
        for key in node:
            self._known(key, at)
        self._check_ref(node, at)
        types = self._types(node, at)
        own: dict[str, Any] = {"type": node["type"]} if "type" in node else {}
        for key in (k for k in node if k in ACTS_ON):
            if not types & ({"number", "integer"} if ACTS_ON[key] == "number" else {ACTS_ON[key]}):
                raise self._error(f"{at}/{key}", f"{key} says something of a {ACTS_ON[key]}, and type is {node['type']!r}: it would do nothing. "
                                                 f"Take one out")
        for check in (self._number, self._string, self._array, self._object):
            own |= check(node, at, types)
        applied = self._applied(node, at, types)
        if joined := [*own.get("allOf", ()), *applied.get("allOf", ())]:
            applied["allOf"] = joined
        return own | applied

    def _known(self, key: str, at: str) -> None:
        if key in UNSUPPORTED:
            raise self._error(f"{at}/{key}", f"{key} cannot be enforced token by token; {UNSUPPORTED[key]}")
        known = (*ANNOTATIONS, *ACTS_ON, *APPLICATORS, "type")
        if key not in known:
            raise self._error(f"{at}/{key}".rstrip("/"), f"{key!r:.60} is not a keyword of JSON Schema.{did_you_mean(nearest(key, known))}")
        if key in ("$id", "$schema") and at != "#":
            raise self._error(f"{at}/{key}", f"{key} makes this place a document of its own, which is not implemented. Leave it out")

    def _check_ref(self, node: dict[str, Any], at: str) -> None:
        beside = [k for k in node if k not in ANNOTATIONS and k != "$ref"]
        if "$ref" in node and beside and self.draft_7:
            raise self._error(f"{at}/$ref",
                              f"draft 7 ignores what stands beside a $ref, here {beside[0]}. Take it out, or write $schema: {DRAFTS[0]}")

    def _types(self, node: dict[str, Any], at: str) -> set[str]:
        if "type" not in node:
            return set(TYPES)
        stated = node["type"] if isinstance(node["type"], list) else [node["type"]]
        for each in stated:
            if each not in (*TYPES, "integer"):
                raise self._error(f"{at}/type", f"{each!r:.60} is not a type. Known: {', '.join((*TYPES, 'integer'))}")
        if not stated or len(set(stated)) < len(stated):
            raise self._error(f"{at}/type", f"{stated!r:.80} {'names a type twice' if stated else 'is empty: nothing can be of no type'}")
        return set(stated)

    def _number(self, node: dict[str, Any], at: str, types: set[str]) -> dict[str, Any]:
        found = {k: node[k] for k in ACTS_ON if ACTS_ON[k] == "number" and k in node}
        for key, value in found.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self._error(f"{at}/{key}", f"expected a number, got {value!r:.60}{' (as draft 4 had it)' if isinstance(value, bool) else ''}")
            self._check_exact(value, f"{at}/{key}")
        if found.get("multipleOf", 1) <= 0:
            raise self._error(f"{at}/multipleOf", f"expected a number above 0, got {node['multipleOf']}")
        low, _, over = max([(found[k], k == "exclusiveMinimum", k) for k in ("minimum", "exclusiveMinimum") if k in found],
                           default=(-math.inf, 0, ""))
        high, _, under = min([(found[k], k != "exclusiveMaximum", k) for k in ("maximum", "exclusiveMaximum") if k in found],
                             default=(math.inf, 0, ""))
        if low > high or (low == high and "exclusive" in over + under):
            raise self._error(f"{at}/{over}", f"{over} {low} leaves nothing below {under} {high}. Change one of them")
        if "number" not in types and "integer" in types and over and under:
            first = math.floor(low) + 1 if over == "exclusiveMinimum" else math.ceil(low)
            last = math.ceil(high) - 1 if under == "exclusiveMaximum" else math.floor(high)
            if first > last:
                raise self._error(f"{at}/{over}", f"no integer lies between {over} {low} and {under} {high}. Change one of them")
        return found

    def _check_exact(self, value: Any, at: str) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool) and (abs(value) > MAX_EXACT or 0 < abs(value) < 1e-15):
            raise self._error(at, f"{value!r:.60} is beyond what is enforced exactly: magnitudes of 1e-15 to 2**53 ({MAX_EXACT}). A string with a "
                                  f"pattern can hold it")

    def _string(self, node: dict[str, Any], at: str, types: set[str]) -> dict[str, Any]:
        found = self._counts(node, at, "minLength", "maxLength")
        if "pattern" in node:
            found["pattern"] = self.pattern(node["pattern"], f"{at}/pattern")
        if "format" not in node:
            return found
        if node["format"] not in FORMATS:
            raise self._error(f"{at}/format", f"{node['format']!r:.60} is not a format that is enforced (known: {', '.join(FORMATS)}). Use a "
                                              f"pattern, or leave it out")
        source, longest = FORMATS[node["format"]]
        limit = {} if longest is None else {"maxLength": longest}
        return found | {"allOf": [{"pattern": f"^(?:{source})$", **limit}]}

    def pattern(self, source: Any, at: str, of_names: bool = False) -> str:
        """A pattern as llguidance reads it."""
        regex = read_regex(source, f"{self.field} at {at}", self.field)
        if of_names and not regex.quick:
            raise self._error(at,
                              f"{source!r:.80} repeats more than once, which can take the judge of the finished text for ever. One * or + is fine")
        self.patterns[regex.source] = regex
        return regex.rust

    def _array(self, node: dict[str, Any], at: str, types: set[str]) -> dict[str, Any]:
        found = self._counts(node, at, "minItems", "maxItems")
        if node.get("uniqueItems", False) is not False:
            raise self._error(f"{at}/uniqueItems", "uniqueItems cannot be enforced token by token; an object with one property a choice can say the "
                                                   "same")
        prefix, rest, old = node.get("prefixItems"), "items", isinstance(node.get("items"), list)
        if old:  # draft 2019-09 and before
            prefix, rest = node["items"], "additionalItems"
        elif "additionalItems" in node:
            raise self._error(f"{at}/additionalItems", "additionalItems does nothing beside items that is not a list; use prefixItems and items")
        if prefix is not None:
            name = "items" if old else "prefixItems"
            found["prefixItems"] = [self._node(each, f"{at}/{name}/{i}") for i, each in enumerate(self._list(prefix, f"{at}/{name}", "schemas"))]
        if rest in node:
            found["items"] = self._node(node[rest], f"{at}/{rest}")
        listed = len(found.get("prefixItems", ()))
        if found.get("items") is False and found.get("minItems", 0) > listed:
            raise self._error(f"{at}/minItems", f"minItems {found['minItems']} is more than the {listed} that prefixItems lists, and {rest}: false "
                                                f"forbids more")
        return found

    def _object(self, node: dict[str, Any], at: str, types: set[str]) -> dict[str, Any]:
        found = self._counts(node, at, "minProperties", "maxProperties")
        for group in ("properties", "patternProperties"):
            if group in node:
                members = self._mapping(node[group], f"{at}/{group}")
                read = partial(self.pattern, of_names=True) if group == "patternProperties" else _as_it_is
                found[group] = {read(name, f"{at}/{group}"): self._node(each, _down(f"{at}/{group}", name)) for name, each in members.items()}
        if "additionalProperties" in node:
            found["additionalProperties"] = self._node(node["additionalProperties"], f"{at}/additionalProperties")
        if "required" not in node:
            self._check_counted(found, [], at)
            return found
        listed = found.get("properties", {})
        required = found["required"] = self._list(node["required"], f"{at}/required", "names", empty=True)
        for i, name in enumerate(required):
            if not isinstance(name, str) or name in required[:i]:
                raise self._error(f"{at}/required/{i}", f"{name!r:.60} {'is there twice' if isinstance(name, str) else 'is not a name'}")
            forbidding = "properties" if name in listed else "additionalProperties"
            if listed.get(name, True) is False or (self._unlisted(name, node) and found.get("additionalProperties", True) is False):
                raise self._error(f"{at}/required/{i}", f"{name!r:.60} is required, and {forbidding}: false forbids it. Add it to properties")
        if len(required) > found.get("maxProperties", math.inf):
            raise self._error(f"{at}/maxProperties", f"maxProperties is {found['maxProperties']}, and {len(required)} properties are required")
        self._check_counted(found, required, at)
        return found

    def _unlisted(self, name: str, node: dict[str, Any]) -> bool:
        """Whether additionalProperties is what speaks of a name."""
        return name not in node.get("properties", ()) and not any(re.search(self.patterns[p].python, name) for p in node.get("patternProperties", ()))

    def _check_counted(self, found: dict[str, Any], required: list[str], at: str) -> None:
        """Names that are not listed may come twice in the text, which no reader counts twice."""
        if found.get("minProperties", 0) > max(1, len(required)):
            raise self._error(f"{at}/minProperties", f"minProperties {found['minProperties']} cannot be enforced beyond what is required "
                                                     f"({len(required)}): the same name might come twice. List names under required")
        if found.get("minProperties", 0) <= len(required):
            found.pop("minProperties", None)

    # any type

    def _applied(self, node: dict[str, Any], at: str, types: set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in (k for k in node if k in APPLICATORS):
            value, inside = node[key], f"{at}/{key}"
            if key == "$ref":
                found["$ref"] = self._reference(value, inside)
            elif key == "const":
                self._check_value(value, node, types, inside)
                if isinstance(node.get("enum"), list) and spelled(value) not in map(spelled, node["enum"]):
                    raise self._error(inside, f"{json.dumps(value):.60} is none of the values that enum lists, so nothing could come. Take one out")
                found["const"] = value
            elif key == "enum":
                for i, each in enumerate(self._list(value, inside, "values")):
                    self._check_value(each, node, types, f"{inside}/{i}")
                found["enum"] = value
            else:
                parts = [self._node(each, f"{inside}/{i}") for i, each in enumerate(self._list(value, inside, "schemas"))]
                if key == "oneOf":
                    self._check_apart(value, inside)
                if key == "oneOf" and "anyOf" in node:
                    found["allOf"] = [*found.get("allOf", ()), {"anyOf": parts}]
                else:
                    name = "anyOf" if key == "oneOf" else key
                    found[name] = [*found.get(name, ()), *parts]
        return found

    def _reference(self, ref: Any, at: str) -> str:
        target = self.resolve(ref, at)
        if ref not in self._names:
            self._names[ref] = f"d{len(self._names)}"
            self._defs[self._names[ref]] = {}
            self._defs[self._names[ref]] = self._node(target, ref)
        return f"#/$defs/{self._names[ref]}"

    def _check_value(self, value: Any, node: dict[str, Any], types: set[str], at: str) -> None:
        kind = type_of(value)
        also = "number" if kind == "integer" else "integer" if kind == "number" and value == int(value) else kind
        if kind not in types and also not in types:
            raise self._error(at, f"{json.dumps(value):.60} is not of type {' or '.join(sorted(types))}, so it could never come. Change the type or "
                                  f"the value")
        for each in scalars(value):
            self._check_exact(each, at)
        if key := broken(node, value, self._matches):
            raise self._error(at, f"{json.dumps(value):.60} does not meet {key} {json.dumps(node[key]):.60}, so it could never come. Change one of them")

    def _matches(self, source: str, text: str) -> bool:
        """Whether a pattern is found, as far as Python's re says so in a moment."""
        regex = self.patterns[source]
        return not regex.quick or re.search(regex.python, text) is not None

    def _check_apart(self, branches: list[Any], at: str) -> None:
        for i, one in enumerate(branches):
            for j in range(i):
                if not apart(branches[j], one, self.resolve):
                    raise self._error(at, f"branches {j} and {i} may both hold of one value, which oneOf forbids and nothing here can prevent. Use "
                                          f"anyOf, or give both a required property with a const of their own")

    def _check_endings(self, plain: Plain, at: str) -> None:
        """Every named schema must have an instance that ends; the least fixed point over what refers to what."""
        ending: set[str] = set()
        while more := {name for name, each in self._defs.items() if name not in ending and ends(each, ending)}:
            ending |= more
        places = {name: place for place, name in self._names.items()}
        for name in self._defs:
            if name not in ending:
                raise self._error(places[name], "every value needs another of its kind inside, without end. Make that property optional, or give it "
                                                "an alternative that ends")
        if plain is not False and not ends(plain, ending):
            raise self._error(at, "no value can satisfy it: every alternative is forbidden or needs another inside, without end")
        if plain is False:
            raise self._error(at, "the schema is false, which nothing satisfies")

    # values of keywords

    def _counts(self, node: dict[str, Any], at: str, low: str, high: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in (low, high):
            if key in node:
                value = node[key]
                if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
                    raise self._error(f"{at}/{key}", f"expected a count from 0, got {value!r:.60}")
                found[key] = int(value)
        if found.get(low, 0) > found.get(high, math.inf):
            raise self._error(f"{at}/{low}", f"{low} {found[low]} is more than {high} {found[high]}. Change one of them")
        return found

    def _list(self, value: Any, at: str, of: str, empty: bool = False) -> list[Any]:
        if not isinstance(value, list) or not (value or empty):
            raise self._error(at, f"expected a list of {of}{'' if empty else ', at least one'}; got {value!r:.60}")
        return value

    def _mapping(self, value: Any, at: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._error(at, f"expected an object of names to schemas, got {value!r:.60}")
        return value


def _as_it_is(name: str, at: str) -> str:
    return name


def _down(at: str, name: str) -> str:
    """The place of a member, its name escaped as JSON pointers do: https://www.rfc-editor.org/rfc/rfc6901#section-3."""
    return f"{at}/{name.replace('~', '~0').replace('/', '~1')}"
