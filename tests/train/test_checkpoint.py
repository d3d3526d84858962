"""A run that goes on from a state is the run that was never stopped, bit for bit; a state of something else is refused."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid.errors import BadCheckpoint, BadRequest
from pellucid.ops.fused import Fused
from pellucid.train import checkpoint
from pellucid.train.loop import Run, train
from pellucid.train.optim import Optimizer
from pellucid.train.sft import NextToken
from pellucid.train.trainable import trained
from tests.train.test_loop import recipe, rows
from tests.train.tiny import tiny_decoder

FACTS = {"optim.lr": 1e-3, "data 0/a.jsonl": "d" * 64}


def begun(steps: int, **facts: Any) -> Run:
    of = recipe(batch=4, **facts)
    decoder, data = tiny_decoder(Fused()), rows(32)
    what = trained(decoder, of.tune, 0)
    return Run(decoder=decoder, trained=what, method=NextToken(), optimizer=Optimizer(what.parameters, of.optim), recipe=of, steps=steps,
               items=lambda step: [data[(4 * step + i) % 32] for i in range(4)])


@pytest.mark.parametrize("optim", ["adamw", "adamw8bit", "muon"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_going_on_is_never_having_stopped(tmp_path: Path, optim: str, kind: str) -> None:
    facts = {"tune": {"kind": kind}, "optim": {"name": optim, "lr": 1e-2, "schedule": "cosine"}}
    straight = begun(12, **facts)
    train(straight)
    first = begun(12, **facts, save={"every": 5})
    first.save = lambda best: checkpoint.save(tmp_path, first, FACTS, keep=2) and None
    first.asked_to_stop = lambda: first.progress.step == 7
    train(first)
    assert [place.name for place in checkpoint.states(tmp_path)] == ["step-00000005", "step-00000007"]
    torch.manual_seed(99)
    again = begun(12, **facts)
    checkpoint.load(checkpoint.states(tmp_path)[-1], again, FACTS)
    assert again.progress.step == 7
    train(again)
    assert again.progress == straight.progress
    for name, p in straight.trained.parameters.items():
        assert torch.equal(p, again.trained.parameters[name]), name


def test_random_draws_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.rand(3)
    place = checkpoint.save(tmp_path, begun(3), FACTS, keep=1)
    expected = torch.rand(4)
    torch.manual_seed(0)
    checkpoint.load(place, begun(3), FACTS)
    assert torch.equal(torch.rand(4), expected)


def test_a_state_of_other_settings_or_data_says_what_changed(tmp_path: Path) -> None:
    place = checkpoint.save(tmp_path, begun(3), FACTS, keep=1)
    with pytest.raises(BadRequest, match=r"optim.lr was 0.001 and is 0.002; data 0/a.jsonl was dddddddddddd… and is eeeeeeeeeeee…. Put it back.*start anew"):
        checkpoint.load(place, begun(3), {"optim.lr": 2e-3, "data 0/a.jsonl": "e" * 64})
    with pytest.raises(BadRequest, match=r"from: data 1/b.jsonl was not there and is ffff"):
        checkpoint.load(place, begun(3), {**FACTS, "data 1/b.jsonl": "ffff"})
    with pytest.raises(BadCheckpoint, match="other tensors than are trained"):
        checkpoint.load(place, begun(3, tune={"kind": "lora"}), FACTS)


@pytest.mark.parametrize("file", ["trained.safetensors", "optimizer.safetensors", "state.json"])
def test_half_a_state_is_refused_and_half_a_writing_is_no_state(tmp_path: Path, file: str) -> None:
    place = checkpoint.save(tmp_path, begun(3), FACTS, keep=1)
    (place / file).write_bytes((place / file).read_bytes()[:-7])
    with pytest.raises(BadCheckpoint, match="no whole state"):
        checkpoint.load(place, begun(3), FACTS)
    (tmp_path / "state" / ".step-00000009.part").mkdir()
    assert checkpoint.states(tmp_path) == [place]
    checkpoint.save(tmp_path, begun(3), FACTS, keep=1)
    assert [left.name for left in (tmp_path / "state").iterdir()] == ["step-00000000"]


def test_so_many_of_the_newest_stay_and_the_best_beside_them(tmp_path: Path) -> None:
    run = begun(9)
    for step in (1, 2, 3, 4):
        run.progress.step = step
        checkpoint.save(tmp_path, run, FACTS, keep=2)
    assert checkpoint.best(tmp_path) is None
    for step in (2, 4):
        run.progress.step = step
        checkpoint.save(tmp_path, run, FACTS, keep=2, best=True)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["best-00000004", "step-00000003", "step-00000004"]
    assert checkpoint.best(tmp_path) == tmp_path / "state" / "best-00000004"
