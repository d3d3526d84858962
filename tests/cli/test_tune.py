"""`pellucid tune` over real files: what it writes runs, and what cannot be is said before a step is made."""
from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pellucid.records import Record

from .conftest import Said

Say = Callable[..., Said]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw = random.Random(1)
    rows = []
    for i in range(60):
        who, what = draw.choice(["Ann", "Bob", "Tom"]), draw.choice(["tea", "milk", "ham"])
        rows.append({"messages": [{"role": "user", "content": f"{who} wants {i} {what}"}, {"role": "assistant", "content": f"{who}: {what}"}]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text("model: {path: shipped}\ndata:\n  sources: [{path: rows.jsonl, license: mit}]\n  held_out: 8\noptim: {lr: 3.0e-3}\n"
                                     "batch: 4\nsteps: 6\nout: {folder: out}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("more", [[], ["tune.dora=true"]])
def test_an_adapter_is_trained_written_and_used(say: Say, here: Path, more: list[str]) -> None:
    done = say("tune", "r.yaml", "--json", *more)
    told = json.loads(done.out)
    assert (told["kind"], told["steps"]) == ("adapter", 6)
    assert "trained" in done.err
    assert "lora_a" in done.err
    assert ("lora_m" in done.err) == bool(more)
    events = [json.loads(line) for line in (here / "out/log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "stepped"]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    held = [event["loss"] for event in events if event["event"] == "evaluated"]
    assert held[-1] < held[0]
    record = Record.read(told["record"])
    assert (record.kind, record.settings["recipe"]["steps"]) == ("tune", 6)
    assert "data 0/rows.jsonl" in record.inputs
    answer = say("run", "shipped", "--adapter", told["out"], "-p", "Question: Ann wants 3 tea\n\nAnswer:", "--max-tokens", "5", "--temperature", "0")
    assert answer.code == 0


def test_a_whole_model_is_trained_checked_and_runs(say: Say, here: Path) -> None:
    told = json.loads(say("tune", "r.yaml", "tune.kind=full", "optim.lr=1e-3", "--json").out)
    assert told["kind"] == "merged"
    assert told["survived"]["share"] > 0.9
    assert say("run", told["out"], "-p", "Once", "--max-tokens", "3").code == 0
    shown = say("show", told["out"], "--lineage")
    assert "rows.jsonl" in shown.out
    assert "mit" in shown.out.lower()


def test_the_license_of_the_data_stops_a_tune_before_a_step_and_goes_along_with_the_adapter(say: Say, here: Path) -> None:
    (here / "pellucid.toml").write_text("[use]\ncommercial = true\n")
    nc = (here / "r.yaml").read_text().replace("license: mit", "license: cc-by-nc-4.0")
    (here / "nc.yaml").write_text(nc)
    said = say("tune", "nc.yaml", "steps=2")
    assert said.code == 1
    assert "[CC-BY-NC-4.0 2(a)(1), 1(i)] · from rows.jsonl" in said.err
    assert "step 1/2" not in said.err
    told = json.loads(say("tune", "nc.yaml", "steps=2", "--json", "--permission", "letter of May").out)
    adapter = Path(told["out"])
    assert "permission: letter of May" in Record.read(told["record"]).notes
    written = (adapter / "README.md").read_text()
    assert "license_name: Apache-2.0 AND CC-BY-NC-4.0\n" in written
    assert "└─ trained on rows.jsonl  cc-by-nc-4.0 (the recipe)" in written
    refused = say("convert", str(adapter), "a.gguf")
    assert (refused.code, (here / "a.gguf").exists()) == (1, False)
    assert "is not allowed with adapter: " in refused.err
    assert say("convert", str(adapter), "a.gguf", "--permission", "letter of June").code == 0
    assert "permission: letter of June" in Record.read("a.record.json").notes
    for record, place in ((told["record"], adapter), ("a.record.json", here / "a.gguf")):
        Path(record).unlink()  # what the files say by themselves
        assert "trained on rows.jsonl  cc-by-nc-4.0 (the recipe)" in say("show", str(place), "--lineage").out


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_record_run_again_gives_the_same_bytes_and_says_where_it_does_not(say: Say, here: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    told = json.loads(say("tune", "r.yaml", f"tune.kind={kind}", "steps=2", "--json").out)
    monkeypatch.chdir(here.parent)  # a record is run again from anywhere
    record = here / told["record"]
    again = say("replay", str(record))
    assert again.code == 0
    assert "same: " in again.out
    plain = json.loads(record.read_text())
    plain["settings"]["recipe"]["seed"] = 5
    record.write_text(json.dumps(plain))
    other = say("replay", str(record), "--json")
    assert other.code == 1
    assert json.loads(other.out)["same"] is False


def test_ctrl_c_saves_and_going_on_ends_where_it_would_have(say: Say, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid.train import loop
    straight = json.loads(say("tune", "r.yaml", "out.folder=straight", "--json").out)
    step = loop.step

    def interrupted(run: Any) -> Any:
        event = step(run)
        if event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return event
    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", interrupted)
        stopped = say("tune", "r.yaml")
    assert "stopped after step 3 of 6" in stopped.err
    assert "--resume" in stopped.err
    assert "holds a run that was begun" in say("tune", "r.yaml").err
    assert "batch was 4 and is 5" in say("tune", "r.yaml", "batch=5", "--resume").err
    ended = json.loads(say("tune", "r.yaml", "--resume", "--json").out)
    files = [Path(told["out"]) / "adapter_model.safetensors" for told in (straight, ended)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(("change", "words"), [
    (["data.sources=[{path: none.jsonl}]"], "no data at 'none.jsonl'"),
    (["data.sources=[{path: rows.jsonl, shape: alpaca}]"], "has no column 'instruction'"),
    (["data.max_length=12"], "rows are longer than 12 tokens"),
    (["data.max_length=9999"], "more than this model's context"),
    (["tune.targets=[nothing]"], "matches no matrix"),
    (["model.router_loss=0.1"], "has no experts"),
    (["method=spo"], "is not one.*sft"),
    (["data.held_out=600"], "leaves nothing"),
    (["model.path=nowhere"], "nowhere"),
    (["optim.rate=1"], "which nothing reads"),
])
def test_what_cannot_be_is_said_before_a_step(say: Say, here: Path, change: list[str], words: str) -> None:
    done = say("tune", "r.yaml", *change)
    assert done.code in (1, 2)
    assert re.search(words, done.err), done.err
    assert not (here / "out").exists()


def test_what_cannot_be_written_is_not_lost(say: Say, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the result is written: the state stays, and nothing is trained again."""
    from pellucid.train import outcome

    def full(*args: Any, **how: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(outcome, "_write_adapter", full)
        failed = say("tune", "r.yaml")
    assert failed.code == 1
    assert "No space left" in failed.err
    assert [place.name for place in (here / "out" / "state").iterdir()] == ["step-00000006"]
    assert json.loads(say("tune", "r.yaml", "--resume", "--json").out)["steps"] == 6
    events = [json.loads(line) for line in (here / "out/log.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "stepped" for event in events) == 6


def test_a_process_of_several_that_cannot_find_the_others_says_so(say: Say, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = say("tune", "r.yaml")
    assert done.code == 2
    assert "torchrun --nproc-per-node" in done.err
    assert not (here / "out").exists()


def test_a_dry_run_says_what_would_be_done(say: Say, here: Path) -> None:
    told = json.loads(say("tune", "r.yaml", "--dry-run", "--json").out)
    assert (told["steps"], told["items"], told["held_out"], told["shapes"]) == (6, 52, 8, ["messages"])
    assert told["parameters"] > 0
    assert not (here / "out").exists()


def test_a_preview_shows_what_is_learned_and_writes_nothing(say: Say, here: Path) -> None:
    done = say("tune", "r.yaml", "--preview", "2", "data.shuffle=false", "data.held_out=0")
    answers = [json.loads(line)["messages"][1]["content"] for line in (here / "rows.jsonl").read_text().splitlines()]
    assert [re.search(r"⟦ ?(.*?)<", text).group(1) for text in done.out.split("\n\nrows.jsonl")] == answers[:2]  # type: ignore[union-attr]
    told = json.loads(say("tune", "r.yaml", "--preview", "3", "--json").out)
    assert [len(told["items"]), told["statistics"]["items"], told["shapes"]] == [3, 52, ["messages"]]
    assert len(json.loads(say("tune", "r.yaml", "--preview", "500", "--json").out)["items"]) == 52
    assert not (here / "out").exists()


def test_rows_that_are_alike_or_at_odds_are_told_before_the_first_step(say: Say, here: Path) -> None:
    first = (here / "rows.jsonl").read_text().splitlines()[0]
    other = first.replace('"assistant", "content": "', '"assistant", "content": "Not ')
    with (here / "rows.jsonl").open("a") as file:
        file.write(f"{first}\n{other}\n")
    told = say("tune", "r.yaml", "data.held_out=0", "--dry-run").err
    assert "1 rows are the same as another, first rows.jsonl:61 and rows.jsonl:1" in told
    assert "1 rows are at odds with another, first rows.jsonl:62 and rows.jsonl:1" in told
