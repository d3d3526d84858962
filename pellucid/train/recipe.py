"""A recipe: one YAML file that says all of a tuning, read into frozen dataclasses. A key nobody knows is an error that names the nearest.

    recipe = read_recipe("recipe.yaml", ["optim.lr=3e-4", "steps=200"])
"""
from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pellucid.errors import BadRequest, did_you_mean, nearest
from pellucid.train.recipes import find

_AS_WRITTEN = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)
_Part = TypeVar("_Part")
part = dataclass(frozen=True, slots=True, kw_only=True, config=_AS_WRITTEN)


@part
class ModelPart:
    """What is tuned. dtype: what its weights are in; auto = float32 on a CPU where they are trained whole and small, else the file's."""

    path: str
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["nf4", "int8", "q8_0", "q6_k", "q5_k", "q4_k"] | None = None  # what frozen matrices are packed in at load
    added_tokens: tuple[str, ...] = ()
    chat_template: str | None = None
    accept_unread: tuple[str, ...] = ()
    dropouts: Literal["config", "off"] = "config"  # where config.json has some, sft and text train with them; methods that compare never do
    router_loss: float | None = Field(default=None, ge=0)  # of a mixture, times this; None = as config.json has it, where its output_router_logits is true
    gradient_checkpointing: bool | Literal["auto"] = "auto"  # blocks are computed again in backward, a third more time; auto = where memory wants it


@part
class SourcePart:
    """One set of rows: a file, a folder or a glob; a data set of the hub; n that a Python file makes. weight: how often it is drawn beside the others."""

    path: str | None = None
    hub: str | None = None  # owner/name, or owner/name@revision
    made: str | None = None  # the Python file, which is run, or the name of a shipped one: train/made.py
    n: int | None = Field(default=None, ge=1)
    split: str = "train"
    config: str | None = None  # of a hub set that has several
    shape: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)  # what the shape calls a column -> what the rows call it
    weight: float = Field(default=1.0, gt=0)
    license: str | None = None  # where neither the file nor the hub's card says one; the result inherits what it demands

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.path, self.hub, self.made)) != 1:
            raise ValueError("a source is a path, a data set of the hub, or made by a Python file: one of the three")
        if (self.made is None) != (self.n is None):
            raise ValueError("n is how many rows a Python file makes: it belongs to made, and made needs it")


@part
class DataPart:
    """Rows and how they are read. held_out: rows kept from training, or a file or another source of others."""

    sources: tuple[SourcePart, ...] = Field(min_length=1)
    train_on: Literal["assistant", "all"] = "assistant"
    max_length: int | None = Field(default=None, ge=2)  # tokens; None = the model's context
    too_long: Literal["error", "drop", "cut"] = "error"
    reasoning: Literal["learn", "ignore"] | None = None  # None = an error where there is some
    tool_calls: Literal["learn", "ignore"] | None = None
    held_out: int | str | SourcePart = 0
    shuffle: bool = True


@part
class TunePart:
    """What is trained. targets: globs over our names of matrices, or attention, mlp, all-linear."""

    kind: Literal["full", "lora"] = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    rslora: bool = False
    dora: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] = ("all-linear",)


@part
class OptimPart:
    """warmup: steps, or the share of all where it is below one. clip: the norm of all gradients together, None = as they come."""

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    lr: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)  # Muon's
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup: float = Field(default=0.03, ge=0)
    decay: float = Field(default=0.2, ge=0, le=1)  # wsd: the share of all steps at its end in which the rate falls
    final: float = Field(default=0.0, ge=0, le=1)  # the share of the rate that the last step has
    clip: float | None = Field(default=1.0, gt=0)


@part
class ExactPart:
    """So many held-out rows are answered before and after, and those counted whose answer is the row's own.

    schema: once more with answers held to it: a .json file, or what makes rows (SourcePart.made) and says its SCHEMA. max_tokens: of an answer.
    """

    rows: int = Field(default=500, ge=1)
    schema: str | None = None
    max_tokens: int = Field(default=256, ge=1)


@part
class EvalPart:
    """every: steps between two evaluations on what is held out, 0 = at the end only. patience: so many without a better loss end the run.

    best: the weights of the lowest loss are what the run gives, not the last ones; with patience always.
    """

    every: int = Field(default=0, ge=0)
    rows: int = Field(default=200, ge=1)
    patience: int | None = Field(default=None, ge=1)
    best: bool = False
    samples: tuple[str, ...] = ()  # prompts answered before and after
    exact_match: ExactPart | None = None

    @property
    def keeps_best(self) -> bool:
        return self.best or self.patience is not None


@part
class SavePart:
    """every: steps between two states to go on from, 0 = none but at a stop. keep: so many of the newest, beside the best."""

    every: int = Field(default=0, ge=0)
    keep: int = Field(default=2, ge=1)


@part
class OutPart:
    """folder: where everything goes. format: adapter (peft's layout), merged (safetensors), gguf; None = adapter where one was trained, else merged."""

    folder: str
    format: Literal["adapter", "merged", "gguf"] | None = None
    quantize: str | None = None  # of a gguf
    tensorboard: bool = False


@part
class Recipe:
    """All of a tuning. batch: items a step; micro_tokens: of them so many tokens at a time, which changes memory and speed and nothing else."""

    model: ModelPart
    data: DataPart
    out: OutPart
    method: str = "sft"
    settings: Mapping[str, Any] = field(default_factory=dict)  # the method's own
    tune: TunePart = TunePart()
    optim: OptimPart = OptimPart()
    eval: EvalPart = EvalPart()
    save: SavePart = SavePart()
    batch: int = Field(default=16, ge=1)
    micro_tokens: int = Field(default=4096, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, ge=1)  # in place of epochs
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)

    def plain(self) -> dict[str, Any]:
        """As it would stand in a file, defaults included."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    def facts(self) -> dict[str, Any]:
        """All that decides what comes out, by key, as JSON has it: not where it goes, nor how often it is saved."""
        return dict(_flat({name: value for name, value in self.plain().items() if name not in ("out", "save")}))

    @property
    def sha256(self) -> str:
        """Of `facts`."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()


def read_recipe(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of a file, a shipped one's name, or what one would say, with `key.of.a.part=value` on top. Raises BadRequest with the key and what it may be."""
    if isinstance(source, str | os.PathLike):
        where, plain = str(source), _parsed(find(os.fspath(source)))
    else:
        where, plain = "the recipe", dict(source)
    for each in overrides:
        _override(plain, each)
    return settings_of(Recipe, plain, where)


def settings_of(kind: type[_Part], plain: Mapping[str, Any], where: str) -> _Part:
    """Plain data as a dataclass, each key known and each value possible. Raises BadRequest."""
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        raise _told(error, kind, where) from None


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        if isinstance(each, Mapping) and each:
            yield from _flat(each, f"{above}{name}.")
        else:
            yield f"{above}{name}", json.loads(json.dumps(each, default=str))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"no recipe can be read at {path}: {error}. Give a YAML file, or the name of a shipped recipe (pellucid tune --list)",
                         field="recipe") from None
    except yaml.YAMLError as error:
        raise BadRequest(f"{path} is not YAML: {' '.join(str(error).split())}", field="recipe") from None
    if not isinstance(value, dict):
        raise BadRequest(f"{path} holds {type(value).__name__}, and keys with values were expected", field="recipe")
    return value


def _override(plain: dict[str, Any], text: str) -> None:
    key, mark, value = text.partition("=")
    if not mark or not key:
        raise BadRequest(f"{text!r} is no override: key=value was expected, such as optim.lr=3e-4", field="recipe")
    *path, last = key.split(".")
    at: Any = plain
    for name in path:
        at = at.setdefault(name, {}) if isinstance(at, dict) else at[int(name)] if isinstance(at, list) and name.isdigit() and int(name) < len(at) else None
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    if isinstance(read, str):  # YAML 1.1 takes 3e-4 for a text
        with contextlib.suppress(ValueError):
            read = float(read)
    if isinstance(at, list) and last.isdigit() and int(last) < len(at):
        at[int(last)] = read
    elif isinstance(at, dict):
        at[last] = read
    else:
        raise BadRequest(f"{key!r} is no place in the recipe", field="recipe")


def _told(error: ValidationError, kind: type, where: str) -> BadRequest:
    fault = error.errors(include_url=False)[0]
    place = [str(step) for step in fault["loc"]]
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _keys(kind, place[:-1])
        return BadRequest(f"{where} has the key {'.'.join(place)!r}, which nothing reads.{did_you_mean(nearest(place[-1], known))} "
                          f"There {'is' if len(known) == 1 else 'are'} {', '.join(known)}", field="recipe")
    if fault["type"] in ("missing", "missing_argument"):
        return BadRequest(f"{where} has no {'.'.join(place)}, which has no default", field="recipe")
    said = fault["msg"].removeprefix("Value error, ")
    return BadRequest(f"{where}: {'.'.join(place)}: {said[0].lower()}{said[1:]}, got {fault['input']!r:.80}", field="recipe")


def _keys(kind: Any, place: Sequence[str]) -> list[str]:
    """The keys that a part of the recipe has."""
    for step in place:
        if step.isdigit():
            continue
        hint = next((f.type for f in dataclasses.fields(kind) if f.name == step), "")
        kind = next((one for name, one in globals().items() if name.endswith("Part") and name in str(hint)), kind)
    return [f.name for f in dataclasses.fields(kind)]
