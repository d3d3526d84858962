"""A run that is killed and goes on, however often and wherever, is the run that was never stopped: weights, optimizer, best, data, random state."""
from __future__ import annotations

import json
import multiprocessing
import random
import re
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pellucid.train import checkpoint
from tests.train import mortal


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Each is a process of its own that has imported already what takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.mortal"])
    return context


def lived(processes: ForkServerContext, folder: Path, settings: dict[str, Any], lines: int | None, *, function: str | None = None,
          seconds: float | None = None) -> bool:
    """Whether it came to its end. seconds: when it is killed from outside."""
    folder.mkdir(exist_ok=True)
    process = processes.Process(target=mortal.live, args=(folder, settings, lines, function))
    process.start()
    process.join(60 if seconds is None else seconds)
    if process.is_alive():
        assert seconds is not None, "it hangs"
        process.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def same(folder: Path, straight: Path) -> None:
    ours, theirs = load_file(folder / "end.safetensors"), load_file(straight / "end.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert json.loads((folder / "end.json").read_text()) == json.loads((straight / "end.json").read_text())
    said = [json.loads(line) for line in (straight / "steps.jsonl").read_text().splitlines()]
    for line in (folder / "steps.jsonl").read_text().splitlines():  # a step that was made again was the same: its rows, its loss to the last bit
        again = json.loads(line)
        assert again == said[again["step"] - 1]


@pytest.mark.parametrize("settings", [{"tune": {"kind": "full"}}, {"tune": {"kind": "lora", "rank": 2}, "optim": {"name": "muon", "lr": 1e-2}},
                                      {"tune": {"kind": "full"}, "optim": {"name": "adamw8bit", "lr": 1e-2}}], ids=["full", "muon", "8bit"])
def test_killed_in_the_middle_of_any_line(processes: ForkServerContext, tmp_path: Path, settings: dict[str, Any]) -> None:
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    assert lived(processes, straight, settings, None)
    draw, deaths = random.Random(str(settings)), 0
    while not lived(processes, folder, settings, draw.randrange(100, 900)):
        deaths += 1
        assert deaths < 100, "it gets nowhere"
    assert deaths >= 3
    same(folder, straight)


def test_killed_wherever_a_state_is_written_or_deleted(processes: ForkServerContext, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tune": {"kind": "lora", "rank": 2}}
    straight = tmp_path / "straight"
    assert lived(processes, straight, settings, None)
    left = set()
    for function, lines in [("_remove", 2), ("_remove", 3), ("_remove", 5), ("_remove", 6), ("_write", 10), *(("save", n) for n in range(60, 150, 12))]:
        folder = tmp_path / f"{function} {lines}"
        assert not lived(processes, folder, settings, lines, function=function)
        assert checkpoint.states(folder), "what was there to go on from is gone"
        left |= {re.sub(r"-\d+", "", place.name) for place in (folder / checkpoint.FOLDER).glob(".*")}
        assert lived(processes, folder, settings, None)
        same(folder, straight)
    assert left == {".best.part", ".step.part", ".best.old.part", ".step.old.part"}


def test_killed_at_any_time_from_outside(processes: ForkServerContext, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tune": {"kind": "full"}}
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    began = time.monotonic()
    assert lived(processes, straight, settings, None)
    whole, draw, deaths = time.monotonic() - began, random.Random(3), 0
    while not lived(processes, folder, settings, None, seconds=draw.uniform(0.4, 0.95) * whole):
        deaths += 1
        assert deaths < 100, "it gets nowhere"
    assert deaths
    same(folder, straight)
