"""A server of this machine alone answers to its own names: another site's page, whose name is made to point here, gets nothing."""
from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from pellucid.serve.door import HERE, Hosts


def ask(host: str | None, names: frozenset[str] = HERE) -> tuple[int, Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'"in"'})

    async def run() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
        headers = [] if host is None else [(b"host", host.encode())]
        await Hosts(app, names)({"type": "http", "method": "GET", "path": "/", "headers": headers}, None, send)  # type: ignore[arg-type]
        return sent
    start, body = asyncio.run(run())
    return start["status"], json.loads(body["body"])


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "LOCALHOST:1"])
def test_its_own_names_are_answered(host: str) -> None:
    assert ask(host) == (200, "in")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:80", "", None])
def test_others_are_refused_with_what_to_do(host: str | None) -> None:
    status, said = ask(host)
    assert status == 403
    assert "--allow-host" in said["error"]["message"]


def test_a_name_that_was_allowed_is_answered() -> None:
    assert ask("models.example:443", HERE | {"models.example"}) == (200, "in")
