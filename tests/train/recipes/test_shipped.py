"""Every shipped recipe is read, has a header that says how it is run, and makes its first steps on rows of its shape."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from pellucid.errors import BadRequest
from pellucid.train.loop import Event, Evaluated, Stepped
from pellucid.train.recipe import read_recipe
from pellucid.train.recipes import about, find, shipped
from pellucid.train.tuning import prepare

ROWS = {
    "chat_lora": [{"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": word}]} for word in ("one", "two", "six", "ten")],
    "dpo": [{"prompt": f"Say {word}.", "chosen": word, "rejected": "no"} for word in ("one", "two", "six", "ten")],
    "documents": [{"text": f"There were {word} of them, and the rain fell on all alike."} for word in ("one", "two", "six", "ten")]}
ROWS["qlora"] = ROWS["chat_lora"]


@pytest.mark.parametrize("name", shipped())
def test_a_recipe_makes_its_first_steps(name: str, tmp_path: Path) -> None:
    overrides = [f"out.folder={tmp_path / 'out'}", "steps=2", "batch=3", "eval.every=0", "save.every=0", "threads=1"]
    if name == "niche":
        overrides += ["data.sources.0.n=12", "data.held_out.n=3", "eval.exact_match.rows=3"]
    else:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        overrides += [f"data.sources.0.path={tmp_path / 'rows.jsonl'}", "data.held_out=1"]
    events: list[Event] = []
    tuning = prepare(read_recipe(name, overrides), observe=events.append)
    tuning.train()
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2]
    assert [event.step for event in events if isinstance(event, Evaluated)] == [0, 2]


@pytest.mark.parametrize("name", shipped())
def test_a_header_says_command_memory_minutes_and_what_comes_of_it(name: str) -> None:
    header = [line for line in find(name).read_text().splitlines() if line.startswith("#")]
    assert f"#   pellucid tune {name}" in "\n".join(header)
    assert len(about(find(name))) > 40
    assert any("GB" in line and "min" in line and "two cores" in line for line in header)


def test_a_name_nobody_ships_is_told_with_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"'nich' is not shipped. Did you mean niche\? There are chat_lora, documents, dpo, niche, qlora"):
        read_recipe("nich")
