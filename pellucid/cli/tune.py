"""`pellucid tune`: a recipe and data -> a better checkpoint."""
from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli import _options as o
from pellucid.cli._frame import Json, emit, next_step, note
from pellucid.cli._shown import harmless
from pellucid.model.report import count, size


def command(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="On top of it, such as optim.lr=3e-4 steps=200.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest state in the recipe's folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read the data, load the model, say what would be done, and stop.")] = False,
    preview: Annotated[int | None, typer.Option("--preview", metavar="N", min=1, help="Show the first N items as they are learned from, and stop.")] = None,
    shipped: Annotated[bool, typer.Option("--list", help="The shipped recipes, and stop.")] = False,
    permission: Annotated[str | None, typer.Option("--permission", metavar="REFERENCE", help="To one, where a license stops what pellucid.toml declares; it "
                                                                                            "is recorded.")] = None,
    quiet: o.Quiet = False,
    json: Json = False,
) -> None:
    """Train a model, or an adapter for it, on data of your own. Ctrl-C saves where it is and says how to go on.

    Everything goes into the recipe's folder: the result, states to go on from, log.jsonl with every step, and the run record.

    \b
    pellucid tune --list
    pellucid tune recipe.yaml
    pellucid tune recipe.yaml --preview 3
    pellucid tune recipe.yaml steps=20 batch=4 --dry-run
    pellucid tune recipe.yaml --resume
    """
    from pellucid.train.distributed import ended_by_another
    from pellucid.train.outcome import allowed, finish
    from pellucid.train.recipe import read_recipe
    from pellucid.train.tuning import alone, prepare
    if shipped:
        _list(json)
        return
    if recipe is None:
        raise typer.BadParameter("a recipe is missing: a YAML file, or a name that --list shows", param_hint="RECIPE")
    asked = read_recipe(recipe, overrides or ())
    if preview is not None:
        _preview(asked, preview, quiet, json)
        return
    quiet = quiet or os.environ.get("RANK", "0") != "0"  # of the processes that torchrun started the first one talks
    with ended_by_another(), _interrupts() as asked_to_stop, _Watch(quiet, Path(asked.out.folder)) as watch:
        tuning = prepare(asked, observe=watch, resume=resume, asked_to_stop=asked_to_stop)
        if not quiet:
            note("\n".join(tuning.model.report.lines()))
            note(_plan(tuning))
        allowed(tuning, permission)  # before hours are spent on what may not be
        if dry_run:
            if json and tuning.run.group.first:
                emit(tuning.described())
            tuning.run.group.leave()
            return
        watch.begin(tuning)
        tuning.train()
        if tuning.run.progress.step < tuning.run.steps and watch.stopped == "asked":
            if tuning.run.group.first:
                note(f"stopped after step {tuning.run.progress.step:,} of {tuning.run.steps:,}; the state is saved")
                next_step("pellucid", "tune", recipe, *(overrides or ()), "--resume")
            tuning.run.group.leave()
            return
        if (last := alone(asked, tuning)) is None:
            return
        tuning = last
        done = finish(tuning, permission=permission)
    from pellucid.train.report import write_report
    from pellucid.train.samples import samples
    from pellucid.train.scores import scores
    found = scores(tuning, done, (lambda line: None) if quiet else note)
    page = write_report(tuning, done.plain(), samples(tuning, done), found)
    if json:
        emit({**done.plain(), "report": str(page), "scores": [dataclasses.asdict(each) for each in found]})
    if quiet:
        return
    note(f"{done.text}\nreport      {page}")
    next_step(*done.next)


def _list(json: bool) -> None:
    """The shipped recipes, each with what its header says first."""
    from pellucid.train.recipes import about, shipped
    found = {name: {"file": str(file), "about": about(file)} for name, file in shipped().items()}
    if json:
        emit(found)
        return
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {each['about']}" for name, each in found.items()))
    next_step("pellucid", "tune", next(iter(found)), "--dry-run")


def _preview(asked: Any, n: int, quiet: bool, json: bool) -> None:
    """The items that come first, with what is learned of them."""
    from itertools import chain, islice

    from pellucid.data import preview
    from pellucid.train.added_tokens import with_added_tokens
    from pellucid.train.tuning import load_model, read_data
    asked = with_added_tokens(asked)
    model = load_model(asked)
    data = read_data(asked, model, None)
    steps = -(-min(n, data.learned.n_items) // asked.batch)
    items = list(islice(chain.from_iterable(map(data.stock.step, range(steps))), min(n, data.learned.n_items)))
    if json:
        emit({"items": [preview.plain(model.tokenizer, item) for item in items], "statistics": data.learned.plain(), "shapes": list(data.shapes)})
        return
    colors = sys.stdout.isatty()
    print("\n\n".join(preview.shown(model.tokenizer, item, colors=colors, harmless=harmless) for item in items))
    if not quiet:
        told = data.learned
        note(f"\nlearned is what is {'green' if colors else 'between ⟦ and ⟧'} · all: {told.n_items:,} items ({', '.join(data.shapes)}), {told.n_tokens:,} "
             f"tokens, {told.learned_share:.0%} learned")


def _plan(tuning: Any) -> str:
    """What is about to happen, before the first step."""
    lines = ["", f"trained     {count(tuning.trained.n_parameters)} parameters"
             + (f" of {count(tuning.model.report.n_parameters)}, {tuning.trained.n_parameters / tuning.model.report.n_parameters:.2%}"
                if tuning.trained.adapter else "")]
    width = max(len(kind) for kind, _, _ in tuning.trained.table())
    lines += [f"            {harmless(kind):<{width}}  {n:>4} x  {count(numbers // n)}" for kind, n, numbers in tuning.trained.table()]
    data = tuning.data.learned
    lines += [f"data        {data.n_items:,} items ({', '.join(tuning.data.shapes)}) · {data.n_tokens:,} tokens, {data.learned_share:.0%} "
              f"learned · longest {data.length_at(1):,}, median {data.length_at(0.5):,}"]
    if tuning.data.held_out:
        lines.append(f"held out    {len(tuning.data.held_out):,} items")
    for name, n, pairs in (("the same as another", data.n_duplicates, data.duplicates), ("at odds with another", data.n_conflicting, data.conflicting)):
        if n:
            lines.append(f"note        {n:,} rows are {name}, first {pairs[0][1]} and {pairs[0][0]}")
    if tuning.data.too_long:
        lines.append(f"note        {len(tuning.data.too_long):,} rows were too long and {'cut' if tuning.recipe.data.too_long == 'cut' else 'left out'}")
    run = tuning.run
    lines += [f"note        {harmless(text)}" for text in tuning.notes]
    if run.drop:
        lines.append(f"dropout     {run.drop} ({harmless(', '.join(run.drop.keys))} in config.json; model.dropouts=off trains without)")
    if run.balance is not None:
        lines.append(f"router      {run.balance.coefficient:g} x the loss of experts that are not equally busy, beside the method's")
    lines.append(f"memory      {tuning.memory}")
    lines.append(f"plan        {run.steps:,} steps of {tuning.recipe.batch} items ({run.steps * tuning.recipe.batch / data.n_items:.1f} epochs) · "
                 f"{tuning.recipe.optim.name}, rate {tuning.recipe.optim.lr:g}, {tuning.recipe.optim.schedule}"
                 + (f" · from step {run.progress.step:,}" if run.progress.step else ""))
    return "\n".join(lines)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks to stop after the step; a second one stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked and os.environ.get("WORLD_SIZE", "1") == "1":  # torchrun passes on what the terminal has sent already
            raise KeyboardInterrupt
        asked.append(number)
    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: whoever called this handles it
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


class _Watch:
    """A bar with loss, rate and time left on a terminal, a line now and then into a pipe; every event goes to log.jsonl."""

    def __init__(self, quiet: bool, folder: Path) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        self._live = not quiet and sys.stderr.isatty()
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn(),
                             console=Console(stderr=True), disable=not self._live)
        self._quiet, self._folder, self._task = quiet, folder, None
        self._also: list[Any] = []
        self._told_at = self._began = time.monotonic()
        self._tokens = 0
        self.stopped = ""

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        for each in self._also:
            each.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def begin(self, tuning: Any) -> None:
        from pellucid.train.watch import JsonLines, TensorBoard
        if not tuning.run.group.first:
            return
        self._also = [JsonLines(self._folder), *([TensorBoard(self._folder)] if tuning.recipe.out.tensorboard else [])]
        self._task = self._bar.add_task("training", total=tuning.run.steps, completed=tuning.run.progress.step, told="")
        self._bar.start()
        self._began = self._told_at = time.monotonic()

    def __call__(self, event: Any) -> None:
        from pellucid.train.loop import Evaluated, Stepped, Stopped
        from pellucid.train.watch import resident_bytes
        for each in self._also:
            each(event)
        if isinstance(event, Stepped):
            self._tokens += event.tokens
            words = f"loss {event.loss:.4f} · {self._tokens / max(1e-9, self.seconds):,.0f} tokens/s · {size(resident_bytes())}"
            if self._task is not None:
                self._bar.update(self._task, completed=event.step, told=words)
            if not self._live and not self._quiet and (time.monotonic() - self._told_at > 10 or event.step == event.steps):
                self._told_at = time.monotonic()
                note(f"step {event.step:,}/{event.steps:,} · {words}")
        elif isinstance(event, Evaluated) and not self._quiet:
            more = "".join(f" · {name} {value:.4f}" for name, value in event.told.items())
            (self._bar.console.print if self._live else note)(f"held out, after step {event.step:,}: loss {event.loss:.4f}{more}{' (best)' * event.best}")
        elif isinstance(event, Stopped):
            self.stopped = event.why
            if event.why == "patience" and not self._quiet:
                note(f"stopped after step {event.step:,}: what is held out got no better")

