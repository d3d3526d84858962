"""Every method by its name in a recipe: which settings it has, and how it is made for a model."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pellucid
from pellucid.api import Model
from pellucid.data.example import Example, Item
from pellucid.errors import BadRequest, did_you_mean, nearest
from pellucid.model.decoder import Decoder
from pellucid.train.distill import Distill, Imitation, check_teacher
from pellucid.train.kto import Kto, Verdicts
from pellucid.train.method import Method
from pellucid.train.preference import Dpo, Ipo, Orpo, Preference, SimPo
from pellucid.train.recipe import Recipe, part, settings_of
from pellucid.train.reference import Reference
from pellucid.train.reward import BradleyTerry, Reward, new_head
from pellucid.train.sft import NextToken
from pellucid.train.taught import Taught
from pellucid.train.trainable import Trained

REFERENCE = "reference.safetensors"  # in a run's folder: what the model said before it was trained


@part
class Nothing:
    """Methods that have no settings."""


SETTINGS: dict[str, type] = {"sft": Nothing, "text": Nothing, "dpo": Dpo, "ipo": Ipo, "kto": Kto, "orpo": Orpo, "simpo": SimPo,
                             "reward": Reward, "distill": Distill, "taught": Taught}


def method_settings(recipe: Recipe) -> Any:
    """The settings of the recipe's method. Raises BadRequest for a name nobody knows, or settings that the method does not have."""
    if recipe.method not in SETTINGS:
        near = did_you_mean(nearest(recipe.method, SETTINGS))
        raise BadRequest(f"method={recipe.method!r} is not one.{near} There are {', '.join(SETTINGS)}", field="method")
    kind = SETTINGS[recipe.method]
    if kind is Nothing and recipe.settings:
        raise BadRequest(f"method {recipe.method} has no settings, and the recipe gives it {', '.join(recipe.settings)}", field="settings")
    settings = settings_of(kind, recipe.settings, f"settings of {recipe.method}")
    if isinstance(settings, Reward) and recipe.out.format not in (None, "merged"):
        raise BadRequest(f"out.format={recipe.out.format}: a reward model is written merged, since its head is part of it. Say merged, or leave it out",
                         field="out.format")
    return settings


def method_of(recipe: Recipe, model: Model, what: Trained, again: Callable[[], Decoder]) -> Method:
    """The method, for a model that nothing has changed yet. again: loads the same model once more, for a reference beside it."""
    settings = method_settings(recipe)
    if isinstance(settings, Nothing | Taught):
        return NextToken(recipe.method)
    if isinstance(settings, Distill):
        return Imitation(settings, _teacher(settings, model))
    if isinstance(settings, Reward):
        return BradleyTerry(settings, new_head(model.decoder, recipe.seed))
    reference = _reference(settings.reference, model.decoder, what, again) if hasattr(settings, "reference") else None
    if isinstance(settings, Kto):
        assert reference is not None
        return Verdicts(settings, reference, model.spec.n_ctx)
    return Preference(recipe.method, settings, reference)


def _teacher(settings: Distill, model: Model) -> Decoder:
    """Where the model is, as its files have it."""
    teacher = pellucid.load(settings.teacher, device=str(model.decoder.embed.weight.device), ops="fused", activations="exact")
    check_teacher(model.tokenizer, teacher)
    return teacher.decoder.requires_grad_(False)


def _reference(how: str, decoder: Decoder, what: Trained, again: Callable[[], Decoder]) -> Reference:
    """Beside: the model itself without its adapter, or a second one. Ahead: none."""
    if how == "ahead" or (how == "auto" and what.adapter is None):
        return Reference(None)
    return Reference(decoder if what.adapter is not None else again().requires_grad_(False))


def refer_ahead(method: Method, model: Model, steps: Iterable[Sequence[Item]], folder: Path, max_tokens: int) -> None:
    """Computes what the reference will be asked for, where no model stands beside the one in training, and keeps it in the run's folder."""
    reference = getattr(method, "reference", None)
    if not isinstance(reference, Reference) or reference.decoder is not None:
        return
    path, by = folder / REFERENCE, f"{model.sha256} in {model.decoder.embed.weight.dtype}"
    if path.is_file():
        reference.load(path, by)
    n = len(reference.kept)
    reference.ahead(model.decoder, _rows(method, steps), max_tokens)
    if len(reference.kept) > n:
        folder.mkdir(parents=True, exist_ok=True)
        reference.save(path, by)


def _rows(method: Method, steps: Iterable[Sequence[Item]]) -> Iterator[Example]:
    for items in steps:
        yield from method.referred(items)
