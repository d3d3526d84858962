"""`pellucid keys`: who may use a server."""
from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.cli._shown import show
from pellucid.errors import BadRequest, MissingExtra

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def command(
    action: Annotated[str, typer.Argument(metavar="add|list|revoke", help="What to do.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of the key to add, or its name or id to revoke it.")] = None,
    scope: Annotated[list[str] | None, typer.Option("--scope", help="generate, embed, tokens or metrics; may be repeated; else all but metrics.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option("--requests-per-minute", metavar="N", help="How often it may ask.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option("--tokens-per-minute", metavar="N", help="How many tokens, of prompts and answers.")] = None,
    expires: Annotated[str | None, typer.Option("--expires", metavar="30d", help="After so many minutes (m), hours (h), days (d) or weeks (w).")] = None,
    database: Annotated[str | None, typer.Option("--database", metavar="URL", help="Where keys are kept, such as sqlite:///keys.db or postgresql://...; "
                                                                                     "else a file in your config folder.")] = None,
    json: Json = False,
) -> None:
    """Keys of `pellucid serve`, and what each has used. A key is shown once, when it is made; only its hash is kept.

    \b
    pellucid keys add alice --requests-per-minute 60 --expires 30d
    pellucid keys list
    pellucid keys revoke alice
    """
    if action not in ("add", "list", "revoke"):
        raise BadRequest(f"{action!r} is none of add, list and revoke", field="action")
    if (name is None) != (action == "list"):
        raise BadRequest(f"keys {action} {'takes no' if action == 'list' else 'wants a'} name", field="name")
    if action != "add" and (scope or requests_per_minute or tokens_per_minute or expires):
        raise BadRequest(f"keys {action} takes no --scope, --expires or limits; they are of keys add", field="scope")
    try:
        from pellucid.serve.keys import USUAL, Keys
    except ImportError as error:
        raise MissingExtra(f"a database of keys ({error.name})", "serve") from None
    keys = Keys(database)
    if action == "add":
        until = None if expires is None else time.time() + _seconds(expires)
        key, told = keys.add(name or "", scopes=scope or USUAL, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, expires=until)
        if json:
            emit({"id": key.id, "name": key.name, "key": told, "scopes": list(key.scopes), "expires": key.expires})
        else:
            show(f"{told}\n")
            note(f"key {key.id}, called {key.name}; keep it now, it is not shown again")
            next_step("pellucid", "serve", "--keys")
    elif action == "revoke":
        key = keys.revoke(name or "")
        emit({"id": key.id, "name": key.name, "revoked": True}) if json else note(f"key {key.id}, called {key.name}, opens nothing any more")
    else:
        _list(keys, json)


def _list(keys, json: bool) -> None:  # type: ignore[no-untyped-def]  # Keys, whose library may be missing
    used: dict[str, list[int]] = {}
    rows = keys.usage()
    for row in rows:
        sums = used.setdefault(row["key_id"], [0, 0, 0])
        for i, what in enumerate(("requests", "prompt_tokens", "completion_tokens")):
            sums[i] += row[what]
    now = time.time()
    if json:
        shown = ("id", "name", "scopes", "requests_per_minute", "tokens_per_minute", "created", "expires", "revoked")
        emit({"keys": [{field: getattr(key, field) for field in shown} for key in keys.all()], "usage": rows})
        return
    lines = [("id", "name", "state", "scopes", "a minute", "requests", "tokens in", "tokens out")]
    for key in keys.all():
        n = used.get(key.id, [0, 0, 0])
        lines.append((key.id, key.name, _state(key, now), " ".join(key.scopes), _limits(key), *(f"{i:,}" for i in n)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        show("  ".join(f"{cell:>{w}}" if i > 4 else f"{cell:{w}}" for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip() + "\n")
    if len(lines) == 1:
        next_step("pellucid", "keys", "add", "NAME")


def _state(key, now: float) -> str:  # type: ignore[no-untyped-def]  # a Key, as above
    if why := key.why_not(now):
        return str(why).removeprefix("was ").removeprefix("has ")
    return "in use" if key.expires is None else f"in use until {time.strftime('%Y-%m-%d %H:%M', time.localtime(key.expires))}"


def _limits(key) -> str:  # type: ignore[no-untyped-def]
    limits = [f"{n:,} {what}" for n, what in ((key.requests_per_minute, "requests"), (key.tokens_per_minute, "tokens")) if n is not None]
    return ", ".join(limits) or "no limit"


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)([mhdw])", text.strip())
    if found is None or not int(found[1]):
        raise BadRequest(f"--expires {text!r} is not a time such as 90m, 12h, 30d or 4w", field="expires")
    return int(found[1]) * _UNITS[found[2]]
