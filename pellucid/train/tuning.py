"""A recipe -> a run that is ready -> a better checkpoint: what reads the data, loads the model, and puts the parts of the loop together."""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import pellucid
from pellucid.api import Model
from pellucid.catalog.footprint import FLOAT32_BELOW
from pellucid.data.example import Item, examples
from pellucid.data.hub_files import files_of_hub
from pellucid.data.kept import Some
from pellucid.data.render import Rendering
from pellucid.data.rows import files_of
from pellucid.data.source import items_of
from pellucid.data.statistics import Statistics
from pellucid.data.stock import Source, Stock, digest, held_out
from pellucid.errors import BadData, BadRequest, UnknownTensors, UnsupportedModel
from pellucid.families._describe import describe_checkpoint
from pellucid.model.convert_adapter import check_saved
from pellucid.model.decoder import Decoder
from pellucid.model.memory import keep_few_kernels
from pellucid.records import Input, input_file
from pellucid.train import checkpoint
from pellucid.train.added_tokens import with_added_tokens
from pellucid.train.balance import Balance, coefficient_of
from pellucid.train.distributed import ALONE, Group, check, join
from pellucid.train.loop import Event, Run, train
from pellucid.train.made import check_asked, written
from pellucid.train.memory import Need, need
from pellucid.train.method import Method
from pellucid.train.methods import method_of, method_settings, refer_ahead
from pellucid.train.noise import Dropouts, dropouts_of, dropping
from pellucid.train.optim import Optimizer
from pellucid.train.recipe import DataPart, ModelPart, Recipe, SourcePart
from pellucid.train.recipes import shipped
from pellucid.train.reward import BradleyTerry
from pellucid.train.sft import NextToken
from pellucid.train.taught import Taught, taught
from pellucid.train.trainable import Trained, trained


@dataclass(frozen=True, slots=True)
class Data:
    """What is learned from and what is held out. shapes: of each source. files: that were read, by what the recipe calls them. cards: the license that a
    source's card on the hub states, of each."""

    stock: Stock
    learned: Statistics
    held_out: tuple[Item, ...]
    held_statistics: Statistics
    shapes: tuple[str, ...]
    files: dict[str, Input]
    too_long: dict[str, int]
    cards: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Tuning:
    """A run that is ready to begin. facts: what has to be the same for a state of it to be gone on from."""

    recipe: Recipe
    model: Model
    trained: Trained
    data: Data
    run: Run
    facts: dict[str, Any]
    memory: Need
    notes: tuple[str, ...] = ()

    def train(self) -> None:
        """Makes the steps that are left."""
        train(self.run)

    def described(self) -> dict[str, Any]:
        """What is about to happen, for machines."""
        data = self.data.learned
        return {"steps": self.run.steps, "from_step": self.run.progress.step, "parameters": self.trained.n_parameters, "trained": self.trained.table(),
                "items": data.n_items, "tokens": data.n_tokens, "learned": data.n_learned, "shapes": list(self.data.shapes),
                "duplicates": data.n_duplicates, "conflicting": data.n_conflicting, "too_long": len(self.data.too_long),
                "held_out": len(self.data.held_out), "memory": dataclasses.asdict(self.memory), "recipe": self.recipe.plain()}

    @property
    def folder(self) -> Path:
        return Path(self.recipe.out.folder)

    @property
    def kind(self) -> str:
        """Of what is written: adapter, merged, gguf or reward."""
        return _kind(self.recipe, self.trained, self.run.method)


def prepare(recipe: Recipe, *, observe: Callable[[Event], None] = lambda event: None, resume: bool = False,
            asked_to_stop: Callable[[], bool] = lambda: False, group: Group | None = None) -> Tuning:
    """Loads the model and the data of a recipe, and everything that can be wrong with them is said here, before a step is made.

    resume: go on from the newest state in the recipe's folder. group: the processes that train together; None = those that torchrun started.
    Raises BadRequest, BadData, and what loading a model raises.
    """
    group = join() if group is None else group
    keep_few_kernels()
    with group.in_turn():  # what the first one writes is there for the others, and what is wrong is said once
        tuning = _prepare(recipe, group, observe, resume, asked_to_stop)
    run = tuning.run
    if group.n > 1:
        run.decoder.recomputed = group.any(tuning.memory.recomputed)
        group.shard(run.decoder, tuning.trained)
        run.optimizer = Optimizer(tuning.trained.parameters, recipe.optim)
    if resume:
        checkpoint.load(checkpoint.states(tuning.folder)[-1], run, tuning.facts)
    run.progress.processes = max(run.progress.processes, group.n)
    return tuning


def alone(recipe: Recipe, tuning: Tuning, observe: Callable[[Event], None] = lambda event: None) -> Tuning | None:
    """Where several processes trained: the run in the first of them alone, from the state that all write now; None in the others, whose work is done."""
    group = tuning.run.group
    if group.n == 1:
        return tuning
    tuning.run.save(False)
    group.leave()
    return prepare(recipe, observe=observe, resume=True, group=ALONE) if group.first else None


def _prepare(recipe: Recipe, group: Group, observe: Callable[[Event], None], resume: bool, asked_to_stop: Callable[[], bool]) -> Tuning:
    check(recipe, group)
    settings = method_settings(recipe)
    states = checkpoint.states(Path(recipe.out.folder))
    if states and not resume:
        raise BadRequest(f"{recipe.out.folder} holds a run that was begun ({states[-1].name}). Go on with it (--resume), or give another folder "
                         f"(out.folder=...)", field="out")
    if resume and not states:
        raise BadRequest(f"{recipe.out.folder} holds no state to go on from. Leave --resume out", field="resume")
    recipe = with_added_tokens(recipe)
    if isinstance(settings, Taught):
        recipe = taught(written(recipe), settings)
    torch.manual_seed(recipe.seed)
    model = load_model(recipe)
    what = trained(model.decoder, recipe.tune, recipe.seed)
    method = method_of(recipe, model, what, lambda: load_model(recipe).decoder)
    if _kind(recipe, what, method) == "adapter":
        _check_saved(what, model.decoder)
    what.parameters.update(method.parameters())
    data = read_data(recipe, model, method)
    if recipe.eval.exact_match is not None:
        check_asked(recipe.eval.exact_match, len(data.held_out))
    steps = recipe.steps or data.stock.steps(recipe.epochs)
    held = data.held_out[: recipe.eval.rows]
    refer_ahead(method, model, chain([held] if held else [], map(data.stock.step, range(steps))), Path(recipe.out.folder), recipe.micro_tokens)
    drop, balance, notes = at_training(recipe, model, method, group)
    with dropping(model.decoder, drop, list(what.parts(model.decoder).values()), recipe.tune.dropout):
        memory = need(model.decoder, what, recipe, data.learned.lengths, len(examples(data.stock.step(0)[0])), group)
    model.decoder.recomputed = memory.recomputed
    optimizer = Optimizer(what.parameters if group.n == 1 else {}, recipe.optim)  # of shards, later, where there are several processes
    run = Run(decoder=model.decoder, trained=what, method=method, optimizer=optimizer, recipe=recipe, steps=steps, items=data.stock.step,
              held_out=held, observe=observe, asked_to_stop=asked_to_stop, drop=drop, balance=balance, group=group)
    facts = {**recipe.facts(), "all steps": steps, "the model": model.sha256, **{f"data {role}": file.sha256 for role, file in data.files.items()}}
    run.save = partial(_save, recipe, run, facts)
    return Tuning(recipe, model, what, data, run, facts, memory, notes)


def _kind(recipe: Recipe, what: Trained, method: Method) -> str:
    return "reward" if isinstance(method, BradleyTerry) else recipe.out.format or ("adapter" if what.adapter else "merged")


def _check_saved(what: Trained, decoder: Decoder) -> None:
    """Raises BadRequest for an adapter that no file could hold."""
    try:
        check_saved(what.halves(decoder), decoder.spec)
    except (UnknownTensors, UnsupportedModel) as error:
        raise BadRequest(f"what would be trained could not be written as an adapter: {error}. Write the model with it instead (out.format=merged), or train "
                         f"other matrices (tune.targets)", field="tune.targets") from None


def _save(recipe: Recipe, run: Run, facts: dict[str, Any], best: bool) -> None:
    checkpoint.save(Path(recipe.out.folder), run, facts, keep=recipe.save.keep, best=best)


def at_training(recipe: Recipe, model: Model, method: Method, group: Group = ALONE) -> tuple[Dropouts, Balance | None, tuple[str, ...]]:
    """What config.json has for training alone, as the recipe wants it, and notes on what of it stays off.

    Raises UnsupportedModel for what is not implemented, BadRequest for a router's loss where there is no router.
    """
    config, part, notes = describe_checkpoint(model.checkpoint, recipe.model.accept_unread).config, recipe.model, list[str]()
    drop = dropouts_of(config, model.checkpoint.name) if part.dropouts == "config" and isinstance(method, NextToken) else Dropouts()
    said, coefficient = coefficient_of(config), part.router_loss
    if coefficient is None and said is not None:
        if config.get("output_router_logits"):
            coefficient = said[1]
        else:
            notes.append(f"{said[0]}={said[1]:g} in config.json stays off, as transformers leaves it without output_router_logits; "
                         f"model.router_loss={said[1]:g} turns it on")
    balance = Balance(model.decoder, coefficient, group.n) if coefficient else None
    if balance is not None and not balance.mixtures:
        raise BadRequest(f"model.router_loss={coefficient:g}, and {model.checkpoint.name} has no experts. Leave it out", field="model.router_loss")
    return drop, balance, tuple(notes)


def load_model(recipe: Recipe) -> Model:
    """The model, computing exactly and by operations that have gradients."""
    part = recipe.model
    if part.quantize is not None and recipe.tune.kind == "full":
        raise BadRequest(f"model.quantize={part.quantize} packs weights, which then do not change, and tune.kind=full trains every weight. Train an adapter "
                         f"beside them (tune.kind=lora), or leave model.quantize out", field="model.quantize")
    dtype = part.dtype
    if dtype == "auto" and recipe.tune.kind == "full":
        from pellucid import cost
        from pellucid.weights.checkpoint import open_checkpoint
        from pellucid.weights.hub import resolve
        n = cost.parameters(describe_checkpoint(open_checkpoint(resolve(part.path)), part.accept_unread).spec)
        dtype = "float32" if n <= FLOAT32_BELOW else "auto"
    return pellucid.load(part.path, dtype=dtype, quantize=part.quantize, ops="training", activations="exact", accept_unread=part.accept_unread,
                         chat_template=template_of(part), threads=recipe.threads)


def template_of(part: ModelPart) -> str | None:
    """The recipe's chat template: a shipped one's file where it names one, else as the recipe says."""
    return str(shipped(".jinja")[part.chat_template]) if part.chat_template in shipped(".jinja") else part.chat_template


def read_data(recipe: Recipe, model: Model, method: Method | None) -> Data:
    """Every row of the recipe, as items; of any kind where no method is given. Raises BadData or BadRequest for the first that nothing can be learned from."""
    recipe = written(recipe)
    part = recipe.data
    how = rendering(recipe, model)
    sources, shapes, cards, files, apart = [], [], [], {}, list[Item]()
    for i, source in enumerate(part.sources):
        items, shape, card = _items(source, how, files, f"data {i}")
        _check_kind(items[0], method, source)
        if isinstance(part.held_out, int) and part.held_out:
            share = max(1, round(part.held_out * source.weight / sum(each.weight for each in part.sources)))
            items, kept = held_out(items, share, recipe.seed)
            apart += kept
            if not items:
                raise BadData(f"data.held_out={part.held_out} leaves nothing of {source.path or source.hub} to learn from. Hold out fewer rows")
        sources.append(Source(source.path or source.hub or "", items, source.weight))
        shapes.append(shape)
        cards.append(card)
    if isinstance(part.held_out, str):
        items, _, _ = _items(SourcePart(path=part.held_out, shape=part.sources[0].shape, columns=part.sources[0].columns), how, files, "held out")
        _check_kind(items[0], method, part.sources[0])
        apart = list(items)
    if how.too_long_rows and part.too_long == "error":
        worst = sorted(how.too_long_rows.items(), key=lambda row: -row[1])
        raise BadData(f"{len(worst)} rows are longer than {how.max_length:,} tokens, and what is cut would not be learned: "
                      f"{', '.join(f'{origin} ({n:,})' for origin, n in worst[:5])}{', ...' * (len(worst) > 5)}. Say data.too_long: drop, or cut, or give a "
                      f"larger data.max_length", [origin for origin, _ in worst])
    if apart:
        sources = _disjoint(sources, apart, part.held_out)
    stock = Stock(sources, batch=recipe.batch, seed=recipe.seed, shuffle=part.shuffle)
    everything = Statistics.of(chain.from_iterable(source.items for source in sources))
    return Data(stock, everything, tuple(apart), Statistics.of(apart), tuple(shapes), files, dict(how.too_long_rows), tuple(cards))


def _disjoint(sources: Sequence[Source], apart: Sequence[Item], asked: int | str) -> list[Source]:
    """The sets without what is held out of another of them. Raises BadData where a file of held-out rows says what is learned: its loss would tell nothing."""
    held = {digest(item): item.origin for item in apart}
    out = []
    for source in sources:
        both = {i: held[told] for i, item in enumerate(source.items) if (told := digest(item)) in held}
        if both and isinstance(asked, str):
            i, theirs = next(iter(both.items()))
            raise BadData(f"{len(both):,} rows of {source.name} say what rows of data.held_out={asked} say, first {source.items[i].origin} and {theirs}: their "
                          f"loss would tell nothing about what is new. Take them out of one of the two", [source.items[i].origin for i in both])
        left = Some(source.items, (i for i in range(len(source.items)) if i not in both)) if both else source.items
        if not left:
            raise BadData(f"all rows of {source.name} are held out of another set. Hold out fewer (data.held_out), or take one of the two out")
        out.append(Source(source.name, left, source.weight))
    return out


def rendering(recipe: Recipe, model: Model) -> Rendering:
    part: DataPart = recipe.data
    n_ctx = model.spec.n_ctx
    if part.max_length is not None and part.max_length > n_ctx:
        raise BadRequest(f"data.max_length={part.max_length:,} is more than this model's context of {n_ctx:,}. Give at most that", field="data.max_length")
    return Rendering(tokenizer=model.tokenizer, stop_ids=model.stop_ids(), max_length=part.max_length or n_ctx, template=model.chat_template,
                     train_on=part.train_on, too_long=part.too_long, reasoning=part.reasoning, tool_calls=part.tool_calls)


def _items(source: SourcePart, how: Rendering, files: dict[str, Input], role: str) -> tuple[Sequence[Item], str, str | None]:
    """Its items, their shape, and the license on its card."""
    pulled = files_of_hub(source.hub, split=source.split, config=source.config) if source.hub else None
    here = pulled.files if pulled else files_of(source.path or "")
    root = os.path.commonpath([file.parent for file in here])
    files.update({f"{role}/{os.path.relpath(file, root)}": input_file(file) for file in here})
    found = items_of(here, how, shape=source.shape, columns=source.columns)
    return found.items, found.shape, pulled.license if pulled else None


def _check_kind(first: Item, method: Method | None, source: SourcePart) -> None:
    """One item tells: a set has one shape, and a shape one kind of item."""
    if method is not None and not isinstance(first, method.takes):
        names = [kind.__name__.lower() for kind in (method.takes if isinstance(method.takes, tuple) else (method.takes,))]
        raise BadData(f"{first.origin} is a {type(first).__name__.lower()}, and method {method.name} learns from {' or '.join(names)}s. Give other data "
                      f"({os.fspath(source.path or source.hub or '')}), or another method", [first.origin])
