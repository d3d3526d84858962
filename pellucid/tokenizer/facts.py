"""What the small files beside a vocabulary say: special tokens, BOS and EOS, chat templates.

Read: tokenizer_config.json, special_tokens_map.json, added_tokens.json, the template files, and config.json where the others are silent.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pellucid.errors import BadTokenizer
from pellucid.tokenizer.encode import Token

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """roles: "bos_token" -> its text, None where a file says there is none. ids: the same roles -> id, from config.json.

    add_bos, add_eos: None where no file says. tokens: every token named anywhere, with its id where one is given.
    """

    roles: Mapping[str, str | None] = field(default_factory=dict)
    ids: Mapping[str, int] = field(default_factory=dict)
    tokens: tuple[Token, ...] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None
    templates: Mapping[str, str] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def read_facts(folder: Path) -> Facts:
    """The facts in a folder; files that are not there say nothing. Raises BadTokenizer for one that is not what its name says."""
    tokenizer_config, special_map = read_object(folder / "tokenizer_config.json"), read_object(folder / "special_tokens_map.json")
    config = read_object(folder / "config.json")
    roles: dict[str, str | None] = {}
    for source in (special_map, tokenizer_config):  # the later one wins
        roles |= {role: _text_of(source[role], role) for role in ROLES if role in source}
    tokens = {t.text: t for t in _added_tokens(folder, tokenizer_config)}
    for text in [*roles.values(), *_more(special_map), *_more(tokenizer_config)]:
        if text is not None:
            tokens[text] = replace(tokens.get(text, Token(text=text)), special=True)
    add_bos, add_eos = (_flag(tokenizer_config, key) for key in ("add_bos_token", "add_eos_token"))
    return Facts(roles=roles, ids=dict(_config_ids(config)), tokens=tuple(tokens.values()), add_bos=add_bos, add_eos=add_eos,
                 templates=_templates(folder, tokenizer_config), tokenizer_config=tokenizer_config, config=config)


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        raw = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise BadTokenizer(f"{file} is not JSON: {error}. Download it again.") from None
    if not isinstance(raw, dict):
        raise BadTokenizer(f"{file} holds {type(raw).__name__}, not an object. Download it again.")
    return raw


def _text_of(value: Any, role: str) -> str | None:
    """A token as the files write it: null, a text, or an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value or None
    raise BadTokenizer(f"tokenizer_config.json or special_tokens_map.json has {role}={value!r}; expected a text, an object with a "
                       f"content, or null.")


def _more(source: Mapping[str, Any]) -> Iterator[str | None]:
    """additional_special_tokens, which transformers 5 calls extra_special_tokens."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = source.get(key) or []
        for token in value.values() if isinstance(value, dict) else value:
            yield _text_of(token, key)


def _added_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> Iterator[Token]:
    for text, i in read_object(folder / "added_tokens.json").items():
        yield Token(text=text, id=int(i), special=False)
    for i, facts in (tokenizer_config.get("added_tokens_decoder") or {}).items():
        if not isinstance(facts, dict) or not isinstance(facts.get("content"), str) or not str(i).isdigit():
            raise BadTokenizer(f"added_tokens_decoder of {folder / 'tokenizer_config.json'} has {i!r}: {facts!r}; expected an id and an "
                               f"object with a content.")
        if facts["content"]:
            flags = {key: bool(facts.get(key, False)) for key in ("special", "lstrip", "rstrip", "single_word", "normalized")}
            yield Token(text=facts["content"], id=int(i), **flags)


def _flag(source: Mapping[str, Any], key: str) -> bool | None:
    value = source.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise BadTokenizer(f"tokenizer_config.json has {key}={value!r}; expected true or false.")


def _config_ids(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """BOS and EOS ids of config.json, or of the text_config of a multimodal wrapper. Of several EOS ids, the first."""
    text = config.get("text_config")
    for source in (config, text if isinstance(text, dict) else {}):
        for key in ("bos_token_id", "eos_token_id"):
            value = source.get(key)
            value = value[0] if isinstance(value, list) and value else value
            if isinstance(value, int):
                yield key.removesuffix("_id"), value


def _templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> source. A file of its own wins over tokenizer_config.json, as in transformers."""
    found: dict[str, str] = {}
    stated = tokenizer_config.get("chat_template")
    if isinstance(stated, str):
        found["default"] = stated
    elif isinstance(stated, list) and all(isinstance(t, dict) and {str} == {type(t.get(k)) for k in ("name", "template")} for t in stated):
        found |= {t["name"]: t["template"] for t in stated}
    elif stated is not None:
        raise BadTokenizer(f"chat_template of {folder / 'tokenizer_config.json'} is {type(stated).__name__}; expected a text or a list of "
                           f"objects with a name and a template.")
    if isinstance(in_json := read_object(folder / "chat_template.json").get("chat_template"), str):
        found["default"] = in_json
    if (file := folder / "chat_template.jinja").is_file():
        found["default"] = file.read_text("utf-8")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[file.stem] = file.read_text("utf-8")
    return found
