"""Connections: what comes too slowly, is not read, is too much or is no HTTP; and how all of them end when the server stops."""
from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest

from pellucid.api import Model
from pellucid.serve.exchange import Limits

from .conftest import Running
from .test_openai import wait_for

LONG = {"prompt": "Once", "max_tokens": 1000, "n": 64, "ignore_eos": True, "seed": 7, "logprobs": 5}  # a minute's work


def connect(running: Running, **options: Any) -> socket.socket:
    wire = socket.socket()
    for name, value in options.items():
        wire.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    wire.settimeout(30)
    wire.connect(("127.0.0.1", running.port))
    return wire


def ask(wire: socket.socket, **body: Any) -> None:
    data = json.dumps(body).encode()
    wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data))


def rest(wire: socket.socket) -> bytes:
    """What comes until the connection ends."""
    return b"".join(iter(lambda: wire.recv(1 << 20), b""))


def error_of(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head
    return json.loads(body)["error"]


def test_a_stopping_server_waits_so_long_and_tells_what_it_cut(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(Limits(drain_seconds=0.2), shipped=shipped)
    whole: list[httpx.Response] = []
    other = threading.Thread(target=lambda: whole.append(running.client.post("/v1/completions", json={**LONG, "n": 8})))
    with connect(running) as wire:
        ask(wire, **LONG, stream=True)
        told: list[bytes] = []
        reader = threading.Thread(target=lambda: told.append(rest(wire)))
        reader.start()
        other.start()
        wait_for(lambda: running.served.find(None)[1].n_under_way == 72)
        started = time.monotonic()
        running.stop()
        assert time.monotonic() - started < 10
        reader.join(), other.join()
    assert b"the server stopped before this was finished" in told[0]
    assert told[0].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert (whole[0].status_code, whole[0].json()["error"]["code"], whole[0].headers["retry-after"]) == (503, "closing", "1")
    assert running.engine().report().n_running == 0


def test_nobody_who_holds_a_connection_keeps_a_server_from_stopping(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(Limits(drain_seconds=0.2), shipped=shipped)
    running.buffers(16_384)
    with connect(running, SO_RCVBUF=4096) as deaf, connect(running) as slow, connect(running):
        ask(deaf, **LONG, stream=True)
        slow.sendall(b"GET /health HT")
        wait_for(lambda: running.engine().report().n_running == 64)
        started = time.monotonic()
        running.stop()
        assert time.monotonic() - started < 10


def test_the_head_of_a_request_has_to_come_in_time(serve: Callable[..., Running], abc: Model) -> None:
    running = serve(Limits(head_seconds=0.2), abc=abc)
    with connect(running) as silent, connect(running) as slow, connect(running) as second:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-")
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += second.recv(1000)
        second.sendall(b"G")
        assert rest(silent) == b""
        for late in (slow, second):
            answer = rest(late)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert error_of(answer)["message"] == "the head of a request was not whole after 0.2 s"
    wait_for(lambda: not running.connections())


def test_an_answer_may_take_longer_than_a_head(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(Limits(head_seconds=0.05), shipped=shipped)
    answer = running.post("/v1/completions", prompt="Once", max_tokens=900, stop="no such words", ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 900


def test_a_reader_that_takes_nothing_is_let_go_and_a_slow_one_is_not(serve: Callable[..., Running], shipped: Model) -> None:
    running = serve(Limits(stall_seconds=0.5), shipped=shipped)
    running.buffers(16_384)
    desk = running.served.find(None)[1]
    with connect(running, SO_RCVBUF=4096) as deaf, connect(running, SO_RCVBUF=4096) as slow:
        ask(deaf, **{**LONG, "n": 4, "max_tokens": 300}, stream=True)
        ask(slow, **{**LONG, "n": 4, "max_tokens": 100}, stream=True)
        wait_for(lambda: desk.n_under_way == 8)
        answer, until = b"", time.monotonic() + 30
        while not answer.endswith(b"[DONE]\n\n\r\n0\r\n\r\n"):
            assert time.monotonic() < until
            answer += slow.recv(1 << 12)
            time.sleep(0.02)  # 120 kB take longer than stall_seconds
        wait_for(lambda: desk.n_under_way == 0)
        assert b"[DONE]" not in rest(deaf)


def test_as_many_connections_as_were_said_and_no_more(serve: Callable[..., Running], abc: Model) -> None:
    running = serve(Limits(max_connections=2), abc=abc)
    with connect(running), connect(running) as last:
        wait_for(lambda: len(running.connections()) == 2)
        refused = running.client.post("/v1/completions", json={"prompt": "a"})
        assert (refused.status_code, refused.headers["retry-after"], refused.headers["connection"]) == (503, "1", "close")
        assert refused.json()["error"]["code"] == "crowded"
        assert "(--max-connections)" in refused.json()["error"]["message"]
        last.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b'{"status":"ok"}' in rest(last)
    wait_for(lambda: not running.connections())
    assert running.client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize("sent", [b"\x16\x03\x01hello\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 70_000,
                                  b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"], ids=["other", "long", "length"])
def test_what_is_no_http_is_told_so_in_the_same_shape(server: Running, sent: bytes) -> None:
    with connect(server) as wire:
        wire.sendall(sent)
        answer = rest(wire)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_of(answer)["message"] == "what came is no HTTP request, or its head has more than 64 KiB"


def test_faults_before_a_handler_have_anthropics_shape_where_its_client_asks(serve: Callable[..., Running], abc: Model) -> None:
    running = serve(Limits(max_connections=1), abc=abc)
    assert running.client.post("/v1/messages/batches", json={}).json() == \
        {"type": "error", "error": {"type": "invalid_request_error", "message": "POST /v1/messages/batches: Not Found"}}
    with connect(running):
        wait_for(lambda: len(running.connections()) == 2)
        crowded = running.client.post("/v1/messages", json={}).json()
    assert (crowded["type"], crowded["error"]["type"]) == ("error", "api_error")
