"""What the small files beside a vocabulary say: special tokens, BOS and EOS, chat templates.

Read: tokenizer_config.json, special_tokens_map.json, added_tokens.json, the template files, and config.json where the others are silent.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pellucid.errors import BadTokenizer
from pellucid.records import read_object
from pellucid.tokenizer.encode import Token

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_IDS = 2**32  # ids there can be: the `tokenizers` library counts them in 32 bits


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
    tokenizer_config, special_map = _object(folder / "tokenizer_config.json"), _object(folder / "special_tokens_map.json")
    config = _object(folder / "config.json")
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


def _object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    return read_object(file, BadTokenizer, str(file)) if file.is_file() else {}


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
        if not isinstance(value, list | dict):
            raise BadTokenizer(f"tokenizer_config.json or special_tokens_map.json has {key}={value!r:.80}; expected a list of tokens, or an object of them.")
        for token in value.values() if isinstance(value, dict) else value:
            yield _text_of(token, key)


def _added_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> Iterator[Token]:
    for text, i in _object(folder / "added_tokens.json").items():
        if type(i) is not int or not 0 <= i < _IDS:
            raise BadTokenizer(f"{folder / 'added_tokens.json'} gives {text!r} the id {i!r:.80}; expected a whole number from 0.")
        yield Token(text=text, id=i, special=False)
    decoder = tokenizer_config.get("added_tokens_decoder") or {}
    where = f"added_tokens_decoder of {folder / 'tokenizer_config.json'}"
    if not isinstance(decoder, dict):
        raise BadTokenizer(f"{where} is {decoder!r:.80}; expected an object from ids to tokens.")
    for i, facts in decoder.items():
        if not isinstance(facts, dict) or not isinstance(facts.get("content"), str) or not i.isdecimal() or int(i) >= _IDS:
            raise BadTokenizer(f"{where} has {i!r}: {facts!r:.200}; expected an id and an object with a content.")
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
    for file, facts in (("tokenizer_config.json", tokenizer_config), ("chat_template.json", _object(folder / "chat_template.json"))):
        stated = facts.get("chat_template")
        if isinstance(stated, str):
            found["default"] = stated
        elif isinstance(stated, list) and all(isinstance(t, dict) and {str} == {type(t.get(k)) for k in ("name", "template")} for t in stated):
            found |= {t["name"]: t["template"] for t in stated}
        elif stated is not None:
            raise BadTokenizer(f"chat_template of {folder / file} is {type(stated).__name__}; expected a text or a list of objects with a name and "
                               f"a template.")
    if (alone := folder / "chat_template.jinja").is_file():
        found["default"] = _text(alone)
    return found | {file.stem: _text(file) for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadTokenizer(f"{file} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}. Download it again.") from None
