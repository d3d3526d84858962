"""What calls of tools are held to while they are written: the schemas of their arguments, and how many there are."""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pellucid.engine.schema import Schema
from pellucid.errors import BadRequest
from pellucid.serve.tools import Harmony, arguments_of, marks


def check(tools: Sequence[Mapping[str, Any]], held: Collection[str]) -> None:
    """Raises BadRequest for tools of one name, whose calls nobody could tell apart, for arguments that are no object, and, of those that are `held` to their
    schemas, for a schema that cannot be enforced.
    """
    for i, tool in enumerate(tools):
        place, schema = f"tools[{i}].function", tool.get("parameters") or {}
        if any(tool["name"] == other["name"] for other in tools[:i]):
            raise BadRequest(f"{place}.name: {tool['name']!r} is the name of another tool too. Give each its own", field="tools")
        if schema.get("type", "object") != "object":
            raise BadRequest(f"{place}.parameters: arguments are an object, and its type is {schema['type']!r}. Put it into one: "
                             f'{{"type": "object", "properties": {{...}}}}', field="tools")
        if tool["name"] in held:
            try:
                Schema(arguments_of(tool), f"{place}.parameters")
            except BadRequest as error:
                raise BadRequest(str(error), field="tools") from None


def forced_schema(tools: Sequence[Mapping[str, Any]], *, parallel: bool) -> dict[str, Any]:
    """What an output that has to be calls of these tools is held to: a list of {"name", "arguments"}, each with the arguments its schema allows."""
    if not tools:
        raise BadRequest("tool_choice asks for a call, and there are no tools. Give some, or leave it out", field="tool_choice")
    each = [{"type": "object", "properties": {"name": {"const": tool["name"]}, "arguments": arguments_of(tool)},
             "required": ["name", "arguments"], "additionalProperties": False} for tool in tools]
    items = each[0] if len(each) == 1 else {"anyOf": each}
    return {"type": "array", "items": items, "minItems": 1, **({} if parallel else {"maxItems": 1})}


def held(name: str, tools: Sequence[Mapping[str, Any]], strict: Collection[str], template: str, spell: Callable[[str], str | int], *,
         parallel: bool, answer: Any = None) -> dict[str, Any]:
    """`tags` for the engine: text as the model likes, and calls of this format, of which those of strict tools follow their schemas.

    template: tells apart the ways a format is written. spell: a mark as it comes from the model, the id of a special token or its text. parallel: whether
    there may be more than one call. answer: the schema of what is written where nothing is called. Raises BadRequest for a format that cannot be held so.
    """
    way = _way(name, template, spell)
    if answer is not None and (way is None or way.get("alone")):
        why = "JSON as the answer is, so that nothing tells them apart" if way is not None else "not held to anything while it chooses whether it calls"
        raise BadRequest(f"tools and response_format are both given, and calls as this model writes them ({name}) are {why}. Leave one of them out, or say "
                         f"tool_choice='none'", field="response_format")
    if way is None:
        why = f"tool {min(strict)!r} is strict" if strict else "parallel_tool_calls is false"
        raise BadRequest(f"{why}, and calls as this model writes them ({name}) are not held to anything while it chooses whether it calls. "
                         f"Say tool_choice='required', name the function, or leave that out", field="tools" if strict else "parallel_tool_calls")
    known = marks(name)

    def spelled(parts: Sequence[Any], tool: str = "") -> list[Any]:
        return [part if isinstance(part, dict) else spell(part) if part in known else part.replace("NAME", tool) for part in parts]
    tags = [{"begin": spelled(way["begin"], tool["name"]), "end": spelled(way["end"]),
             "schema": arguments_of(tool) if tool["name"] in strict else {"type": "object"}} for tool in tools]
    around = {key: spelled(way[key]) for key in ("open", "close", "free", "between") if key in way}
    separator = spelled(way["separator"]) if parallel and "separator" in way else None
    if answer is not None:
        around |= {"answer": answer, "final": spelled(way.get("final", ())), **({"free": spelled(way["aside"])} if "aside" in way else {})}
    return {"tags": tags, **around, "separator": separator, "alone": way.get("alone", False), "last": way.get("last", False) or not parallel}


def _way(name: str, template: str, spell: Callable[[str], str | int]) -> dict[str, Any] | None:
    """How calls of this format stand in an output: parts as engine/source.py's `tags` have them. None where that cannot be said."""
    if name == "mistral" and "[ARGS]" in template:  # since the tokenizer's v11; v11 itself numbers its calls
        number: list[Any] = ["[CALL_ID]", {"regex": "[a-zA-Z0-9]{9}"}] if "[CALL_ID]" in template else []
        return {"open": ["[TOOL_CALLS]"], "begin": ["NAME", *number, "[ARGS]"], "end": [], "separator": ["[TOOL_CALLS]"], "last": True}
    if name == "deepseek" and "```json" in template:  # V3 and R1
        return {**_WAYS[name], "begin": ["<｜tool▁call▁begin｜>", "function", "<｜tool▁sep｜>", "NAME\n```json\n"],
                "end": ["\n```", "<｜tool▁call▁end｜>"], "separator": ["\n"]}
    if name == "harmony" and any(isinstance(spell(mark), str) for mark in Harmony.MARKS):
        return None  # marks that are text could stand in a message as text
    return None if "<function=" in template else _WAYS.get(name)  # Qwen 3 Coder's arguments are no JSON


# Of calls without marks around them, the output is one or the other. A space may follow Mistral's mark: its tokenizers before Tekken put one.
_WAYS: dict[str, dict[str, Any]] = {
    "hermes": {"open": ["<tool_call>"], "begin": ['\n{"name": "NAME", "arguments": '], "end": ["}\n"], "close": ["</tool_call>"]},
    "mistral": {"open": ["[TOOL_CALLS]", {"regex": r"\x20?\["}], "begin": ['{"name": "NAME", "arguments": '], "end": ["}"],
                "separator": [", "], "close": ["]"], "last": True},
    "deepseek": {"open": ["<｜tool▁calls▁begin｜>"], "begin": ["<｜tool▁call▁begin｜>", "NAME", "<｜tool▁sep｜>"], "end": ["<｜tool▁call▁end｜>"],
                 "separator": [], "close": ["<｜tool▁calls▁end｜>"]},
    "harmony": {"begin": ["<|channel|>", "commentary to=functions.NAME ", "<|constrain|>", "json", "<|message|>"], "end": [],
                "free": ["<|channel|>", {"regex": "analysis|commentary|final"}, "<|message|>", {"regex": r"(.|\n)*"}],
                "aside": ["<|channel|>", {"regex": "analysis|commentary"}, "<|message|>", {"regex": r"(.|\n)*"}],
                "final": ["<|channel|>", "final", "<|message|>"],
                "between": ["<|end|>", "<|start|>", "assistant"]},
    "llama3": {"begin": ['{"name": "NAME", "parameters": '], "end": ["}"], "separator": ["; "], "alone": True},
    "json": {"begin": ['{"name": "NAME", "arguments": '], "end": ["}"], "separator": ["; "], "alone": True}}
