"""The page at the end: curves, answers before and after, the data, the masks; whole in one file, and nothing in it runs."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pellucid.train.loop import Evaluated, Stepped
from pellucid.train.outcome import finish
from pellucid.train.recipe import read_recipe
from pellucid.train.report import Score, write_report
from pellucid.train.samples import samples
from pellucid.train.tuning import prepare
from pellucid.train.watch import BOARD, JsonLines, TensorBoard, read_log

EVIL = "<script>alert(1)</script>"


def stepped(step: int, loss: float = 1.0) -> Stepped:
    return Stepped(step=step, steps=9, loss=loss, told={"margin": 0.5}, norm=2.0, lr=1e-3, tokens=10, learned=5, seconds=0.1)


def test_a_tuning_ends_in_one_page(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Say {i}{EVIL}"}, {"role": "assistant", "content": f"{i}{EVIL}"}]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = read_recipe({"model": {"path": "shipped"}, "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}], "held_out": 3},
                          "out": {"folder": str(tmp_path / "out")}, "batch": 2, "steps": 3, "tune": {"rank": 2}})
    log: list[JsonLines] = []
    tuning = prepare(recipe, observe=lambda event: log[0](event))
    log.append(JsonLines(tuning.folder))
    tuning.train()
    log[0].close()
    done = finish(tuning)
    said = samples(tuning, done)
    assert len(said) == 3
    assert all("Say" in each.prompt for each in said)
    page = write_report(tuning, done.plain(), said, [Score("right", 0.25, 0.75)]).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(?:src|href)=", page)
    assert page.count("<polyline") >= 4
    assert page.count("<mark>") == 2  # the two rows of a step
    assert "75.0%" in page
    for name in ("Before and after", "What is learned", "held-out loss", "rows.jsonl:", "batch: 2", tuning.model.sha256):
        assert name in page, name


def test_the_log_is_whole_lines_and_a_step_made_twice_counts_once(tmp_path: Path) -> None:
    first = JsonLines(tmp_path)
    for event in (stepped(1), stepped(2), Evaluated(step=2, loss=3.0, told={}, best=True)):
        first(event)
    first.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "stepp\n')
    again = JsonLines(tmp_path)
    again(stepped(2, loss=0.5))
    again.close()
    told = read_log(tmp_path)
    assert [(e["event"], e["step"], e["loss"]) for e in told] == [("stepped", 1, 1.0), ("stepped", 2, 0.5), ("evaluated", 2, 3.0)]
    assert told[0]["told"] == {"margin": 0.5}
    assert told[0]["memory_bytes"] > 1e6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_is_written_for_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = TensorBoard(tmp_path)
    for event in (stepped(1), stepped(2, 0.5), Evaluated(step=2, loss=3.0, told={}, best=True)):
        board(event)
    board.close()
    read = EventAccumulator(str(tmp_path / BOARD))
    read.Reload()
    assert [(each.step, each.value) for each in read.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert read.Scalars("held_out/loss")[0].value == 3.0
    assert read.Scalars("train/margin")[0].value == 0.5
