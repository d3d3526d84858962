"""The loop: a step in parts is the whole step, what is trained learns and the rest stays, and what is no number stops it before it does harm."""
from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from pellucid.data.example import Example
from pellucid.errors import NotFinite
from pellucid.model.parts import Rows
from pellucid.ops.fused import Fused
from pellucid.ops.training import Training
from pellucid.train.loop import Evaluated, Event, Progress, Run, Stepped, Stopped, train
from pellucid.train.optim import Optimizer
from pellucid.train.recipe import Recipe, read_recipe
from pellucid.train.sft import NextToken
from pellucid.train.trainable import trained
from tests.train.tiny import N_VOCAB, tiny_decoder


def rows(n: int, seed: int = 0) -> list[Example]:
    """Each counts up from somewhere: what comes next can be learned."""
    draw = random.Random(seed)
    out = []
    for i in range(n):
        begin, length = draw.randrange(N_VOCAB), draw.randrange(3, 12)
        ids = tuple((begin + k) % N_VOCAB for k in range(length))
        out.append(Example(ids, (False, *(draw.random() < 0.7 for _ in ids[2:]), True), f"rows:{i + 1}"))
    return out


def recipe(**facts: Any) -> Recipe:
    return read_recipe({"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "out": {"folder": "o"}, "tune": {"kind": "full"},
                        "optim": {"lr": 5e-3, "schedule": "constant", "warmup": 0}, **facts})


def run(of: Recipe, steps: int, data: list[Example] | None = None, **facts: Any) -> tuple[Run, list[Event]]:
    decoder, events = tiny_decoder(Fused()), []
    what = trained(decoder, of.tune, of.seed)
    data = rows(64) if data is None else data
    made = Run(decoder=decoder, trained=what, method=NextToken(), optimizer=Optimizer(what.parameters, of.optim), recipe=of, steps=steps,
               items=lambda step: [data[(step * of.batch + i) % len(data)] for i in range(of.batch)], observe=events.append, **facts)
    train(made)
    return made, events


def weights(of: Run) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in of.decoder.named_parameters()}


@pytest.mark.parametrize("micro_tokens", [1, 20, 60])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_step_in_parts_is_the_whole_step(kind: str, micro_tokens: int) -> None:
    tune = {"kind": kind, "rank": 3}
    whole, told = run(recipe(tune=tune, batch=8, micro_tokens=10_000), 2)
    parts, same = run(recipe(tune=tune, batch=8, micro_tokens=micro_tokens), 2)
    assert [e.loss for e in same if isinstance(e, Stepped)] == pytest.approx([e.loss for e in told if isinstance(e, Stepped)], rel=1e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-4, atol=3e-5, msg=name)


def test_it_learns_and_says_how() -> None:
    made, events = run(recipe(batch=8), 60, held_out=rows(10, seed=1))
    steps = [e for e in events if isinstance(e, Stepped)]
    assert [e.step for e in steps] == list(range(1, 61))
    assert steps[-1].loss < 0.5 * steps[0].loss
    before, after = (e for e in events if isinstance(e, Evaluated))
    assert (before.step, after.step, after.best) == (0, 60, True)
    assert after.loss < 0.7 * before.loss
    assert made.progress.tokens == sum(e.tokens for e in steps)


def test_an_adapter_in_training_leaves_the_model_as_it_was() -> None:
    before = {name: p.detach().clone() for name, p in tiny_decoder(Fused()).named_parameters()}
    made, events = run(recipe(tune={"kind": "lora", "rank": 4}, batch=8, optim={"lr": 3e-2, "warmup": 0}), 40)
    steps = [e for e in events if isinstance(e, Stepped)]
    assert steps[-1].loss < 0.8 * steps[0].loss
    after = weights(made)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name for name in after if ".adapters." in name}
    assert set(made.trained.parameters) & set(before) == set()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_its_rows_and_changes_nothing(poison: float) -> None:
    of, [*_, row] = recipe(batch=1), rows(6)
    decoder = tiny_decoder(Fused())
    what = trained(decoder, of.tune, 0)
    with torch.no_grad():
        decoder.embed.weight[row.ids[0], 0] = poison
    before = {name: p.detach().clone() for name, p in decoder.named_parameters()}
    made = Run(decoder=decoder, trained=what, method=NextToken(), optimizer=Optimizer(what.parameters, of.optim), recipe=of, steps=1, items=lambda step: [row])
    with pytest.raises(NotFinite, match=r"rows:6.*lower optim.lr") as raised:
        train(made)
    assert raised.value.origins == ("rows:6",)
    assert made.progress.step == 0
    for name, p in decoder.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=0, atol=0, equal_nan=True)


def test_patience_ends_a_run_that_gets_no_better_and_keeps_the_best() -> None:
    saved = []
    made, events = run(recipe(batch=4, eval={"every": 1, "patience": 2}, optim={"lr": 2.0, "warmup": 0}), 50, held_out=rows(6, seed=2), save=saved.append)
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    assert (stopped.why, stopped.step) == ("patience", made.progress.best_step + 2)
    assert saved[0] is True


def test_a_run_out_of_patience_makes_no_step_when_it_goes_on() -> None:
    spent = Progress(step=5, best=1.0, best_step=3, since_best=2)
    made, events = run(recipe(batch=4, eval={"every": 1, "patience": 2}), 9, held_out=rows(6, seed=2), progress=spent)
    assert (made.progress.step, events) == (5, [])


def test_the_best_is_kept_where_it_is_asked_for() -> None:
    saved: list[bool] = []
    events = run(recipe(batch=4, eval={"every": 3, "best": True}), 9, held_out=rows(6, seed=2), save=saved.append)[1]
    assert saved == [True] * sum(isinstance(e, Evaluated) and e.best for e in events)
    assert saved
    run(recipe(batch=4, eval={"every": 3}), 9, held_out=rows(6, seed=2), save=saved.append)
    assert saved == [True] * sum(isinstance(e, Evaluated) and e.best for e in events)


def test_states_are_saved_when_they_are_due_and_when_it_is_asked_to_stop() -> None:
    saved: list[int] = []
    steps: list[int] = []
    made = recipe(batch=2, save={"every": 3})
    decoder = tiny_decoder(Fused())
    what = trained(decoder, made.tune, 0)
    data = rows(10)
    one = Run(decoder=decoder, trained=what, method=NextToken(), optimizer=Optimizer(what.parameters, made.optim), recipe=made, steps=20,
              items=lambda step: data[:2], observe=lambda e: steps.append(e.step), save=lambda best: saved.append(one.progress.step),
              asked_to_stop=lambda: one.progress.step == 7)
    train(one)
    assert saved == [3, 6, 7]
    assert steps[-1] == 7


@pytest.mark.parametrize("ops", [Fused(), Training()], ids=lambda ops: ops.name)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_layers_computed_again_in_backward_keep_less_and_have_the_same_gradients(kind: str, ops: Fused) -> None:
    found, kept = [], []
    for recomputed in (False, True):
        decoder = tiny_decoder(ops)
        what = trained(decoder, recipe(tune={"kind": kind}).tune, 0)
        decoder.recomputed = recomputed
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            hidden = decoder(torch.arange(40) % N_VOCAB, rows=Rows((15, 25), (0, 1), () if what.adapter is None else (what.adapter,) * 2))
        hidden.square().sum().backward()
        found.append({name: p.grad for name, p in what.parameters.items()})
        kept.append(sum(sizes))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0] if found[0][name] is not None)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in found[0].values()) > 10
    assert kept[1] < 0.3 * kept[0]
