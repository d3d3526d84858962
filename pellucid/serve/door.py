"""Who comes in: keys, what each may do, and how often. An ASGI layer around the application."""
from __future__ import annotations

import asyncio
import math
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pellucid.serve.faults import Refused, answered
from pellucid.serve.keys import FRESH_SECONDS, NEW_SECONDS, Checked, Key
from pellucid.serve.page import FILES

OPEN = ("/health", "/version", *FILES)  # for whoever watches over the server; the page, which asks for the key itself
SCOPE_OF = {"/v1/embeddings": "embed", "/tokenize": "tokens", "/detokenize": "tokens", "/metrics": "metrics"}
LISTED = ("/v1/models", "/openapi.json", "/report")  # with any key


class Door:
    """Lets in who shows a key that is known, in `Authorization: Bearer` or `x-api-key`. What a request then uses is written down by its exchange."""

    def __init__(self, app: ASGIApp, keys: Checked) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        try:
            key = await self._key(Headers(scope=scope), scope["path"])
        except Refused as error:
            await answered(scope, error, {"WWW-Authenticate": "Bearer"} if error.status == 401 else None)(scope, receive, send)
            return
        scope.setdefault("state", {})["ledger"] = Ledger(self._keys, key)
        await self._app(scope, receive, send)

    async def _key(self, headers: Headers, path: str) -> Key:
        kind, _, shown = headers.get("authorization", "").partition(" ")
        shown = shown.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not shown:
            raise Refused(401, "this server wants a key: Authorization: Bearer pk-... Its owner makes one with `pellucid keys add NAME`", "no_key")
        key = None if self._keys.stale(FRESH_SECONDS) else self._keys.find(shown)
        if key is None and self._keys.stale(NEW_SECONDS):
            await asyncio.to_thread(self._keys.refresh)
            key = self._keys.find(shown)
        if key is None:
            raise Refused(401, "the key is not known here. Is it whole, and of this server?", "invalid_api_key")
        if why := key.why_not(time.time()):
            raise Refused(401, f"the key {key.id} {why}. Ask the server's owner for another", "invalid_api_key")
        if not path.startswith(LISTED) and (wanted := SCOPE_OF.get(path, "generate")) not in key.scopes:
            raise Refused(403, f"{path} wants a key with the scope {wanted!r}, and the key {key.id} has {', '.join(key.scopes)}", "scope")
        if wait := self._keys.wait_seconds(key):
            rates = {"requests": key.requests_per_minute, "tokens": key.tokens_per_minute}
            limits = ", ".join(f"{limit:,} {what} a minute" for what, limit in rates.items() if limit)
            raise Refused(429, f"the key {key.id} may have {limits}. Ask again in {math.ceil(wait)} s", "rate_limit", retry_seconds=wait)
        return key


HERE = frozenset({"localhost", "127.0.0.1", "[::1]"})  # what a request for a server of this machine alone calls it


class Hosts:
    """Answers requests that call the server by a name it has, and come from no page of another site.

    Where no key is asked for, such a page could else use it: its own name is made to point here, and the browser takes it for the site (DNS rebinding); or it
    sends a form or a text, which browsers let it do without asking, though they keep the answer from it: https://fetch.spec.whatwg.org/#http-network-or-cache-fetch
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (error := self._refusal(Headers(scope=scope))) is None:
            await self._app(scope, receive, send)
        else:
            await answered(scope, error)(scope, receive, send)

    def _refusal(self, headers: Headers) -> Refused | None:
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if (name := _name(host)) not in self._names:
            return Refused(403, f"this server is not called {name!r:.80} (it is {', '.join(sorted(self._names))}). If it should be, start it with "
                                f"--allow-host {name or 'NAME'}", "host")
        if origin is None:  # no browser, or a page that only looks
            return None
        at = origin.lower().partition("://")[2]
        if at == host or _name(at) in self._names - HERE:  # a proxy may call the server by another name than the browser does
            return None
        return Refused(403, f"a page of {origin!r:.80} asks, and this server answers pages of its own alone. If it is a name of this server, start it with "
                            f"--allow-host {_name(at) or 'NAME'}", "origin")


def _name(host: str) -> str:
    """Without its port."""
    return host if host.endswith("]") else host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host


class Ledger:
    """Where a request's tokens are written down, on its key."""

    def __init__(self, keys: Checked, key: Key) -> None:
        self._keys, self.key = keys, key

    async def used(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Returns once it is on the disk."""
        self._keys.spent(self.key, prompt_tokens + completion_tokens)
        await asyncio.to_thread(self._keys.keys.used, self.key.id, model, prompt_tokens, completion_tokens)
