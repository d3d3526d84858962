"""The loop: items of a step -> losses of its parts -> gradients -> one step of the optimizer; evaluation and states in between. All methods run through it.

    for each step:  items ─ micro ─ Batch ─ Method.loss ─ backward ─ clip ─ step        what happens is told to `observe` as plain events
"""
from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid.data.batch import Batch
from pellucid.data.example import Item, n_tokens
from pellucid.errors import NotFinite
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.train.balance import Balance
from pellucid.train.distributed import ALONE, Group
from pellucid.train.method import Method
from pellucid.train.noise import Dropouts, dropping
from pellucid.train.optim import Optimizer
from pellucid.train.recipe import Recipe
from pellucid.train.schedule import share
from pellucid.train.trainable import Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """A step was made. step: from 1. loss: the mean over the step. norm: of the gradients before they were clipped. seconds: the step's own."""

    step: int
    steps: int
    loss: float
    told: dict[str, float]
    norm: float
    lr: float
    tokens: int
    learned: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What is held out was scored after this many steps. best: whether no loss was lower."""

    step: int
    loss: float
    told: dict[str, float]
    best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The run ended before its last step, and why: "patience" where the loss on what is held out got no better, "asked" where the user wanted it."""

    step: int
    why: str


Event = Stepped | Evaluated | Stopped


@dataclass(slots=True, kw_only=True)
class Progress:
    """Where a run is: all that a state says beside tensors. since_best: evaluations since the lowest loss. seconds: of steps, of every session.

    processes: that trained together, at the most; the sums of several round otherwise than those of one.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    since_best: int = 0
    tokens: int = 0
    processes: int = field(default=1, compare=False)
    seconds: float = field(default=0.0, compare=False, repr=False)  # the one thing that is not the same twice


@dataclass(kw_only=True)
class Run:
    """All that a run works with. items: those of a step, counted from 0, always the same. save: writes a state; best: whether it is the best so far."""

    decoder: Decoder
    trained: Trained
    method: Method
    optimizer: Optimizer
    recipe: Recipe
    steps: int
    items: Callable[[int], Sequence[Item]]
    held_out: Sequence[Item] = ()
    progress: Progress = field(default_factory=Progress)
    observe: Callable[[Event], None] = lambda event: None
    save: Callable[[bool], None] = lambda best: None
    asked_to_stop: Callable[[], bool] = lambda: False
    drop: Dropouts = field(default_factory=Dropouts)
    balance: Balance | None = None
    group: Group = ALONE


def train(run: Run) -> None:
    """Makes the steps that are left. Raises NotFinite, with the rows, before a loss that is no number changes anything."""
    with dropping(run.decoder, run.drop, list(run.trained.parts(run.decoder).values()), run.recipe.tune.dropout):
        _train(run)


def _train(run: Run) -> None:
    progress, recipe = run.progress, run.recipe
    if progress.step == 0 and run.held_out:
        run.observe(Evaluated(step=0, **evaluate(run), best=False))  # what the run starts from
    while progress.step < run.steps and not _out_of_patience(run):
        run.observe(step(run))
        due = recipe.eval.every and progress.step % recipe.eval.every == 0
        if run.held_out and (due or progress.step == run.steps) and _judge(run):
            run.observe(Stopped(step=progress.step, why="patience"))
            break
        if recipe.save.every and progress.step % recipe.save.every == 0 and progress.step < run.steps:
            run.save(False)
        if run.group.any(run.asked_to_stop()) and progress.step < run.steps:
            run.save(False)
            run.observe(Stopped(step=progress.step, why="asked"))
            break


def step(run: Run) -> Stepped:
    """One step. Its parts are divided by the weight of the whole, so that how it is cut changes nothing but memory and speed."""
    started, progress, recipe, group = time.perf_counter(), run.progress, run.recipe, run.group
    items = run.items(progress.step)
    whole = sum(map(run.method.weight, items))
    sums: Counter[str] = Counter()
    run.decoder.train()
    group.draw_anew(recipe.seed, progress.step)
    run.method.begin(run.decoder, items, run.trained.adapter, recipe.micro_tokens)
    if run.balance is not None:
        run.balance.begin(items, whole, run.trained.adapter, recipe.micro_tokens)
    for part, counts in group.share(items, recipe.micro_tokens):
        loss, told = _loss(run, part)
        (counts * loss / whole).backward()  # type: ignore[no-untyped-call]
        sums.update({name: counts * float(value) for name, value in {"loss": loss.detach(), **told}.items()})
    sums = group.summed(sums)
    group.sum_gradients(run.trained.parameters)
    norm = run.optimizer.clip(recipe.optim.clip)
    if not math.isfinite(norm):
        raise NotFinite(f"the gradients of step {progress.step + 1} have no finite norm, though its loss is {sums['loss'] / whole:.4g}. Its rows: "
                        f"{_named(items)}. Nothing was changed by it. Lower optim.lr, or train in float32", origins=[item.origin for item in items])
    rate = share(progress.step, run.steps, recipe.optim)
    run.optimizer.step(rate)
    n = sum(map(n_tokens, items))
    progress.step += 1
    progress.tokens += n
    mean, seconds = {name: value / whole for name, value in sums.items()}, time.perf_counter() - started
    progress.seconds += seconds
    return Stepped(step=progress.step, steps=run.steps, loss=mean.pop("loss"), told=mean, norm=norm, lr=recipe.optim.lr * rate, tokens=n, learned=whole,
                   seconds=seconds)


def evaluate(run: Run) -> dict[str, float | dict[str, float]]:
    """loss, and what else the method tells, on what is held out."""
    run.decoder.eval()
    sums: Counter[str] = Counter()
    with torch.no_grad():
        run.method.begin(run.decoder, run.held_out, run.trained.adapter, run.recipe.micro_tokens)
        for part, counts in run.group.share(run.held_out, run.recipe.micro_tokens):
            loss, told = _loss(run, part)
            sums.update({name: counts * float(value) for name, value in {"loss": loss, **told}.items()})
    sums = run.group.summed(sums)
    whole = sum(map(run.method.weight, run.held_out))
    mean = {name: value / whole for name, value in sums.items()}
    return {"loss": mean.pop("loss"), "told": mean}


def _judge(run: Run) -> bool:
    """Evaluates, keeps what is best, and says whether patience is at its end."""
    progress = run.progress
    found = evaluate(run)
    best = found["loss"] < progress.best  # type: ignore[operator]
    if best:
        progress.best, progress.best_step, progress.since_best = found["loss"], progress.step, 0  # type: ignore[assignment]
        if run.recipe.eval.keeps_best:
            run.save(True)
    else:
        progress.since_best += 1
    run.observe(Evaluated(step=progress.step, **found, best=best))  # type: ignore[arg-type]
    return _out_of_patience(run) and progress.step < run.steps


def _out_of_patience(run: Run) -> bool:
    return run.recipe.eval.patience is not None and run.progress.since_best >= run.recipe.eval.patience


def _loss(run: Run, items: Sequence[Item]) -> tuple[Tensor, dict[str, Tensor]]:
    batch = Batch.of(items, run.decoder.embed.weight.device)
    rows = Rows.of(*batch.lengths, adapter=run.trained.adapter)
    if run.balance is None or not torch.is_grad_enabled():
        loss, told = run.method.loss(run.decoder, batch, rows)
    else:
        with run.balance.watching() as seen:
            loss, told = run.method.loss(run.decoder, batch, rows)
        more, plain = run.balance.loss(seen)
        loss, told = loss + more, {**told, "balance": plain}
    if not torch.isfinite(loss):
        raise NotFinite(f"the loss of step {run.progress.step + 1} is {loss.item()}, of the rows {_named(items)}. Nothing was changed by it. Look at these "
                        f"rows, lower optim.lr, or train in float32", origins=[item.origin for item in items])
    return loss, dict(told)


def _named(items: Sequence[Item]) -> str:
    origins = list(dict.fromkeys(item.origin for item in items))
    return ", ".join(origins[:5]) + (f" and {len(origins) - 5} more" if len(origins) > 5 else "")
