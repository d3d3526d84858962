"""pull, models and rm, as a user meets them."""
from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pellucid.weights import hub as pellucid_hub
from pellucid.weights import hub_cache
from tests.cli.conftest import ROOT, Said, environment
from tests.hub.fixtures import NAME, WEIGHTS
from tests.hub.server import Hub, Repo

Say = Callable[..., Said]
COMMIT = "a" * 40


@pytest.mark.parametrize(("command", "options"), [
    ("pull", {"--revision", "--file", "--all", "--offline", "--verify", "--dry-run", "--json", "--debug", "-h", "--help"}),
    ("models", {"--license", "--hosting", "--fits", "--kind", "--context", "--open", "--min", "--family", "--maker", "--language", "--runs", "--sort",
                "--local", "--families", "--json", "--debug", "-h", "--help"}), ("rm", {"-y", "--yes", "--json", "--debug", "-h", "--help"})])
def test_the_options_are_these(command: str, options: set[str], say: Say) -> None:
    listed = say(command, "--help").out.split("Options:")[1]
    assert set(re.findall(r"^ +(-\w)\b|(?:^ +|, )(--[\w-]+)", listed, re.M)) == {(o, "") if len(o) == 2 else ("", o) for o in options}


def test_after_a_pull_without_weights_that_can_run_no_chat_is_proposed(hub: Hub, say: Say, cache: Path) -> None:
    hub.repos["acme/packed"] = Repo({"a.gguf": b"GGUF"})
    assert say("pull", "acme/packed", "--file", "a.gguf").err.endswith("next: pellucid models --local\n")


# the programs

def test_a_model_is_pulled_listed_found_and_removed(hub: Hub, program: Say, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "hub" / "models--acme--tiny-llama" / "snapshots" / COMMIT
    pulled = program("pull", NAME, HF_ENDPOINT=hub.url)
    assert (pulled.code, pulled.out) == (0, f"{folder}\n")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    lines = pulled.err.splitlines()
    assert lines[0] == f"pulling {NAME}@{COMMIT[:12]}: 3.0 MB to come"
    assert re.fullmatch(rf"{NAME}  main = commit {COMMIT[:12]} · 7 files, 3.0 MB · 3.0 MB downloaded in [\d.]+ s, [\d.]+ .?B/s · license apache-2.0", lines[1])
    assert lines[2:] == [f"next: pellucid chat {NAME}"]

    listed = program("models", "--local")
    assert listed.code == 0
    assert re.search(rf"^{NAME} +3.0 MB  \d{{4}}-\d\d-\d\d  {COMMIT[:12]} main$", listed.out, re.M)
    assert f"1 downloaded, 3.0 MB, in {tmp_path / 'home' / 'hub'}\nnext: pellucid show {NAME}" in listed.err

    refused = program("rm", NAME)
    assert (refused.code, refused.err) == (2, f"error: nobody is at the terminal to confirm the deletion of {NAME} (3.0 MB). Add --yes\n")
    removed = program("rm", NAME, "--yes")
    assert (removed.code, removed.out) == (0, f"deleted {NAME}, 3.0 MB are free again\n")
    assert not folder.exists()
    assert "0 downloaded" in program("models", "--local").err


def test_a_bar_with_rate_and_time_left_on_a_terminal(hub: Hub, tmp_path: Path) -> None:
    hub.stall.set()
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "pellucid", "pull", NAME], stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT,
                          env=environment(tmp_path, HF_ENDPOINT=hub.url, COLUMNS="100", TERM="xterm")) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # how Linux says that the last writer of a terminal has left
            while part := os.read(ours, 65536):
                seen += part
                if b"/3.0 MB" in seen:  # drawn while the data had stopped in the middle: the rate needs more than one look at the clock
                    hub.stall.clear()
        assert process.stdout
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"acme/tiny-llama.*/3.0 MB.*B/s.*:\d\d", seen, re.S)
    assert out.decode().strip().endswith(COMMIT)


def test_ctrl_c_keeps_what_arrived_and_the_next_pull_goes_on(hub: Hub, program: Say, tmp_path: Path) -> None:
    hub.stall.set()
    blobs = tmp_path / "home" / "hub" / "models--acme--tiny-llama" / "blobs"
    with subprocess.Popen([sys.executable, "-m", "pellucid", "pull", NAME, "--file", "model.safetensors"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          cwd=ROOT, env=environment(tmp_path, HF_ENDPOINT=hub.url),
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:  # ignored where a suite runs in the background
        until = time.monotonic() + 30
        while time.monotonic() < until and not any(path.stat().st_size >= len(WEIGHTS) // 2 for path in blobs.glob("*.incomplete")):
            time.sleep(0.02)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert time.monotonic() - start < 5  # it does not wait for the server
    hub.stall.clear()
    hub.requests.clear()
    again = program("pull", NAME, "--file", "model.safetensors", HF_ENDPOINT=hub.url)
    assert (Path(again.out.strip()) / "model.safetensors").read_bytes() == WEIGHTS
    assert "1.5 MB to come, 1.5 MB already here" in again.err
    assert [r.range for r in hub.asked("model.safetensors") if r.address == "storage"] == [f"bytes={len(WEIGHTS) // 2}-"]


def test_a_disk_that_fills_up_is_words_and_exit_code_1(hub: Hub, program: Say, tmp_path: Path) -> None:
    blob = tmp_path / "home" / "hub" / "models--acme--tiny-llama" / "blobs" / (hub.repos[NAME].sibling("model.safetensors")["lfs"]["sha256"] + ".incomplete")
    blob.parent.mkdir(parents=True)
    blob.symlink_to("/dev/full")
    said = program("pull", NAME, "--json", HF_ENDPOINT=hub.url)
    error = json.loads(said.out)["error"]
    assert said.code == 1
    assert error["type"] == "DiskFull"
    assert re.match(r"acme/tiny-llama needs 0.00 GB more \(\d+ bytes\), [\d.]+ GB \(\d+ bytes\) are free in .*what arrived so far is kept", error["message"])
    assert error["needed_bytes"] >= len(WEIGHTS)
    assert "Traceback" not in said.err


def test_offline_is_also_an_environment_variable(hub: Hub, program: Say) -> None:
    said = program("pull", NAME, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert said.code == 1
    assert said.err.startswith(f"error: offline, and {NAME!r} is not on this disk")
    assert hub.requests == []


# in this process

def test_pull_json(hub: Hub, say: Say, cache: Path) -> None:
    said = say("pull", f"{NAME}@{COMMIT}", "--json")
    value = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert {key: value[key] for key in ("repo", "revision", "commit", "downloaded_bytes", "license")} == {
        "repo": NAME, "revision": COMMIT, "commit": COMMIT, "downloaded_bytes": 3_000_052, "license": "apache-2.0"}
    assert value["path"] == str(hub_cache.storage(NAME, cache) / "snapshots" / COMMIT)
    assert said.err.endswith(f"next: pellucid chat {NAME}@{COMMIT}\n")


def test_a_dry_run_brings_nothing(hub: Hub, say: Say, cache: Path) -> None:
    said = say("pull", NAME, "--dry-run")
    assert "   3.0 MB  model.safetensors\n" in said.out
    assert f"{NAME}  main = commit {COMMIT[:12]} · 3.0 MB, 3.0 MB to come · 9 files left out\n" in said.err
    value = json.loads(say("pull", NAME, "--dry-run", "--json").out)
    assert (value["n_bytes"], value["missing_bytes"], value["commit"]) == (3_000_052, 3_000_052, COMMIT)
    assert "pytorch_model.bin" in value["left_out"]
    assert not cache.exists()


def test_all_file_and_verify_reach_the_hub(hub: Hub, say: Say) -> None:
    folder = Path(say("pull", NAME, "--file", "tf_model.h5", "--file", "onnx/*").out.strip())
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"tf_model.h5", "model.onnx"}
    (folder / "tf_model.h5").resolve().write_bytes(b"ft")
    say("pull", NAME, "--all")
    assert (folder / "tf_model.h5").read_bytes() == b"ft"
    say("pull", NAME, "--all", "--verify")
    assert (folder / "tf_model.h5").read_bytes() == b"tf"
    assert (folder / "pytorch_model.bin").is_file()


@pytest.mark.parametrize(("args", "code", "kind"), [
    (["acme/tiny-lama"], 2, "ModelNotFound"), ([f"{NAME}@v9"], 2, "ModelNotFound"), (["nonsense"], 2, "BadRequest"),
    ([NAME, "--file", "nothing*"], 2, "BadRequest"), ([NAME, "--offline"], 1, "NotCached")])
def test_what_is_wrong_is_said_with_its_kind(hub: Hub, say: Say, args: list[str], code: int, kind: str) -> None:
    said = say("pull", *args, "--json")
    assert (said.code, json.loads(said.out)["error"]["type"]) == (code, kind)


def test_a_gated_repository_fails_with_advice(hub: Hub, say: Say) -> None:
    hub.repos[NAME].gated = True
    said = say("pull", NAME)
    assert said.code == 1
    assert f"error: {NAME} is gated: " in said.err
    assert "hf auth login" in said.err


def test_models_json(hub: Hub, say: Say, cache: Path) -> None:
    pellucid_hub.pull(NAME)
    said = json.loads(say("models", "--local", "--json").out)
    assert said["folder"] == str(hub_cache.cache_folder())
    value = [model for model in said["models"] if model["repo"] != "shipped"]
    assert [{key: model[key] for key in ("repo", "commit", "revisions", "n_bytes", "verified", "interrupted")} for model in value] == [
        {"repo": NAME, "commit": COMMIT, "revisions": ["main"], "n_bytes": 3_000_052, "verified": True, "interrupted": False}]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value[0]["last_used"])


def test_models_shows_an_interrupted_pull_and_the_shipped_model(hub: Hub, say: Say, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_cache, "__file__", str(tmp_path / "pellucid" / "weights" / "hub_cache.py"))
    blobs = hub_cache.storage(NAME, cache) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "x.incomplete").write_bytes(b"12345")
    said = say("models", "--local")
    assert re.fullmatch(rf"{NAME}    5 bytes  [\d-]+  interrupted\n", said.out)
    assert said.err.endswith(f"next: pellucid pull {NAME}\n")
    (tmp_path / "pellucid" / "shipped").mkdir(parents=True)
    (tmp_path / "pellucid" / "shipped" / "config.json").write_text("{}")
    said = say("models", "--local")
    assert re.search(r"^shipped +2 bytes  [\d-]+  in the package$", said.out, re.M)
    assert said.err.endswith("1 downloaded, 5 bytes, in " + str(cache) + "\nnext: pellucid show shipped\n")


def test_nothing_downloaded_says_where_it_looked(hub: Hub, say: Say, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_cache, "__file__", str(tmp_path / "pellucid" / "weights" / "hub_cache.py"))
    assert say("models", "--local") == Said(0, "", f"0 downloaded, 0 bytes, in {cache}\nnext: pellucid pull OWNER/NAME\n")


class Terminal:
    """A stdin at which somebody types one answer."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.answer


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)])
def test_rm_asks_first(hub: Hub, say: Say, monkeypatch: pytest.MonkeyPatch, answer: str, gone: bool) -> None:
    folder = pellucid_hub.pull(NAME).path
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    said = say("rm", NAME)
    assert said.err.startswith(f"Delete {NAME} (3.0 MB) from ")
    assert folder.exists() is not gone
    assert said.code == (0 if gone else 1)
    assert ("nothing was deleted" in said.err) is not gone


def test_rm_does_not_ask_about_what_is_not_here(hub: Hub, say: Say) -> None:
    said = say("rm", "acme/nothing", "--json")
    assert (said.code, json.loads(said.out)["error"]["type"]) == (2, "ModelNotFound")


def test_rm_deletes_no_folder_of_the_user(hub: Hub, say: Say, tmp_path: Path) -> None:
    said = say("rm", str(tmp_path), "--yes")
    assert said.code == 2
    assert "is not a downloaded repository: expected owner/name or owner/name@revision. A folder of your own is yours to delete" in said.err
    assert tmp_path.exists()


def test_rm_json_names_the_bytes(hub: Hub, say: Say) -> None:
    pellucid_hub.pull(NAME)
    value = json.loads(say("rm", f"{NAME}@main", "--yes", "--json").out)
    assert value == {"repo": NAME, "revision": "main", "freed_bytes": 3_000_052}


def test_the_families_are_listed_with_what_each_covers_and_how_it_was_proven(program: Say) -> None:
    listed = program("models", "--families")
    assert listed.code == 0
    assert re.search(r"^llama +Llama 1 to 3\.3, Alpaca, Vicuna, .*\n"
                     r" +proven: \de-0\d from transformers 5\.23\.0 · vLLM yes · llama\.cpp llama · transformers yes$", listed.out, re.M)
    assert re.search(r"^gemma3 .*\n +proven: by the family it wraps · ", listed.out, re.M)
    assert re.fullmatch(r"\d+ families; the other engines' lists as of 20\d\d-\d\d-\d\d; docs/families\.md has every case\n"
                        r"next: pellucid pull OWNER/NAME\n", listed.err)


def test_the_families_as_json_are_those_of_the_page(say: Say) -> None:
    said = json.loads(say("models", "--families", "--json").out)
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf8")
    assert {"read_on", "vllm", "llama_cpp", "transformers"} == set(said["sources"])
    for row in said["families"]:
        proof = row["proof"]
        proven = f"{proof['against']} | {proof['cases']} | {proof['error']:.1e} | " if proof else "– | – | – | "
        assert f"| {row['name']} | " in page
        assert f" | {row['checkpoints']} | {proven}" in page
    assert len(said["families"]) == page.split("## What each case proves")[0].count("\n| ") - 2
