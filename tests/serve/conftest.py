"""Servers that tests ask over a real socket: each in a thread of this process, ended with its test."""
from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import pellucid
from pellucid.api import Model
from pellucid.serve.desk import Desk
from pellucid.serve.exchange import Limits
from pellucid.serve.keys import Checked
from pellucid.serve.openai import Served
from pellucid.serve.wire import server_of
from tests.api.scripted import scripted_model
from tests.conftest import SHARED
from tests.families.conftest import one_thread  # noqa: F401, a fixture: tiny models

ABC = list("abcdefghijkl")  # "a" goes on with "bcdefghijkl", then ends


class Running:
    """A server and how to ask it."""

    def __init__(self, served: Served, limits: Limits, keys: Checked | None) -> None:
        self.served = served
        self._server = server_of(served, limits, keys, host="127.0.0.1", port=0, log_level="critical", lifespan="on")
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def post(self, path: str, **body: Any) -> Any:
        """The answer's JSON, whatever the status."""
        return self.client.post(path, json=body).json()

    def events(self, path: str, **body: Any) -> list[str]:
        """The data of each event."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            return [line.removeprefix("data: ") for line in answer.iter_lines() if line]

    def engine(self, name: str | None = None) -> Any:
        return self.served.find(name)[1].model.engine

    def connections(self) -> list[Any]:
        """Those that are open."""
        return [*self._server.server_state.connections]

    def buffers(self, n_bytes: int) -> None:
        """How much the kernel holds for a client that does not read; connections that come later have it from the listening socket."""
        self._server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, n_bytes)

    def ask_to_stop(self) -> None:
        self._server.should_exit = True

    def stop(self) -> None:
        self.ask_to_stop()
        self._thread.join()
        self.client.close()


@pytest.fixture(scope="session")
def abc(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return pellucid.load(scripted_model(tmp_path_factory.mktemp("models") / "abc", [ABC, [*"\nYES"]]))


@pytest.fixture(scope="session")
def shipped() -> Model:
    return pellucid.load(Path(pellucid.__file__).parent / "shipped", deterministic=True)  # whatever is computed beside it


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Running]]:
    with contextlib.ExitStack() as stack:
        def start(limits: Limits | None = None, *, max_waiting: int = 64, keys: Checked | None = None, **models: Model) -> Running:
            running = Running(Served({name: Desk(model, max_waiting=max_waiting) for name, model in models.items()}), limits or Limits(drain_seconds=5), keys)
            stack.callback(running.stop)
            return running
        yield start


@pytest.fixture(scope="session")
def server(serve: Callable[..., Running], shipped: Model, abc: Model, stories: Model | None) -> Running:
    """The shipped model, one whose words are known, and stories260k where it is."""
    return serve(shipped=shipped, abc=abc, **({} if stories is None else {"stories": stories}))


TOOLS_TEMPLATE = ("{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
                  "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
                  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its template reads tools, and it writes whatever a grammar lets it."""
    return pellucid.load(scripted_model(tmp_path_factory.mktemp("models") / "caller", [ABC], template=TOOLS_TEMPLATE, n_ctx=512))


@pytest.fixture(scope="session", params=["shipped", pytest.param("stories", marks=pytest.mark.shared)])
def name(request: pytest.FixtureRequest) -> str:
    """The model that clients ask for: the one in the package, and a trained one of others."""
    return str(request.param)


@pytest.fixture(scope="session")
def model(name: str, shipped: Model, stories: Model | None) -> Model:
    found = shipped if name == "shipped" else stories
    assert found is not None
    return found


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Model | None:
    """stories260k, which came without a chat template; None where the data folder is absent."""
    if not SHARED.is_dir():
        return None
    template = tmp_path_factory.mktemp("template") / "chat.jinja"
    template.write_text("{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.content }} "
                        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{% endfor %}")
    return pellucid.load(SHARED / "stories260k", chat_template=template, deterministic=True)
