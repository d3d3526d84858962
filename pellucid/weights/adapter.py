"""Adapters of low rank on this disk, read so that nothing in them is silently ignored: peft's folder and llama.cpp's GGUF file.

    adapter_config.json, adapter_model.safetensors    MODULE.lora_A.weight (r, D), MODULE.lora_B.weight (F, r); their product is added times alpha / r;
                                                      DoRA's MODULE.lora_magnitude_vector (F,): the lengths of the rows of the sum;
                                                      of target_parameters, MODULE.PARAMETER (X, F, D): see `_Parameters`
    NAME.gguf, general.type "adapter"                 TENSOR.lora_a (r, D), TENSOR.lora_b (F, r), of experts (X, r, D), (X, F, r); times adapter.lora.alpha / r

Sources: LoraConfig and LoraLayer.update_layer of peft 0.21.2 (and `ParamWrapper`, `get_pattern_key`, `get_peft_model_state_dict` beside them);
convert_lora_to_gguf.py and src/llama-adapter.cpp of https://github.com/ggml-org/llama.cpp at 0b3d966f1 and 0650ea8c0, where an alpha of 0 means a scale of 1.
"""
from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pellucid.errors import BadCheckpoint, BadConfig, MisshapenTensor, MissingTensors, ModelNotFound, UnknownTensors, UnsupportedModel
from pellucid.records import read_object
from pellucid.weights.card import Card, read_card
from pellucid.weights.gguf import Gguf, open_gguf
from pellucid.weights.gguf_card import card_of
from pellucid.weights.quantization import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.weights.packed_rows import PackedRows

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BASE_SHA256 = "pellucid.base_sha256"  # in the metadata of adapter_model.safetensors
MAGNITUDE, COPY = ".lora_magnitude_vector", ".base_layer.weight"
PREFIX = "base_model.model."  # what peft calls the model inside of it
TYPE, ALPHA = "adapter.type", "adapter.lora.alpha"
# Of LoraConfig, what cannot change what is computed here. layers_..., target_modules: which matrices there are the tensors say.
_INERT = ("auto_mapping inference_mode peft_version revision lora_dropout megatron_core runtime_config exclude_modules layers_to_transform layers_pattern "
          "eva_config corda_config loftq_config qalora_group_size ensure_weight_tying")
_INNER_FIRST = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")  # of parameters in one module of transformers, how they are declared
_STARTS = (True, False, "true", "false", "gaussian", "eva", "orthogonal")  # init_lora_weights that leave the model's own matrices as they are
# What no value but null is read of, and why.
_NULL = {"layer_replication": "layers that are there several times",
         "alora_invocation_tokens": "an adapter that begins in the middle of a prompt", "trainable_token_indices": "embeddings of single tokens",
         "modules_to_save": "whole modules in place of the model's own", "megatron_config": "matrices shared out among devices",
         **dict.fromkeys(("arrow_config", "kasa_config", "lora_ga_config", "monteclora_config", "velora_config", "use_bdlora"),
                         "a method whose adapters are not the sum of the model and a product")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What is added to one tensor of the model: scale * B A. a (r, D), b (F, r), of experts (X, r, D) and (X, F, r); in GGUF they may be packed.

    m: (F,), of DoRA, how long the rows are after that.
    """

    a: Tensor | PackedRows
    b: Tensor | PackedRows
    scale: float
    m: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter as the files have it.

    pairs: by the name of the tensor that is changed, as the model's own files call it: model.layers.0.self_attn.q_proj.weight, or blk.0.attn_q.weight.
    base: what it says that it was made for, if anything. architecture: of a GGUF file.
    alpha: the number that most pairs' scale follows from, alpha / r. config: adapter_config.json as it is, of peft's.
    copies: of changed matrices, the model's own as they were, which peft saves of an unembedding among its targets; by the same names as `pairs`.
    """

    name: str
    format: Literal["peft", "gguf"]
    files: tuple[Path, ...]
    pairs: Mapping[str, Pair]
    base: str | None
    alpha: float
    card: Card
    architecture: str | None = None
    base_sha256: str | None = None  # of the base's config.json and weights, where it says so
    config: Mapping[str, Any] = field(default_factory=dict)
    copies: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({pair.rank for pair in self.pairs.values()}))


def is_adapter(path: Path) -> bool:
    """Whether an adapter lies there, by its config or its metadata."""
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / "config.json").is_file()
    return path.suffix == ".gguf" and path.is_file() and open_gguf(path).metadata.get("general.type") == "adapter"


def open_adapter(path: str | Path) -> AdapterFile:
    """The adapter at a folder or a .gguf file; its tensors are views of the mapped files.

    Raises ModelNotFound for no such path, BadConfig or UnsupportedModel for settings that are not read, UnknownTensors, MissingTensors or MisshapenTensor
    where its tensors are not whole pairs, and what reading the files raises.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ModelNotFound(f"no such file or folder: {path}. An adapter is a folder with {CONFIG} and {WEIGHTS}, or a .gguf file")
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path)
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        shown = ", ".join(sorted(p.name for p in folder.iterdir())[:5])
        raise BadConfig(f"{folder} has no {CONFIG}, so it is no adapter: it holds {shown or 'nothing'}. An adapter is a folder with {CONFIG} and {WEIGHTS}, "
                        f"or a .gguf file")
    return _peft(folder)


def _peft(folder: Path) -> AdapterFile:
    where = f"{CONFIG} of {folder.name!r}"
    raw = read_object(folder / CONFIG, BadConfig, where)
    scale = _Scale(raw, where)
    file = next((folder / name for name in (WEIGHTS, PICKLE) if (folder / name).is_file()), None)
    if file is None:
        raise MissingTensors(f"{folder} has {CONFIG} and neither {WEIGHTS} nor {PICKLE}. Was the download complete?")
    if file.name == PICKLE:
        from pellucid.weights.legacy import read_pickle
        tensors: dict[str, Any] = dict(read_pickle(file))
        base_sha256 = None
    else:
        from pellucid.weights.safetensors import SafetensorsFile
        mapped = SafetensorsFile(file)
        tensors = {name: mapped.tensor(name) for name in mapped.header.tensors}
        base_sha256 = mapped.header.metadata.get(BASE_SHA256)
    if twice := sorted(name for name in tensors if name.startswith(PREFIX) and name.removeprefix(PREFIX) in tensors):
        raise UnknownTensors(f"adapter {folder.name!r} has {twice[0]} with and without {PREFIX}. Which of the two is meant, nothing says")
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    lengths = {name.removesuffix(MAGNITUDE): tensors.pop(name) for name in [*tensors] if scale.dora and name.endswith(MAGNITUDE)}
    copies = {name.removesuffix(COPY) + ".weight": tensors.pop(name) for name in [*tensors] if f"{name.removesuffix(COPY)}.lora_A.weight" in tensors}
    tensors, stacked = _Parameters(scale, folder.name).taken(tensors)
    pairs = _pairs(folder.name, tensors, ".lora_A.weight", ".lora_B.weight", scale, weight=".weight") if tensors or not stacked else {}
    pairs |= stacked
    if scale.dora:
        pairs = _with_lengths(folder.name, pairs, lengths)
    modules = [name.removesuffix(".weight") for name in pairs]
    for key, targets, there in (("target_modules", scale.targets, modules), ("target_parameters", scale.parameters, list(stacked))):
        if lost := [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in there)]:
            raise MissingTensors(f"{where} names {key} {', '.join(map(repr, lost[:3]))}, and {file.name} has no tensors of such. Is the file whole?")
    return AdapterFile(name=folder.name, format="peft", files=(folder / CONFIG, file), pairs=pairs, base=scale.base, alpha=scale.alpha, config=raw,
                       base_sha256=base_sha256, card=read_card(folder), copies=copies)


def _with_lengths(file: str, pairs: Mapping[str, Pair], lengths: Mapping[str, Tensor]) -> dict[str, Pair]:
    """DoRA's. Raises MissingTensors, UnknownTensors or MisshapenTensor where not every pair has its own."""
    modules = {name.removesuffix(".weight") for name in pairs}
    if odd := sorted(modules ^ lengths.keys()):
        which, kind = ("lacks", MissingTensors) if odd[0] in modules else ("has a lone", UnknownTensors)
        raise kind(f"adapter {file!r} is of DoRA (use_dora=True) and {which} {odd[0]}{MAGNITUDE} ({len(odd)} such). Is the file whole?")
    for module, m in lengths.items():
        if len((b := pairs[f"{module}.weight"].b).shape) != 2 or tuple(m.shape) != (b.shape[0],):
            raise MisshapenTensor(f"{module}{MAGNITUDE} is {tuple(m.shape)}, and one number for each of B's rows {tuple(b.shape)} was expected")
    return {name: dataclasses.replace(pair, m=lengths[name.removesuffix(".weight")]) for name, pair in pairs.items()}


class _Parameters:
    """Changes of parameters that are no module of their own, such as all experts of a layer, as ParamWrapper of peft 0.21.2 keeps them.

    A is (X * r, D), one expert after another, and B (F, r * X), the experts of a rank side by side. Several in one module wrap each other in the order in
    which the module declares them: the last one has the module's own name, each before it one more `.base_layer`.
    """

    def __init__(self, scale: _Scale, file: str) -> None:
        self.scale, self.file = scale, file

    def taken(self, tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Pair]]:
        """(the other tensors, pairs of (X, r, D) and (X, F, r) by the parameter's name)."""
        left, wrapped = {}, dict[str, dict[int, dict[str, Any]]]()
        for name, tensor in tensors.items():
            module, mark, half = name.rpartition(".lora_")
            bare = module.replace(".base_layer", "")
            if mark and self._of(bare):
                wrapped.setdefault(bare, {}).setdefault(module.count(".base_layer"), {})[half] = tensor
            else:
                left[name] = tensor
        return left, {f"{module}.{name}": self._pair(f"{module}.{name}", halves) for module, levels in wrapped.items()
                      for name, halves in self._named(module, levels)}

    def _of(self, module: str) -> list[str]:
        """The parameters of a module that are changed, as it declares them. A name without its module is one of experts."""
        found = {own for within, _, own in (target.rpartition(".") for target in self.scale.parameters)
                 if f".{module}".endswith(f".{within}" if within else ".experts")}
        if len(found) > 1 and (strange := sorted(found - set(_INNER_FIRST))):
            raise UnsupportedModel(f"adapter {self.file!r} changes several parameters of {module}, and in which order that module declares them, which decides "
                                   f"what its tensors are, is not known of {strange[0]!r} (known: {', '.join(_INNER_FIRST)})")
        return sorted(found, key=lambda name: _INNER_FIRST.index(name) if len(found) > 1 else 0)

    def _named(self, module: str, levels: Mapping[int, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
        names = self._of(module)
        if sorted(levels) != list(range(len(names))):
            raise MissingTensors(f"adapter {self.file!r} has {len(levels)} of {len(names)} parameters of {module} that target_parameters of {CONFIG} names "
                                 f"({', '.join(names)}). Is the file whole?")
        return [(name, levels[len(names) - 1 - i]) for i, name in enumerate(names)]

    def _pair(self, name: str, halves: Mapping[str, Any]) -> Pair:
        if halves.keys() != {"A.weight", "B.weight"}:
            raise MissingTensors(f"adapter {self.file!r} has lora_{', lora_'.join(sorted(halves))} of {name}, and A and B were expected. Is the file whole?")
        a, b, r = halves["A.weight"], halves["B.weight"], int(self.scale.expected(name))
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or not len(a) or r < 1 or len(a) % r:
            raise MisshapenTensor(f"{name} is changed by A {tuple(a.shape)} and B {tuple(b.shape)}, and (X * {r}, D) and (F, {r} * X) were expected")
        n = len(a) // r
        if n > 1:
            a, b = a.reshape(n, r, -1), b.reshape(len(b), r, n).permute(2, 0, 1)
        return Pair(a=a, b=b, scale=self.scale(name, r))


class _Scale:
    """What adapter_config.json says: every key is read, expected or inert. Called with a module's name and its rank, what its product is added times."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        settings = Settings(raw, where)
        settings.choice("peft_type", among=("lora",))
        settings.choice("task_type", among=("causal_lm",), default="causal_lm")
        for name, why in _NULL.items():
            if said := settings(name, default=None):
                raise UnsupportedModel(f"{where} has a setting that is not read: {name}={said!r:.60} (only null): {why}")
        settings.expect("the biases it changes are not read", bias="none")
        settings.expect(lora_bias=False, use_qalora=False)
        start = settings("init_lora_weights", default=True)
        if start not in _STARTS:
            raise UnsupportedModel(f"{where} has a setting that is not read: init_lora_weights={start!r:.60}: it changes the model's own matrices before "
                                   f"the adapter is added to them. peft's save_pretrained(..., path_initial_model_for_weight_conversion=...) writes "
                                   f"an ordinary one")
        settings.flag("fan_in_fan_out", False)  # how the model's own matrix is stored; A and B have one way
        settings.inert("the tensors say it, training alone needs it, or it says who wrote the file", _INERT)
        self.where, self.rank = where, settings.count("r")
        self.alpha = _number(settings("lora_alpha"), "lora_alpha", where)
        self.by_root, self.dora = settings.flag("use_rslora", False), settings.flag("use_dora", False)
        base, targets = settings("base_model_name_or_path", default=None), settings("target_modules", default=None)
        self.base = base if isinstance(base, str) and base else None
        self.targets = [target for target in targets if isinstance(target, str)] if isinstance(targets, list) else []
        self.parameters = settings("target_parameters", default=None) or []
        if not isinstance(self.parameters, list) or not all(isinstance(each, str) and each for each in self.parameters):
            raise BadConfig(f"{where}: target_parameters is {self.parameters!r:.60}, and a list of names was expected")
        self.ranks, self.alphas = (_patterns(settings(f"{kind}_pattern", default={}), f"{kind}_pattern", where) for kind in ("rank", "alpha"))
        settings.finish()

    def __call__(self, module: str, rank: int) -> float:
        if rank != (expected := self.expected(module)):
            raise MisshapenTensor(f"{module} is of rank {rank}, and {self.where} makes it {expected:g}. Do the two files belong together?")
        return float(_matching(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.by_root else rank))


    def expected(self, module: str) -> float:
        """The rank."""
        return _matching(self.ranks, module, self.rank)


def _matching(patterns: Mapping[re.Pattern[str], float], module: str, otherwise: float) -> float:
    """The number of the first pattern that is the name, or its end after a dot."""
    return next((number for pattern, number in patterns.items() if pattern.match(module)), otherwise)


def _patterns(said: Any, name: str, where: str) -> dict[re.Pattern[str], float]:
    if not isinstance(said, Mapping):
        raise BadConfig(f"{where}: {name} is {said!r:.60}, and an object was expected")
    out = {}
    for text, number in said.items():
        try:
            out[re.compile(rf"(.*\.)?({text})$")] = _number(number, f"{name} of {text}", where)
        except (re.error, RecursionError, OverflowError) as e:
            raise BadConfig(f"{where}: {name} has {text!r:.60}, which is no regular expression ({e}), and one for the names of modules was expected") from None
    return out


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value == 0:
        raise BadConfig(f"{where}: {name} is {value!r:.60}, and a number that is not zero was expected")
    return value


def _gguf(path: Path) -> AdapterFile:
    from pellucid.weights.gguf_file import GgufFile
    model = open_gguf(path)
    alpha, architecture, notes = _gguf_settings(path.name, model)
    parts = [GgufFile(file, header) for file, header in zip(model.files, model.headers, strict=True)]
    tensors = {name: parts[i].tensor(name) for name, (i, _) in model.tensors.items()}
    pairs = _pairs(path.name, tensors, ".lora_a", ".lora_b", lambda _, rank: alpha / rank if alpha else 1.0)
    card = card_of(model.metadata, path.name)
    return AdapterFile(name=path.name, format="gguf", files=model.files, pairs=pairs, base=next(iter(card.base_models), None), alpha=alpha,
                       architecture=architecture, card=card, notes=notes)


def _gguf_settings(file: str, model: Gguf) -> tuple[float, str, tuple[str, ...]]:
    """alpha, the architecture, and what to say. Raises UnsupportedModel or BadConfig for what is not read."""
    said = dict(model.metadata)
    kind, type, architecture, alpha = (said.pop(key, None) for key in ("general.type", TYPE, "general.architecture", ALPHA))
    if kind != "adapter":
        raise UnsupportedModel(f"{file} is of general.type {kind!r}, and an adapter was expected. Is it the model itself?")
    if type != "lora":
        raise UnsupportedModel(f"{file} has {TYPE}={type!r:.60}, and 'lora' is what is read")
    if not isinstance(architecture, str):
        raise BadConfig(f"{file} has no general.architecture (found {architecture!r:.60}), so nothing says what its tensors are called")
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha)):
        raise BadConfig(f"{file}: {ALPHA} is {alpha!r:.60}, and a number was expected")
    if tokens := said.pop("adapter.alora.invocation_tokens", None):
        raise UnsupportedModel(f"{file} has adapter.alora.invocation_tokens ({len(tokens)} of them), and an adapter that begins in the middle of a prompt is "  # type: ignore[arg-type]
                               f"not read")
    notes = [f"{file}: adapter.lora.prompt_prefix={prefix!r:.80} is for prompts, and nothing puts it there"
             for prefix in [said.pop("adapter.lora.prompt_prefix", None)] if prefix]
    said.pop("adapter.lora.task_name", None)
    if left := sorted(key for key in said if not key.startswith(("general.", "pellucid.", "split."))):
        raise BadConfig(f"{file} has {len(left)} key{'s' * (len(left) > 1)} that nobody reads in an adapter: {', '.join(left[:3])}. They could mean another "
                        f"computation than this one")
    notes += [f"{file}: {ALPHA} is {alpha!r}, which llama.cpp takes for a scale of 1"] if not alpha else []
    return float(alpha or 0.0), architecture, tuple(notes)


def _pairs(file: str, tensors: Mapping[str, Any], a: str, b: str, scale: Any, weight: str = "") -> dict[str, Pair]:
    """Pairs by the name of what they change. scale: of the module and its rank. Raises UnknownTensors, MissingTensors or MisshapenTensor."""
    halves: dict[str, dict[str, Any]] = {}
    strange = []
    for name, tensor in tensors.items():
        end = next((end for end in (a, b) if name.endswith(end)), None)
        if end is None:
            strange.append(name)
        else:
            halves.setdefault(name.removesuffix(end), {})[end] = tensor
    if strange:
        raise UnknownTensors(f"{len(strange)} tensor{'s' * (len(strange) > 1)} of adapter {file!r} {'are' if len(strange) > 1 else 'is'} no half of a pair "
                             f"*{a}, *{b}, first: {', '.join(sorted(strange)[:3])}. Embeddings, norms and whole modules are not read in an adapter; merge it "
                             f"with the tool that made it")
    if lone := sorted(name + next(end for end in (a, b) if end not in of) for name, of in halves.items() if len(of) < 2):
        raise MissingTensors(f"adapter {file!r} lacks {len(lone)} of {2 * len(halves)} tensors, first: {', '.join(lone[:3])}. Is the file whole?")
    if not halves:
        raise BadCheckpoint(f"adapter {file!r} has no tensors: it would change nothing")
    out = {}
    for name, of in halves.items():
        if not 1 < len(of[a].shape) < 4 or len(of[a].shape) != len(of[b].shape) or of[a].shape[-2] != of[b].shape[-1] or not of[a].shape[-2]:
            raise MisshapenTensor(f"{name} is changed by A {tuple(of[a].shape)} and B {tuple(of[b].shape)}, and (r, D) and (F, r) were expected")
        out[name + weight] = Pair(a=of[a], b=of[b], scale=scale(name, of[a].shape[-2]))
    return out
