"""A server of this machine alone answers to its own names: another site's page, whose name is made to point here, gets nothing."""
from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from pellucid.serve.door import HERE, Hosts


def ask(host: str | None, names: frozenset[str] = HERE, origin: str | None = None) -> tuple[int, Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'"in"'})

    async def run() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
        headers = [(name, value.encode()) for name, value in ((b"host", host), (b"origin", origin)) if value is not None]
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


@pytest.mark.parametrize(("host", "origin"), [("localhost:8000", "http://localhost:8000"), ("127.0.0.1:8000", "HTTP://127.0.0.1:8000"),
                                              ("127.0.0.1:8000", "https://chat.example"), ("chat.example", "https://chat.example:8443")])
def test_a_page_of_its_own_is_answered_also_behind_a_proxy(host: str, origin: str) -> None:
    assert ask(host, HERE | {"chat.example"}, origin) == (200, "in")


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000", "http://127.0.0.1:80@evil.example", "null", "", "https://localhost.evil.example"])
def test_a_page_of_another_site_is_refused_though_it_names_this_server_rightly(origin: str) -> None:
    status, body = ask("127.0.0.1:8000", HERE | {"chat.example"}, origin)
    assert status == 403
    assert body["error"]["message"].startswith(f"a page of {origin!r} asks, and this server answers pages of its own alone.")
