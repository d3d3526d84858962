"""One request while it is answered: its body, its answer in one piece or as events, and its end when the client goes away."""
from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from pellucid.errors import BadRequest
from pellucid.serve.faults import Refused, told
from pellucid.serve.shapes import AnyShape, read

Handler = Callable[["Exchange"], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the door lets in, and for how long."""

    max_body_bytes: int = 8 << 20  # a context of a million tokens is about four
    max_connections: int = 1000  # at once
    head_seconds: float = 30.0  # until a request's line and headers are whole
    body_seconds: float = 30.0  # until a body is whole
    stall_seconds: float = 60.0  # for a reader that takes nothing of what is written for it
    request_seconds: float | None = None  # until an answer is whole; None = as long as it takes
    drain_seconds: float = 30.0  # for what is under way, when the server is told to stop
    allow_unknown_fields: bool = False


QUERIES = ("beta",)  # anthropic's client marks shapes of a beta so, which are read by their fields


class Exchange(Response):
    """Runs a handler that calls `body` and then `json`, or `event` as often as it likes. What it raises is answered; a client that leaves cancels it.

    done: the last event's data, None where there is none. fault: OpenAI's shape of an error -> another API's.
    """

    def __init__(self, request: Request, handler: Handler, *, limits: Limits, done: str | None = "[DONE]",
                 fault: Callable[[Any], Any] = lambda body: body) -> None:
        self.request, self._handler = request, handler
        self._limits, self._done, self._fault = limits, done, fault
        self.headers_out: dict[str, str] = {}
        self.background = None
        self.status_code = 200
        self._started = self._whole = False
        self._used: tuple[str, int, int] | None = None
        self._writing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._raw = await self._read(receive)
        work, gone = asyncio.create_task(self._work()), asyncio.create_task(_until_gone(receive))
        late = False
        try:
            done, _ = await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED, timeout=self._limits.request_seconds)
            late = not done
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            if late:
                await self._answer(Refused(408, f"it took longer than {self._limits.request_seconds:g} s, which is what this server gives a request "
                                                f"(--timeout). Ask for less, or stream and keep what came", "timeout"))
            await asyncio.shield(self._write_down())

    async def body(self, shape: type[AnyShape]) -> AnyShape:
        """The body as its shape. Raises BadRequest, or Refused where it is too long."""
        if isinstance(self._raw, Exception):
            raise self._raw
        try:
            plain = orjson.loads(self._raw)
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"the body is not JSON: {error}") from None
        try:
            json.loads(self._raw, object_pairs_hook=_each_once)
        except RecursionError:  # orjson goes a little deeper
            raise BadRequest("the body is nested too deep. Flatten it") from None
        for name in self.request.query_params:
            if name not in QUERIES:
                self.ignore(name, "a request has its fields in its body, and nobody reads this one behind the path")
        found, unknown = read(shape, plain, allow_unknown=self._limits.allow_unknown_fields)
        self._tell_ignored(unknown)
        return found

    def ignore(self, field: str, why: str) -> None:
        """Leaves something out that would change nothing, and says so. Raises BadRequest where a server takes no such thing."""
        if not self._limits.allow_unknown_fields:
            raise BadRequest(f"{field}: {why}. Leave it out, or start the server with --allow-unknown-fields", field=field.partition("[")[0])
        self._tell_ignored([field])

    def _tell_ignored(self, fields: Sequence[str]) -> None:
        if shown := [name for name in fields if name.isascii() and name.isprintable()]:
            self.headers_out["X-Ignored-Fields"] = ", ".join([*filter(None, [self.headers_out.get("X-Ignored-Fields")]), *shown])

    def uses(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """What it has taken up to now. Written down on its key before the answer is whole, or when it ends otherwise."""
        self._used = (model, prompt_tokens, completion_tokens)

    async def _write_down(self) -> None:
        used, self._used = self._used, None
        if used is not None and (ledger := self.request.scope.get("state", {}).get("ledger")) is not None:
            self._writing = asyncio.create_task(ledger.used(*used))
        if self._writing is not None and not self._writing.done():
            await asyncio.shield(self._writing)  # a client that leaves meanwhile cancels whoever waits, and not what is written

    async def json(self, value: Any, status: int = 200) -> None:
        """The whole answer."""
        await self._write_down()
        data = orjson.dumps(value)
        await self._start(status, "application/json", [(b"content-length", str(len(data)).encode())])
        await self._send({"type": "http.response.body", "body": data})
        self._whole = True

    async def event(self, value: Any, name: str | None = None) -> None:
        """One of server-sent events."""
        if not self._started:
            await self._start(200, "text/event-stream; charset=utf-8", [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")])
        named = b"" if name is None else b"event: " + name.encode() + b"\n"
        data = value.encode() if isinstance(value, str) else orjson.dumps(value)
        await self._send({"type": "http.response.body", "body": named + b"data: " + data + b"\n\n", "more_body": True})

    async def _start(self, status: int, media: str, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        more = [(name.lower().encode(), value.encode()) for name, value in self.headers_out.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": [(b"content-type", media.encode()), *headers, *more]})

    async def _work(self) -> None:
        try:
            await self._handler(self)
            if not self._whole:
                await self._end()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await self._answer(error)

    async def _answer(self, error: Exception) -> None:
        """What went wrong, as far as there is still somebody to tell."""
        status, plain, headers = told(error)
        body = self._fault(plain)
        if self._whole:
            return
        with contextlib.suppress(OSError):
            if self._started:  # the status is out: the events say what became of it
                await self.event(body, "error" if self._done is None else None)
                await self._end()
            else:
                self.headers_out |= headers
                await self.json(body, status)

    async def _end(self) -> None:
        await self._write_down()
        if self._done is not None:
            await self.event(self._done)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _read(self, receive: Receive) -> bytes | Exception:
        """All of the body, or what is wrong with it."""
        if self.request.method == "GET":
            return b"{}"
        parts, n = [], 0
        until = asyncio.get_running_loop().time() + self._limits.body_seconds
        while True:
            try:
                async with asyncio.timeout_at(until):
                    message: Message = await receive()
            except TimeoutError:
                return Refused(408, f"the body was not whole after {self._limits.body_seconds:g} s", "timeout")
            if message["type"] == "http.disconnect":
                return BadRequest("the client left before its body was whole")
            parts.append(message.get("body", b""))
            n += len(parts[-1])
            if n > self._limits.max_body_bytes:
                most = self._limits.max_body_bytes
                return Refused(413, f"the body has more than {most:,} bytes, which is what this server takes (--max-body)", "body_too_large")
            if not message.get("more_body"):
                return b"".join(parts)


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    """Of two values under one name a parser takes one, and the other is lost. Raises BadRequest."""
    if len(pairs) > len({name for name, _ in pairs}):
        name = next(name for i, (name, _) in enumerate(pairs) if name in [before for before, _ in pairs[:i]])
        raise BadRequest(f"the body has {name!r:.80} twice in one object. Which of the two is meant, nothing says; leave one out", field=name[:80])


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
