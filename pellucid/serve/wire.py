"""Connections: how long the head of a request may take, how long a reader may take nothing, how many there are at once, and how they end.

uvicorn bounds neither the first nor the second, tells the third as plain text, and waits for the last without end
(0.54: protocols/http/h11_impl.py and server.py).
"""
from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial
from typing import Any

import h11
import orjson
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pellucid.serve.app import app_of
from pellucid.serve.desk import STEP_SECONDS
from pellucid.serve.exchange import Limits
from pellucid.serve.faults import Refused, answered, told
from pellucid.serve.keys import Checked
from pellucid.serve.openai import Served

LAST_WORDS_SECONDS = 0.5  # for a stopping server to say that an answer was cut, before its connection goes
CROWDED_SECONDS = 1.0  # after so long it is worth connecting again


class Wire(H11Protocol):
    """One connection. h11 reads it whatever else is installed, as it is h11 that bounds the head's length: 64 KiB."""

    def __init__(self, *args: Any, limits: Limits, **more: Any) -> None:
        super().__init__(*args, **more)
        self._limits = limits
        self._inside, self.app = self.app, self._enter
        self._waiting: asyncio.TimerHandle | None = None  # for a head to be whole
        self._stalled: asyncio.TimerHandle | None = None  # for the reader to take something

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting = self.loop.call_later(self._limits.head_seconds, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting, self._stalled = _ended(self._waiting), _ended(self._stalled)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:  # the head is whole, or nothing that could be one
            self._waiting = _ended(self._waiting)
        elif self._waiting is None:  # the first bytes of the next one
            self._waiting = self.loop.call_later(self._limits.head_seconds, self._late)

    def _late(self) -> None:
        self._waiting = None
        if self.conn.trailing_data[0]:
            self._refuse(Refused(408, f"the head of a request was not whole after {self._limits.head_seconds:g} s", "timeout"))
        elif not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = _ended(self._stalled)

    def _watch(self) -> None:
        self._stalled = self.loop.call_later(self._limits.stall_seconds, self._judge, self.transport.get_write_buffer_size())

    def _judge(self, before: int) -> None:
        """Nothing is written while the reader is waited for: what is left grows less where it reads, however slowly."""
        if self.transport.get_write_buffer_size() < before:
            self._watch()
        else:
            self.transport.abort()

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self.connections) <= self._limits.max_connections:
            await self._inside(scope, receive, send)
            return
        error = Refused(503, f"{self._limits.max_connections} connections are open, which is as many as this server takes (--max-connections). Come again in "
                             f"{CROWDED_SECONDS:g} s", "crowded", retry_seconds=CROWDED_SECONDS)
        await answered(scope, error, {"Connection": "close"})(scope, receive, send)

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read, in the shape of every other error."""
        self._refuse(Refused(400, "what came is no HTTP request, or its head has more than 64 KiB", "bad_http"))

    def _refuse(self, error: Refused) -> None:
        status, body, _ = told(error)
        data = orjson.dumps(body)
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is under way already: there is no other to give
            head = h11.Response(status_code=status, headers=[("content-type", "application/json"), ("content-length", str(len(data))), ("connection", "close")])
            for event in (head, h11.Data(data=data), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _ended(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """Told to stop it takes nothing new, ends what is under way within `drain_seconds`, tells what is cut, and is gone whoever still holds a connection."""

    def __init__(self, config: uvicorn.Config, served: Served, limits: Limits) -> None:
        super().__init__(config)
        self._served, self._limits = served, limits

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    async def _end(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._served.close(self._limits.drain_seconds), self._limits.drain_seconds + 2 * STEP_SECONDS)
        await asyncio.sleep(LAST_WORDS_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(LAST_WORDS_SECONDS)
        self.force_exit = True  # whatever uvicorn still waits for


def server_of(served: Served, limits: Limits | None = None, keys: Checked | None = None, hosts: frozenset[str] | None = None, **how: Any) -> Server:
    """The application with its connections bounded; how: uvicorn's settings, such as host and port. hosts: as `app_of` has them."""
    limits = limits or Limits()
    app = app_of(served, limits, keys, hosts)
    http: Any = partial(Wire, limits=limits)
    return Server(uvicorn.Config(app, http=http, access_log=False, server_header=False, **how), served, limits)
