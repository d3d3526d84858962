"""Several processes train as one does: real launches by torchrun, judged by what they wrote, and the rules that divide a step, without any."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import pellucid
from pellucid.data.example import Example
from pellucid.errors import BadRecord, BadRequest, PellucidError
from pellucid.families import mixtral
from pellucid.families._describe import describe
from pellucid.records import Record
from pellucid.train.checkpoint import states
from pellucid.train.distributed import ALONE, Group, check, dealt, ended_by_another, join
from pellucid.train.loop import Event, Stepped, train
from pellucid.train.recipe import Recipe, read_recipe
from pellucid.train.replay import replay
from pellucid.train.tuning import load_model, prepare
from pellucid.weights.assemble import disassemble
from pellucid.weights.names import NameTable
from tests.families.build import shapes
from tests.train.test_methods import turn

STEPS, HALF = 4, 2
SHIPPED = Path(pellucid.__file__).with_name("shipped")
WORDS = ("one", "two", "six and some more words", "ten", "four of them", "a hundred", "none", "eleven, which is more", "all", "half of it")
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"tune": {"kind": "full"}},
    "kto": {"tune": {"kind": "lora", "rank": 4, "dora": True}, "method": "kto"},
    "experts": {"tune": {"kind": "full"}}}


def experts(folder: Path) -> Path:
    """A model whose rows leave some of its experts to the other process, and some to nobody."""
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
    config = dict(model_type="mixtral", vocab_size=8192, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, num_local_experts=40, num_experts_per_tok=1, max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=1e4,
                  tie_word_embeddings=False, hidden_act="silu", sliding_window=None, output_router_logits=True, router_aux_loss_coef=0.1)
    (folder / "config.json").write_text(json.dumps(config))
    spec, noise = describe(config).spec, torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=noise) * (0.3 if len(shape) > 1 else 0.1) + (len(shape) == 1) for name, shape in shapes(spec).items()}
    save_file(disassemble(NameTable(mixtral.WEIGHTS), tensors, spec), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def recipe(folder: Path, method: str) -> Recipe:
    """Every step has parts enough for two, and not equally many for each."""
    asked = [{"messages": turn(f"Say {word}.", f"{word}!")} if method != "kto" else
             {"prompt": turn(f"Say {word}.", "")[:1], "completion": turn("", f"{word}!")[1:], "label": bool(i % 2)} for i, word in enumerate(WORDS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    model = experts(folder / "model") if method == "experts" else SHIPPED
    return read_recipe({"model": {"path": str(model), "dtype": "float32"}, "batch": 5, "steps": STEPS, "seed": 3,
                        "data": {"sources": [{"path": str(folder / "rows.jsonl"), "license": "CC0-1.0"}], "held_out": 3}, "micro_tokens": 60,
                        "optim": {"lr": 1e-3, "warmup": 0}, "save": {"every": HALF, "keep": 9}, "eval": {"every": HALF}, "threads": 1,
                        "out": {"folder": str(folder / "out")}, **METHODS[method]})


def here(of: Recipe, *, stop: int = STEPS, resume: bool = False) -> dict[int, float]:
    """Losses by step, of this process alone."""
    events: list[Event] = []
    tuning = prepare(of, observe=events.append, resume=resume, asked_to_stop=lambda: tuning.run.progress.step == stop)
    train(tuning.run)
    return {event.step: event.loss for event in events if isinstance(event, Stepped)}


def launched(of: Recipe, folder: Path, *more: str) -> dict[int, float]:
    """Losses by step, of two processes."""
    (folder / "r.yaml").write_text(yaml.safe_dump(of.plain()))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")} | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pellucid", "tune", "r.yaml", *more],
                          cwd=folder, env=environment | {"PYTHONPATH": str(Path(pellucid.__file__).parents[1])}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    log = (Path(of.out.folder) / "log.jsonl").read_text()
    return {event["step"]: event["loss"] for event in map(json.loads, log.splitlines()) if event["event"] == "stepped"}


def test_two_processes_train_as_one_and_one_goes_on_from_what_two_wrote(tmp_path: Path) -> None:
    of = recipe(tmp_path, "sft")
    alone = here(of)
    shutil.rmtree(of.out.folder)
    both = launched(of, tmp_path)
    assert both == pytest.approx(alone, abs=1e-5)
    assert len(alone) == STEPS
    assert alone[1] > 1.05 * alone[STEPS]  # equal, and not for want of learning
    out = Path(of.out.folder)
    record = Record.read(out / "model/record.json")
    assert record.measured["processes"] == 2
    assert record.measured["steps"] == STEPS
    with pytest.raises(BadRecord, match="2 processes trained this together"):
        replay(record)
    assert [state.name for state in states(out)] == [f"step-{HALF:08d}", f"step-{STEPS:08d}"]
    shutil.rmtree(states(out)[-1])
    assert here(of, resume=True) == pytest.approx({step: loss for step, loss in alone.items() if step > HALF}, abs=1e-5)


def test_two_processes_go_on_from_what_one_wrote(tmp_path: Path) -> None:
    """By a method that looks at a whole step first, with adapters."""
    of = recipe(tmp_path, "kto")
    alone = here(of)
    shutil.rmtree(of.out.folder)
    assert here(of, stop=HALF) == {step: loss for step, loss in alone.items() if step <= HALF}
    assert launched(of, tmp_path, "--resume") == pytest.approx({step: loss for step, loss in alone.items() if step > HALF}, abs=1e-5)
    assert (Path(of.out.folder) / "adapter/adapter_model.safetensors").is_file()


def test_experts_that_no_process_chose_are_not_stepped_and_others_are_by_all(tmp_path: Path) -> None:
    of = recipe(tmp_path, "experts")
    alone = here(of)
    one = load_file(states(Path(of.out.folder))[-1] / "trained.safetensors")
    shutil.rmtree(of.out.folder)
    assert launched(of, tmp_path) == pytest.approx(alone, abs=1e-5)
    two = load_file(states(Path(of.out.folder))[0] / "trained.safetensors")
    before = {name: p.detach() for name, p in load_model(of).decoder.named_parameters()}
    still = [{name for name in before if torch.equal(before[name], after[name])} for after in (one, two)]
    assert still[0] == still[1] != set()
    for name, p in one.items():
        torch.testing.assert_close(two[name], p, rtol=1e-3, atol=1e-4, msg=name)


def items(*lengths: int) -> list[Example]:
    return [Example((1,) * n, (False,) + (True,) * (n - 1), f"row {i}") for i, n in enumerate(lengths)]


@pytest.mark.parametrize("lengths", [(9, 1, 1, 1, 1, 1, 1), (4, 4, 4), (1, 2, 3, 4, 5, 6, 7, 8), (30, 1)])
@pytest.mark.parametrize("n", [2, 3])
def test_each_item_counts_once_and_all_make_equally_many_parts(lengths: tuple[int, ...], n: int) -> None:
    each = [list(Group(rank, n).share(items(*lengths), 8)) for rank in range(n)]
    assert len({len(parts) for parts in each}) == 1
    counted = sorted(item.origin for parts in each for part, counts in parts if counts for item in part)
    assert counted == sorted(item.origin for item in items(*lengths))
    assert all(part for parts in each for part, _ in parts)


def test_shares_are_about_as_long() -> None:
    filled = [sum(len(item.ids) for item in share) for share in dealt(items(*range(1, 30)), 3)]
    assert max(filled) - min(filled) <= 29
    assert max(filled) < 1.1 * min(filled)


def test_one_process_is_what_it_is_without_any_of_it() -> None:
    assert [counts for _, counts in ALONE.share(items(5, 5, 5), 8)] == [1.0, 1.0, 1.0]
    assert ALONE.summed({"loss": 0.1}) == {"loss": 0.1}
    before = torch.get_rng_state()
    ALONE.draw_anew(1, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_what_several_do_not_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = recipe(tmp_path, "sft").plain()
    for name in ("muon", "adamw8bit"):
        with pytest.raises(BadRequest, match="works on whole matrices"):
            check(read_recipe({**of, "optim": {"name": name, "lr": 1e-3}}), Group(0, 2))
    with pytest.raises(BadRequest, match="batch=5 is less than the 8 processes"):
        check(read_recipe(of), Group(0, 8))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(BadRequest, match=r"MASTER_ADDR.* not set"):
        join()
    for rank, ends in (("0", PellucidError), ("1", SystemExit)):  # one of them says so
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ends), ended_by_another():
            raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    with pytest.raises(RuntimeError, match="of another kind"), ended_by_another():
        raise RuntimeError("of another kind")
