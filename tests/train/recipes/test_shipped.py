"""Every shipped recipe is read, has a header that says how it is run, and makes its first steps on rows of its shape."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

import pellucid
from pellucid.errors import BadRequest
from pellucid.train.loop import Evaluated, Event, Stepped
from pellucid.train.outcome import finish
from pellucid.train.recipe import read_recipe
from pellucid.train.recipes import about, find, shipped
from pellucid.train.scores import scores
from pellucid.train.tuning import prepare
from pellucid.weights.packed_rows import PackedWeight

ROWS = {
    "chat_lora": [{"messages": [{"role": "user", "content": f"Say {word}."}, {"role": "assistant", "content": word}]} for word in ("one", "two", "six", "ten")],
    "dpo": [{"prompt": f"Say {word}.", "chosen": word, "rejected": "no"} for word in ("one", "two", "six", "ten")],
    "documents": [{"text": f"There were {word} of them, and the rain fell on all alike."} for word in ("one", "two", "six", "ten")]}
TEMPLATE = find("niche", ".jinja")
ROWS["qlora"] = ROWS["chat_lora"]


@pytest.mark.parametrize("name", shipped())
def test_a_recipe_makes_its_first_steps(name: str, tmp_path: Path) -> None:
    overrides = [f"out.folder={tmp_path / 'out'}", "steps=2", "batch=3", "eval.every=0", "save.every=0", "threads=1"]
    if name == "niche":
        overrides += ["data.sources.0.n=12", "data.held_out.n=3", "eval.exact_match.rows=3"]
    else:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        overrides += [f"data.sources.0.path={tmp_path / 'rows.jsonl'}", "data.held_out=1"]
    if name == "qlora":
        overrides += ["model.path=shipped"]
    events: list[Event] = []
    tuning = prepare(read_recipe(name, overrides), observe=events.append)
    tuning.train()
    assert any(isinstance(weight, PackedWeight) for weight in tuning.model.decoder.weights().values()) == (name == "qlora")
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2]
    assert [event.step for event in events if isinstance(event, Evaluated)] == [0, 2]


@pytest.mark.parametrize("name", shipped())
def test_a_header_says_command_memory_minutes_and_what_comes_of_it(name: str) -> None:
    header = " ".join(line for line in find(name).read_text().splitlines() if line.startswith("#"))
    assert f"#   pellucid tune {name}" in header
    assert len(about(find(name))) > 40
    for word in ("GB", "min", "two cores"):
        assert word in header


def test_a_name_nobody_ships_is_told_with_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"'nich' is not shipped. Did you mean niche\? There are chat_lora, documents, dpo, niche, qlora"):
        read_recipe("nich")


def test_what_cannot_be_asked_at_the_end_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["chat_lora"]))
    (tmp_path / "bad.json").write_text('{"not": {}}')
    base = [f"out.folder={tmp_path / 'out'}", f"data.sources.0.path={tmp_path / 'rows.jsonl'}", "data.held_out=2", "threads=1"]
    for more, words in ((["eval.exact_match.rows=3"], r"exact_match.rows=3 is more than the 2 rows that are held out"),
                        (["eval.exact_match.rows=2", f"eval.exact_match.schema={tmp_path / 'bad.json'}"], "#/not: not cannot be enforced"),
                        (["model.quantize=nf4", "tune.kind=full"], r"model.quantize=nf4 packs weights.*tune.kind=full trains every weight")):
        with pytest.raises(BadRequest, match=words):
            prepare(read_recipe("chat_lora", base + more))


def test_an_adapter_carries_the_template_it_learned_with_and_the_next_command_gives_it(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["chat_lora"]))
    for name, more in (("own", [f"model.chat_template={TEMPLATE}"]), ("base", [])):
        tuning = prepare(read_recipe("chat_lora", [f"out.folder={tmp_path / name}", f"data.sources.0.path={tmp_path / 'rows.jsonl'}", "steps=1", "batch=3",
                                                   "data.held_out=1", "eval.every=0", "save.every=0", "threads=1", *more]))
        tuning.train()
        done = finish(tuning)
        template = done.out / "chat_template.jinja"
        how = ["--adapter", str(done.out)]
        assert done.next == ["pellucid", *(["chat", done.model, *how, "--chat-template", str(template)] if more else ["run", done.model, *how, "-p", "..."])]
        assert template.exists() == bool(more)
    own = tmp_path / "own" / "adapter"
    template = own / "chat_template.jinja"
    assert template.read_text() == TEMPLATE.read_text()
    assert str(template) in json.loads((own / "record.json").read_text())["output"]["files"]
    model = pellucid.load(done.model, adapters={"own": own}, chat_template=template)
    asked = [{"role": "user", "content": "Say one."}]
    as_learned = pellucid.load(done.model, chat_template=TEMPLATE).chat_prompt_ids(asked)
    assert model.chat_prompt_ids(asked) == as_learned != pellucid.load(done.model).chat_prompt_ids(asked)


def test_the_result_keeps_the_template_it_learned_with_and_its_score(tmp_path: Path) -> None:
    tuning = prepare(read_recipe("niche", [f"out.folder={tmp_path}", "steps=1", "data.sources.0.n=8", "data.held_out.n=4", "threads=1",
                                           "eval.exact_match.rows=2", "eval.exact_match.max_tokens=40"]))
    tuning.train()
    done = finish(tuning)
    assert pellucid.load_tokenizer(done.out).chat_template.source == TEMPLATE.read_text()  # type: ignore[union-attr]
    told: list[str] = []
    found = scores(tuning, done, told.append)
    assert [(each.name, each.before, each.after) for each in found] == [("exact match", 0, 0), ("exact match, held to the schema", 0, 0)]
    assert "2 of 2 answers" not in told[0]
    rows = json.loads((tmp_path / "exact_match.json").read_text())
    assert [len(rows[when][how]) for when in ("before", "after") for how in ("free", "schema")] == [2, 2, 2, 2]
    assert json.loads(rows["after"]["free"][0]["expected"])["kind"] in ("event", "order", "conversion")
