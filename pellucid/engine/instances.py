"""What instances a schema can have: whether any ends, whether two schemas share one, what a value breaks. As far as types, listed values and required
names show."""
from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from pellucid.engine.formats import FORMATS

Plain = dict[str, Any] | bool

TYPES = ("null", "boolean", "number", "string", "array", "object")
BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": operator.ge, "exclusiveMinimum": operator.gt, "maximum": operator.le, "exclusiveMaximum": operator.lt, "multipleOf": lambda a, b: a % b == 0}
COUNTS = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems"), "object": ("minProperties", "maxProperties")}


def type_of(value: Any) -> str:
    """The JSON type of a value, "integer" for whole numbers."""
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return kinds[type(value)]


def ends(node: Plain, ending: set[str]) -> bool:
    """Whether a plain schema has an instance, given the names of those that have; bounds and intersections are not looked at."""
    if isinstance(node, bool):
        return node
    if "$ref" in node and node["$ref"].removeprefix("#/$defs/") not in ending:
        return False
    if not all(ends(each, ending) for each in node.get("allOf", ())) or not any(ends(each, ending) for each in node.get("anyOf", (True,))):
        return False
    stated = node.get("type", TYPES)
    return "const" in node or "enum" in node or any(_ends_as(kind, node, ending) for kind in ([stated] if isinstance(stated, str) else stated))


def _ends_as(kind: str, node: dict[str, Any], ending: set[str]) -> bool:
    if kind == "array":
        listed, least = node.get("prefixItems", []), node.get("minItems", 0)
        return all(ends(each, ending) for each in listed[:least]) and (least <= len(listed) or ends(node.get("items", True), ending))
    if kind == "object":
        rest = node.get("additionalProperties", True)
        return all(ends(node.get("properties", {}).get(name, True if node.get("patternProperties") else rest), ending)
                   for name in node.get("required", ()))
    return True


def apart(a: Any, b: Any, resolve: Callable[[Any, str], Any], depth: int = 0) -> bool:
    """Whether no value can satisfy both schemas, as far as types, listed values and required properties show."""
    if depth > 8 or isinstance(a, bool) or isinstance(b, bool):
        return a is False or b is False
    for one, other in ((a, b), (b, a)):
        if "$ref" in one and apart(resolve(one["$ref"], "#"), other, resolve, depth + 1):
            return True
        if any(apart(each, other, resolve, depth + 1) for each in one.get("allOf", ())):
            return True
        if any(all(apart(each, other, resolve, depth + 1) for each in one[key]) for key in ("anyOf", "oneOf") if key in one):
            return True
    values_a, values_b = _values(a), _values(b)
    if values_a is not None and values_b is not None:
        return not {spelled(x) for x in values_a} & {spelled(y) for y in values_b}
    common = _kinds(a) & _kinds(b)
    if common - {"object"}:
        return False
    if not common:
        return True
    for one, other in ((a, b), (b, a)):
        for name in one.get("required", ()):
            theirs = other.get("properties", {})
            if name not in theirs and other.get("additionalProperties", True) is False and not other.get("patternProperties"):
                return True
            if name in one.get("properties", {}) and name in theirs and apart(one["properties"][name], theirs[name], resolve, depth + 1) \
                    and name in other.get("required", ()):
                return True
    return False


def broken(node: dict[str, Any], value: Any, matches: Callable[[str, str], bool]) -> str | None:
    """The keyword of a checked schema that a value does not meet; None where there is none, as far as its own keywords show, without what stands inside.

    matches: whether a pattern is found in a text.
    """
    kind = type_of(value)
    if kind in ("integer", "number"):
        number = Fraction(str(value))  # as it is written: 0.3 is a multiple of 0.1
        return next((key for key, holds in BOUNDS.items() if key in node and not holds(number, Fraction(str(node[key])))), None)
    if kind not in COUNTS:
        return None
    low, high = COUNTS[kind]
    if not node.get(low, 0) <= len(value) <= node.get(high, len(value)):
        return low if len(value) < node.get(low, 0) else high
    if kind == "string":
        if "pattern" in node and not matches(node["pattern"], value):
            return "pattern"
        if "format" in node:
            source, longest = FORMATS[node["format"]]
            return None if re.fullmatch(source, value) and len(value) <= (longest or len(value)) else "format"
    return "required" if kind == "object" and not set(node.get("required", ())) <= value.keys() else None


def _values(node: dict[str, Any]) -> list[Any] | None:
    return [node["const"]] if "const" in node else node.get("enum")


def _kinds(node: dict[str, Any]) -> set[str]:
    """The types a schema allows, whole numbers counted as numbers."""
    values = _values(node)
    stated = node.get("type", list(TYPES)) if values is None else [type_of(v) for v in values]
    return {"number" if kind == "integer" else kind for kind in ([stated] if isinstance(stated, str) else stated)}


def spelled(value: Any) -> str:
    """A text that equal values of JSON share, 1 and 1.0 among them."""
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(sorted(f'{json.dumps(k)}:{spelled(v)}' for k, v in value.items()))}}}"
    return json.dumps(int(value) if isinstance(value, float) and value == int(value) else value)


def scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from scalars(each)
    else:
        yield value
