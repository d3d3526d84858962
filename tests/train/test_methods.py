"""A recipe's method, by name: on real rows, with the shipped model, from the first step to one that goes on."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid
from pellucid.errors import BadCheckpoint, BadData, BadRequest
from pellucid.train import methods
from pellucid.train.loop import Event, Stepped, train
from pellucid.train.methods import method_settings
from pellucid.train.preference import Dpo
from pellucid.train.recipe import Recipe, read_recipe
from pellucid.train.tuning import Tuning, prepare

SHIPPED = Path(pellucid.__file__).parent / "shipped"
ASKED = ["Name a fruit.", "Name a color.", "Name a river.", "Name a tree.", "Say hello.", "Count to three."]
BETTER, WORSE = ["Pear.", "Red.", "Rhine.", "Oak.", "Hello!", "1, 2, 3."], ["Stone soup.", "Loud.", "Desk.", "Blue whale.", "No.", "4."]


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, str]:
    """A file of comparisons and one of verdicts."""
    pairs = [{"chosen": turn(q, w), "rejected": turn(q, b)} for q, w, b in zip(ASKED, BETTER, WORSE, strict=True)]
    verdicts = [{"prompt": turn(q, "")[:1], "completion": turn("", w if i % 2 else b)[1:], "label": bool(i % 2)}
                for i, (q, w, b) in enumerate(zip(ASKED, BETTER, WORSE, strict=True))]
    for name, kind in (("pairs", pairs), ("verdicts", verdicts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kind))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("pairs", "verdicts")}


def recipe(data: str, out: Path, method: str, *, max_length: int = 64, **facts: Any) -> Recipe:
    return read_recipe({"model": {"path": str(SHIPPED), "dtype": "float32"}, "data": {"sources": [{"path": data}], "max_length": max_length}, "method": method,
                        "out": {"folder": str(out)}, "tune": {"kind": "lora", "rank": 4}, "batch": 3, "steps": 3,
                        "optim": {"lr": 2e-3, "schedule": "constant", "warmup": 0}, **facts})


def run(of: Recipe, **how: Any) -> tuple[Tuning, list[Stepped]]:
    events: list[Event] = []
    tuning = prepare(of, observe=events.append, **how)
    train(tuning.run)
    return tuning, [e for e in events if isinstance(e, Stepped)]


@pytest.mark.parametrize("method", ["dpo", "ipo", "orpo", "simpo"])
def test_methods_of_pairs_widen_the_margin(rows: dict[str, str], tmp_path: Path, method: str) -> None:
    _, steps = run(recipe(rows["pairs"], tmp_path / "out", method, batch=6, steps=6))
    assert steps[-1].told["margin"] > steps[0].told["margin"] + 1e-3
    assert steps[-1].loss < steps[0].loss
    if method == "dpo":
        assert steps[0].loss == pytest.approx(math.log(2), abs=1e-5)


def test_kto_parts_good_from_bad(rows: dict[str, str], tmp_path: Path) -> None:
    _, steps = run(recipe(rows["verdicts"], tmp_path / "out", "kto", batch=6, steps=6))
    assert steps[-1].told["good_reward"] - steps[-1].told["bad_reward"] > 1e-2
    assert steps[-1].loss < steps[0].loss == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_reference_beside_and_one_ahead_train_alike(rows: dict[str, str], tmp_path: Path, kind: str) -> None:
    tune, optim = {"kind": kind, "rank": 4}, {"lr": 2e-3 if kind == "lora" else 2e-5, "warmup": 0}
    _, beside = run(recipe(rows["pairs"], tmp_path / "a", "dpo", tune=tune, optim=optim, settings={"reference": "beside"}))
    of, ahead = run(recipe(rows["pairs"], tmp_path / "b", "dpo", tune=tune, optim=optim, settings={"reference": "ahead"}))
    assert [e.loss for e in ahead] == pytest.approx([e.loss for e in beside], rel=1e-4)
    assert ahead[-1].loss != ahead[0].loss
    assert (tmp_path / "b" / methods.REFERENCE).is_file()
    assert not (tmp_path / "a" / methods.REFERENCE).exists()
    assert len(of.run.method.reference.kept) == 12


def test_a_run_that_goes_on_refers_to_what_it_began_with(rows: dict[str, str], tmp_path: Path) -> None:
    """All of the model is trained, so what it says when the run goes on is no reference."""
    facts: dict[str, Any] = {"tune": {"kind": "full"}, "optim": {"lr": 2e-5, "warmup": 0}, "steps": 4}
    straight, expected = run(recipe(rows["pairs"], tmp_path / "a", "dpo", **facts))
    stopping = prepare(recipe(rows["pairs"], tmp_path / "b", "dpo", **facts), asked_to_stop=lambda: stopping.run.progress.step == 2)
    train(stopping.run)
    resumed, steps = run(recipe(rows["pairs"], tmp_path / "b", "dpo", **facts), resume=True)
    assert [e.step for e in steps] == [3, 4]
    assert [e.loss for e in steps] == [e.loss for e in expected[2:]]
    for name, p in straight.trained.parameters.items():
        assert torch.equal(resumed.trained.parameters[name], p)


def test_what_another_model_said_is_no_reference(rows: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = recipe(rows["pairs"], tmp_path / "b", "dpo", settings={"reference": "ahead"})
    prepare(of)
    monkeypatch.setattr(pellucid.Model, "sha256", "another")
    with pytest.raises(BadCheckpoint, match=r"holds log-probabilities of the model .* in torch.float32, and another in torch.float32 is tuned"):
        prepare(of)


@pytest.mark.parametrize(("facts", "message"), [
    ({"method": "dop"}, r"method='dop' is not one. Did you mean dpo.* There are sft, text, dpo"),
    ({"method": "sft", "settings": {"beta": 1}}, "method sft has no settings, and the recipe gives it beta"),
    ({"method": "dpo", "settings": {"gamma": 1}}, r"settings of dpo has the key 'gamma', which nothing reads.* There are beta, sft, reference"),
    ({"method": "simpo", "settings": {"beta": 0}}, "settings of simpo: beta: input should be greater than 0, got 0"),
])
def test_settings_that_a_method_does_not_have_are_errors(facts: dict[str, Any], message: str) -> None:
    of = read_recipe({"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "out": {"folder": "o"}, **facts})
    with pytest.raises(BadRequest, match=message):
        method_settings(of)


def test_settings_are_read_from_the_recipe() -> None:
    of = read_recipe({"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "out": {"folder": "o"}, "method": "dpo"}, ["settings.beta=0.25"])
    assert method_settings(of) == Dpo(beta=0.25)


def test_pairs_are_no_verdicts(rows: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"pairs.jsonl:1 is a comparison, and method kto learns from verdicts"):
        prepare(recipe(rows["pairs"], tmp_path / "out", "kto"))


def test_the_shipped_recipe_of_preferences_is_dpo_with_an_adapter() -> None:
    of = read_recipe(Path(methods.__file__).parent / "recipes" / "dpo.yaml")
    assert method_settings(of) == Dpo(beta=0.1)
    assert of.tune.kind == "lora"
