"""`pellucid serve` as a program: where it listens, what it refuses, how it stops."""
from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest

from pellucid.errors import BadRequest
from pellucid.records import Record
from tests.api.scripted import scripted_model
from tests.api.test_adapters import turning

from .conftest import Said, environment


def test_it_serves_and_stops_when_told(tmp_path: Path) -> None:
    server = subprocess.Popen([sys.executable, "-m", "pellucid", "serve", "one=shipped", "two=shipped", "--port", "0", "--json"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, env=environment(tmp_path), cwd=tmp_path)
    try:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        assert told["models"] == ["one", "two"]
        answer = httpx.post(f"{told['url']}/completions", json={"prompt": "Once upon", "max_tokens": 3, "model": "two"}, timeout=30, trust_env=False)
        assert answer.json()["usage"]["completion_tokens"] == 3
        server.send_signal(signal.SIGTERM)
        _, noted = server.communicate(timeout=30)
    finally:
        server.kill()
        server.communicate()
    assert "serving one, two at http://127.0.0.1:" in noted
    assert "Traceback" not in noted


def test_it_serves_https_under_another_name_to_so_many_at_once(tmp_path: Path) -> None:
    pem = str(Path(__file__).with_name("localhost.pem"))  # a certificate that signs itself, and its key
    server = subprocess.Popen([sys.executable, "-m", "pellucid", "serve", "shipped", "--served-model-name", "gpt-4o", "--port", "0", "--json", "-q",
                               "--tls-cert", pem, "--tls-key", pem, "--max-connections", "1"], stdout=subprocess.PIPE, text=True, env=environment(tmp_path))
    try:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        assert told["url"].startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=pem)
        with httpx.Client(verify=trusting, trust_env=False, timeout=30) as client:
            assert [card["id"] for card in client.get(f"{told['url']}/models").json()["data"]] == ["gpt-4o"]
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"), httpx.Client(trust_env=False) as other:
                other.get(f"{told['url']}/models")
            with httpx.Client(verify=trusting, trust_env=False, timeout=30) as second:
                assert second.get(f"{told['url']}/models").status_code == 503
        with httpx.Client(verify=trusting, trust_env=False, timeout=30) as client:
            assert client.get(f"{told['url']}/models").status_code == 200
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.mark.parametrize(("args", "words"), [
    (["--host", "0.0.0.0", "--database", "sqlite://"], "there is none in use"),
    (["--keys", "--open"], "contradict each other"),
    (["--tls-cert", "a.pem"], "belong together"),
    (["--tls-cert", "a.pem", "--tls-key", "b.pem"], "is not a file"),
    (["--tool-format", "qwen"], "is not one of auto, harmony, hermes"),
    (["--max-body", "much"], "--max-body 'much' is not a size"),
    (["shipped", "shipped"], "two models are called 'shipped'"),
    (["shipped", "--served-model-name", "a", "--served-model-name", "b"], "--served-model-name is given 2 times for 1 models (shipped)"),
    (["one=shipped", "--served-model-name", "a"], "and none as NAME=MODEL"),
    (["no-such-model"], "no-such-model"),
])
def test_what_cannot_be_is_said_before_anything_is_loaded(say: Callable[..., Said], args: list[str], words: str) -> None:
    said = say("serve", *args)
    assert said.code == 2
    assert words in said.err


def test_an_address_that_others_reach_passes_the_gate(say: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted_model(tmp_path / "abc", [list("abc")])
    (model / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    (tmp_path / "pellucid.toml").write_text("[use]\ncommercial = true\n")
    monkeypatch.chdir(tmp_path)
    said = say("serve", str(model), "--host", "0.0.0.0", "--open")
    assert said.code != 0
    assert "is not allowed with" in said.err
    assert "--permission REFERENCE" in said.err


def test_an_adapter_passes_the_gate_with_all_it_learned_from_and_a_permission_is_recorded(say: Callable[..., Said], tmp_path: Path,
                                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapter = scripted_model(tmp_path / "abc", [list("abc")]), turning(tmp_path / "a", "b", "c")
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (adapter / "README.md").write_text("---\nlicense: apache-2.0\ndatasets: [tatsu-lab/alpaca]\n---\n")
    (tmp_path / "pellucid.toml").write_text("[use]\ncommercial = true\n")
    monkeypatch.chdir(tmp_path)

    def load(path: str, **how: object) -> None:
        raise BadRequest(f"{path} is to be loaded: the gate let it pass", field="model")

    monkeypatch.setattr("pellucid.cli._options.load_model", load)
    asked = ("serve", str(model), "--adapter", f"own={adapter}", "--host", "0.0.0.0", "--open", "--port", "0")
    said = say(*asked)
    assert said.code == 1
    assert "is not allowed with a: rights are given for what is not primarily meant for commercial" in said.err
    assert "is to be loaded: the gate let it pass" in say(*asked, "--permission", "letter of May").err
    record = Record.read(tmp_path / "serve.a.record.json")
    assert (record.kind, record.output["answer"], record.settings["permission"]) == ("serve", "not allowed", "letter of May")
    assert "permission: letter of May" in record.notes
    assert set(record.inputs) == {"adapter_model.safetensors"}
