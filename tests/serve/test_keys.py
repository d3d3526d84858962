"""Keys: who comes in, what each may do, how often; what was used is on the disk before the answer is whole."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest

from pellucid.api import Model
from pellucid.errors import BadRequest, PellucidError
from pellucid.serve.keys import Bucket, Checked, Keys
from tests.cli.conftest import Said, environment, say

from .conftest import Running

__all__ = ["say"]
ASKED = {"prompt": "a", "max_tokens": 3, "temperature": 0}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(f"sqlite:///{tmp_path}/keys.db")


@pytest.fixture
def guarded(serve: Callable[..., Running], abc: Model, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setattr("pellucid.serve.door.NEW_SECONDS", 0.0)  # tests make keys faster than people
    return serve(keys=Checked(keys), abc=abc)


def ask(server: Running, key: str | None, path: str = "/v1/completions", header: str = "authorization") -> httpx.Response:
    shown = {} if key is None else {header: f"Bearer {key}" if header == "authorization" else key}
    return server.client.post(path, json=ASKED, headers=shown)


def test_only_a_known_key_opens(guarded: Running, keys: Keys) -> None:
    key, told = keys.add("alice")
    assert ask(guarded, told).status_code == 200
    assert ask(guarded, told, header="x-api-key").status_code == 200
    for wrong in (None, "pk-x", "nonsense", told[:-1], told + "a", f"pk-{key.id}-", f"pk-00000000-{told.split('-', 2)[2]}"):
        answer = ask(guarded, wrong)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), wrong
    assert guarded.client.get("/health").status_code == 200
    assert guarded.client.get("/v1/models").status_code == 401


def test_a_key_is_kept_as_its_hash(keys: Keys, tmp_path: Path) -> None:
    _, told = keys.add("alice")
    secret = told.split("-", 2)[2].encode()
    assert all(secret not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_revoked_or_expired_key_opens_nothing(serve: Callable[..., Running], abc: Model, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.serve.door.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("pellucid.serve.door.NEW_SECONDS", 0.0)
    running = serve(keys=Checked(keys), abc=abc)
    _, told = keys.add("alice")
    assert ask(running, told).status_code == 200
    keys.revoke("alice")
    assert "was revoked" in ask(running, told).json()["error"]["message"]
    _, old = keys.add("bob", expires=time.time() - 1)
    assert "has expired" in ask(running, old).json()["error"]["message"]
    assert [key.name.split(" ")[0] for key in keys.all()] == ["alice", "bob"]
    keys.add("alice")  # the name is free again


def test_a_key_does_what_its_scopes_say(guarded: Running, keys: Keys) -> None:
    _, told = keys.add("reader", scopes=["tokens"])
    head = {"authorization": f"Bearer {told}"}
    assert guarded.client.post("/tokenize", json={"prompt": "a"}, headers=head).status_code == 200
    assert guarded.client.get("/v1/models", headers=head).status_code == 200
    for answer in (ask(guarded, told), ask(guarded, told, "/v1/embeddings"), guarded.client.get("/metrics", headers=head)):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope")


def test_a_key_asks_so_often_and_takes_so_many_tokens(guarded: Running, keys: Keys) -> None:
    _, seldom = keys.add("seldom", requests_per_minute=2)
    assert [ask(guarded, seldom).status_code for _ in range(3)] == [200, 200, 429]
    assert 25 <= int(ask(guarded, seldom).headers["retry-after"]) <= 30
    _, short = keys.add("short", tokens_per_minute=4)  # a request takes 1 + 3
    assert [ask(guarded, short).status_code for _ in range(2)] == [200, 429]


def test_a_bucket_fills_as_time_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pellucid.serve.keys.time.monotonic", lambda: now[0])
    bucket = Bucket(60)
    bucket.take(60)
    assert bucket.wait_seconds(1) == pytest.approx(1.0)
    now[0] = 1.5
    assert bucket.wait_seconds(1) == 0
    now[0] = 1e6
    bucket.take(60)
    assert bucket.wait_seconds(1) == pytest.approx(1.0)  # never more than a minute's worth


def test_what_a_key_used_is_counted_also_of_a_client_that_left(guarded: Running, keys: Keys) -> None:
    key, told = keys.add("alice")
    ask(guarded, told)
    head = {"authorization": f"Bearer {told}"}
    with guarded.client.stream("POST", "/v1/completions", json={**ASKED, "stream": True}, headers=head) as answer:
        assert "data: [DONE]" in list(answer.iter_lines())
    [row] = keys.usage()
    assert (row["key_id"], row["model"], row["requests"], row["prompt_tokens"], row["completion_tokens"]) == (key.id, "abc", 2, 2, 6)
    with guarded.client.stream("POST", "/v1/completions", json={**ASKED, "max_tokens": 100, "stream": True, "ignore_eos": True}, headers=head) as answer:
        next(answer.iter_lines())
    until = time.monotonic() + 30
    while keys.usage()[0]["requests"] < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert 6 < keys.usage()[0]["completion_tokens"] <= 106


def test_usage_survives_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/keys.db"
    _, told = Keys(url).add("alice")
    server = subprocess.Popen([sys.executable, "-m", "pellucid", "serve", "--port", "0", "--database", url, "--json", "-q"], stdout=subprocess.PIPE,
                              text=True, env=environment(tmp_path), cwd=tmp_path)
    try:
        assert server.stdout is not None
        where = json.loads(server.stdout.readline())["url"]
        answer = httpx.post(f"{where}/completions", json=ASKED, headers={"x-api-key": told}, timeout=30, trust_env=False)
        server.send_signal(signal.SIGKILL)
    finally:
        server.kill()
        server.communicate()
    [row] = Keys(url).usage()
    assert row["completion_tokens"] == answer.json()["usage"]["completion_tokens"] == 3


def test_the_command_adds_lists_and_revokes(say: Callable[..., Said], tmp_path: Path) -> None:
    where = ["--database", f"sqlite:///{tmp_path}/k/keys.db"]
    made = json.loads(say("keys", "add", "alice", "--expires", "2d", "--json", *where).out)
    assert made["expires"] == pytest.approx(time.time() + 2 * 86400, abs=60)
    assert say("keys", "add", "alice", *where).code == 2
    listed = say("keys", "list", *where).out.splitlines()
    assert listed[1].split()[:3] == [made["id"], "alice", "in"]
    assert "in use until 20" in listed[1]
    assert "no limit" in listed[1]
    assert say("keys", "add", "bob", "--requests-per-minute", "60", "--tokens-per-minute", "20000", *where).code == 0
    assert "60 requests, 20,000 tokens" in say("keys", "list", *where).out.splitlines()[2]
    assert say("keys", "revoke", made["id"], *where).code == 0
    assert json.loads(say("keys", "list", "--json", *where).out)["keys"][0]["revoked"] is not None


@pytest.mark.parametrize(("args", "words"), [
    (["open"], "none of add, list and revoke"), (["add"], "wants a name"), (["list", "x"], "takes no name"), (["revoke", "nobody"], "no key 'nobody' in use"),
    (["add", "a", "--scope", "all"], "'all' is not a scope"), (["add", "a", "--expires", "soon"], "is not a time"),
    (["list", "--expires", "2d"], "takes no --scope"),
    (["add", "a", "--requests-per-minute", "0"], "out of range")])
def test_a_misused_command_says_why(say: Callable[..., Said], tmp_path: Path, args: list[str], words: str) -> None:
    said = say("keys", *args, "--database", f"sqlite:///{tmp_path}/keys.db")
    assert said.code == 2
    assert words in said.err


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database at all, and longer than a header has to be: " * 20)
    for url in ("nonsense", "mysql+none://x", f"sqlite:///{tmp_path}/file"):
        with pytest.raises(PellucidError, match="cannot be opened"):
            Keys(url)
    with pytest.raises(BadRequest, match="opens nothing"):
        Keys("sqlite://").add("a", scopes=[])
