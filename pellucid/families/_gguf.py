"""GGUF metadata -> the config.json that says the same, so that one `spec` describes a model wherever its file came from. No torch here.

A family's GGUF names its architecture, its tensors, and what its config.json calls each key of the metadata; what a spec says under those keys is in
_gguf_keys.py. After a file was described, every key it has is held against the spec (`check`): one that contradicts stops the load, and so does a
key without translation, which stays under its own name until `Config` refuses it.
Source: https://github.com/ggml-org/llama.cpp/blob/7bca1fd9ca2a681b0182e16f24f832b7be1942af/conversion/base.py and the files beside it.
"""
from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from pellucid import families
from pellucid.errors import BadConfig, UnsupportedModel, did_you_mean, nearest
from pellucid.families._gguf_keys import KEYS, Of, same
from pellucid.families._gguf_tensors import FACTORS, LONG, SHORT, TENSORS
from pellucid.spec import DecoderSpec
from pellucid.weights.gguf import BY_NAME, Gguf, Items
from pellucid.weights.names import Table, to

# After the architecture's name -> in config.json, as most families spell it.
READS = {"context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
         "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
         "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.key_length": "head_dim", "rope.freq_base": "rope_theta",
         "vocab_size": "vocab_size"}


def reads(more: Mapping[str, str] | None = None, *, less: tuple[str, ...] = (), eps: str | None = None) -> dict[str, str]:
    """READS with more and less; eps: what config.json calls that of a LayerNorm, in place of RMSNorm's."""
    drop = (*less, *(("attention.layer_norm_rms_epsilon",) if eps is not None else ()))
    return {**{key: theirs for key, theirs in READS.items() if key not in drop}, **({"attention.layer_norm_epsilon": eps} if eps else {}), **(more or {})}


EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok", "expert_feed_forward_length": "moe_intermediate_size"}
_NEEDED = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count", "attention.layer_norm_epsilon",
           "attention.layer_norm_rms_epsilon")
_COUNTS = (*_NEEDED[:5], "attention.head_count_kv", "attention.key_length", "attention.value_length")
THETA = 10_000.0  # where a file does not say: load_hparams of llama.cpp, and head_count_kv is head_count
BLOCKS = 2  # GGML_QNT_VERSION: how blocks are laid out, the same in every GGUF file so far
# Keys of every architecture that say what the file is, how it was made, how to split and join text, or how to sample.
INERT = ("general.", "tokenizer.", "split.", "quantize.", "mradermacher.", "pellucid.")
CORRECTED = EXPERTS | {
    "expert_count": "n_routed_experts", "expert_shared_count": "n_shared_experts", "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob", "leading_dense_block_count": "first_k_dense_replace", "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group"}
MULTIPLIERS = {"attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier",
               "logit_scale": "logits_scaling"}
_YARN = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
NEXTN = "nextn_predict_layers"  # layers appended to the ordinary ones, and counted among them


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says: keys after the architecture's name, taken out as they are read; its tensors' shapes; numbers of a small tensor by its name."""

    file: str
    name: str
    said: dict[str, Any]
    tensors: Mapping[str, tuple[int, ...]]
    floats: Callable[[str], list[float]]

    def has(self, tensor: str) -> bool:
        """Whether there is such a tensor, of queries also within a fused one."""
        return tensor in self.tensors or tensor.replace("attn_q.", "attn_qkv.") in self.tensors

    def take(self, key: str, absent: Any = None) -> Any:
        return self.said.pop(key, absent)


Derive = Callable[[Facts, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How a family's models stand in GGUF files, both ways.

    tensors: names there -> ours.  reads: keys there -> config.json's.
    present: key of config.json -> the tensor whose being there it says.
    given:   what config.json says of every model of this architecture, and no key of the metadata.
    derive:  what follows from several keys, or from one that needs a formula: it takes them, and may read what config.json has by then.
    of:      what a spec says under a key, where that is not what KEYS has.
    also:    keys that are written besides those of `reads`.
    many:    keys that may differ from layer to layer.
    inert:   keys that cannot change what is computed.
    numbers: whole keys with a number a layer, in place of tensors -> our names of those.
    yarn:    what config.json says of every YaRN scaling of this architecture; log_multiplier: what mscale_all_dim is multiplied by to be written.
    when:    of the files of this architecture those that are of this family; None: its files are read as another family's, and only written as this.
    fits:    of the family's models those that are written as this architecture.
    """

    name: str
    tensors: Table = field(default_factory=lambda: TENSORS)
    reads: Mapping[str, str] = field(default_factory=lambda: READS)
    present: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    derive: Derive = lambda facts, raw: {}
    of: Mapping[str, Of] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    many: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()
    numbers: Mapping[str, str] = field(default_factory=dict)
    yarn: Mapping[str, Any] = field(default_factory=dict)
    log_multiplier: float = 1.0
    when: Callable[[Facts], bool] | None = lambda facts: True
    fits: Callable[[DecoderSpec], bool] = lambda spec: True

    @property
    def table(self) -> Table:
        """Every name there -> ours: the tensors, and what the metadata has in place of tensors, as KEY.LAYER."""
        return {**self.tensors, **{f"{key}.{{i}}": to(ours, flat=True) for key, ours in self.numbers.items()}}


@cache
def architectures() -> dict[str, list[tuple[str, Architecture]]]:
    """Name -> (model_type, how its files are read) of every family that has such files."""
    modules: dict[str, ModuleType] = {name: families.family(name) for name in families.NAMES}
    out: dict[str, list[tuple[str, Architecture]]] = {}
    for name, module in modules.items():
        for architecture in of_family(module):
            if architecture.when is not None:
                out.setdefault(architecture.name, []).append((name, architecture))
    return out


def of_family(module: ModuleType) -> tuple[Architecture, ...]:
    """The architectures as which a family's files stand; most have one, some none."""
    said = getattr(module, "GGUF", ())
    return said if isinstance(said, tuple) else (said,)


def facts_of_file(model: Gguf) -> Facts:
    """What a GGUF model says. Raises UnsupportedModel for a file of another kind, and what `facts_of` raises."""
    if (kind := model.metadata.get("general.type", "model")) != "model":
        raise UnsupportedModel(f"{model.files[0].name} is of general.type {kind!r}, and only a 'model' is loaded by itself. What it belongs to, its "
                               f"repository says.")
    version = model.metadata.get("general.quantization_version", BLOCKS)
    if version != BLOCKS and (packed := next((name for name, (_, entry) in model.tensors.items() if BY_NAME[entry.type].n_numbers > 1), None)):
        raise UnsupportedModel(f"{model.files[0].name} packs {packed} as general.quantization_version {version!r:.40} does, and version {BLOCKS} is read: its "
                               f"blocks would mean other numbers. Make the file again with a llama.cpp of today")
    return facts_of(model.files[0].name, model.metadata, {name: entry.shape for name, (_, entry) in model.tensors.items()}, model.floats)


def facts_of(file: str, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], floats: Callable[[str], list[float]]) -> Facts:
    """What metadata says, less the keys that are about the file or its text. Raises UnsupportedModel or BadConfig for no architecture that is read."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise BadConfig(f"{file} has no general.architecture (found {name!r:.60}), so nothing says which family this is. Is it a model?")
    known = architectures()
    if name not in known:
        raise UnsupportedModel(f"{file} is of architecture {name!r}, whose GGUF files this version does not read (reads: {', '.join(sorted(known))})."
                               f"{did_you_mean(nearest(name, known))} The safetensors repository it was made from may be read.")
    said = {key.removeprefix(f"{name}."): _plain(value) for key, value in metadata.items() if not key.startswith(INERT)}
    return Facts(file, name, said, tensors, floats)


def config(facts: Facts) -> tuple[dict[str, Any], Architecture]:
    """The config.json that says the same as these facts, and which family's architecture it is.

    Raises UnsupportedModel for a setting that is not implemented, BadConfig for a key that is missing or contradicts another.
    """
    model_type, architecture = _chosen(facts)
    file, name, said = facts.file, facts.name, dict(facts.said)
    facts = Facts(file, name, said, facts.tensors, facts.floats)
    for key, value in said.items():
        if isinstance(value, list) and key not in architecture.many and key not in architecture.numbers:
            raise UnsupportedModel(f"{file} has a setting this version does not implement: {name}.{key} differs from layer to layer ({str(value)[:60]})")
    _ordinary(facts, architecture)
    raw: dict[str, Any] = {"model_type": model_type, "tie_word_embeddings": "output.weight" not in facts.tensors, **architecture.given}
    raw |= {key: facts.has(tensor) for key, tensor in architecture.present.items()}
    for key, value in (("attention.head_count_kv", said.get("attention.head_count")), ("rope.freq_base", THETA),
                       ("vocab_size", next(iter(facts.tensors.get("token_embd.weight", ())), None))):
        if key in architecture.reads and value is not None:
            said.setdefault(key, value)
    raw |= {theirs: said.pop(key) for key, theirs in architecture.reads.items() if key in said}
    try:
        raw |= architecture.derive(facts, raw)
        if "rope_parameters" not in raw and (scaling := _scaling(facts, architecture, raw)):
            raw["rope_scaling"] = scaling
    except (TypeError, ValueError, KeyError, ArithmeticError, IndexError) as e:
        raise BadConfig(f"{file} has a value of a kind that architecture {name!r} cannot read ({type(e).__name__}: {e}). Is the file whole?") from e
    for key in (*architecture.inert, *architecture.numbers):
        said.pop(key, None)
    # What KEYS knows, and no family reads, is not lost: `check` holds it against the spec.
    return raw | {f"{name}.{key}": value for key, value in said.items() if key not in KEYS and key not in architecture.of}, architecture


def check(facts: Facts, architecture: Architecture, spec: DecoderSpec) -> None:
    """Holds every key of a file against what the spec has in its place. Raises BadConfig for one that differs."""
    said = dict(facts.said)
    _ordinary(Facts(facts.file, facts.name, said, facts.tensors, facts.floats), architecture)
    for key, value in said.items():
        of = architecture.of.get(key) or KEYS.get(key)
        if of is not None and key not in architecture.inert and not same(value, made := of(spec)):
            raise BadConfig(f"{facts.file} says {facts.name}.{key}={value!r:.60}, and the rest of its metadata makes it {made!r:.60}. Which is right?")


def numbers(facts: Facts, architecture: Architecture, n_layers: int) -> dict[str, float]:
    """KEY.LAYER -> the number, of what the metadata has in place of tensors. Raises BadConfig where it is no number a layer."""
    out: dict[str, float] = {}
    for key in architecture.numbers:
        said = facts.said.get(key)
        each = said if isinstance(said, list) else [said] * n_layers
        if len(each) != n_layers or not all(type(value) in (int, float) for value in each):
            raise BadConfig(f"{facts.file}: {key} is {said!r:.60}, and a number for each of {n_layers} layers was expected. Is the file whole?")
        out |= {f"{key}.{i}": float(value) for i, value in enumerate(each)}
    return out


def _chosen(facts: Facts) -> tuple[str, Architecture]:
    candidates = architectures()[facts.name]
    for model_type, architecture in candidates:
        if architecture.when is not None and architecture.when(facts):
            return model_type, architecture
    raise UnsupportedModel(f"{facts.file} is of architecture {facts.name!r}, and of a kind of it that this version does not read "
                           f"(reads: {', '.join(model_type for model_type, _ in candidates)}). The safetensors repository it was made from may be read.")


def _ordinary(facts: Facts, architecture: Architecture) -> None:
    """Sees that what every model has is said, and counts the ordinary layers alone. Raises BadConfig."""
    said, file, name = facts.said, facts.file, facts.name
    needed = (*_NEEDED, "expert_used_count") if said.get("expert_count") else _NEEDED
    if missing := [key for key in needed if key in architecture.reads and key not in said]:
        raise BadConfig(f"{file} has no {' and no '.join(f'{name}.{key}' for key in missing)}, which architecture {name!r} needs. Is the file whole?")
    for key, value in said.items():
        if key in _COUNTS and not _counts(value, least=0 if key in architecture.many else 1):
            raise BadConfig(f"{file}: {name}.{key} is {value!r:.60}, and a count was expected")
    if said.get("rope.scaling.type") == "none":  # and then nothing reads what some write beside it
        for key in ("rope.scaling.factor", "rope.scaling.original_context_length"):
            said.pop(key, None)
    if said.get("rope.scaling.attn_factor") == 1.0:
        del said["rope.scaling.attn_factor"]  # as its absence says
    n, n_more = said["block_count"], said.pop(NEXTN, 0)
    if type(n_more) is not int or not 0 <= n_more < n:
        raise BadConfig(f"{file}: {name}.{NEXTN} is {n_more!r:.60}, and it counts some of the {n} blocks. Is the file whole?")
    if (found := len({tensor.split(".")[1] for tensor in facts.tensors if tensor.startswith("blk.")})) not in (n, n - n_more):
        raise BadConfig(f"{file} says {name}.block_count={n}, and holds the tensors of {found} blocks. Is a part missing?")
    if n_more:
        said |= {key: _plain(value[: n - n_more]) for key, value in said.items() if isinstance(value, list) and len(value) == n}
        said["block_count"] = n - n_more


def _counts(value: Any, least: int) -> bool:
    return all(type(n) is int and n >= least for n in (value if isinstance(value, list) else [value]))


def _scaling(facts: Facts, architecture: Architecture, raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """Takes the keys of the rope's scaling, and its factors where a tensor holds them."""
    file, name, factor = facts.file, facts.name, facts.take("rope.scaling.factor", facts.take("rope.scale_linear"))
    kind = facts.take("rope.scaling.type", "linear" if factor is not None else "none")  # llama.cpp's own reading of a factor alone
    original, gain = facts.take("rope.scaling.original_context_length"), facts.take("rope.scaling.attn_factor")
    facts.take("rope.scaling.finetuned")  # says that the model was tuned so
    context = raw.get("max_position_embeddings", 0)
    if FACTORS in facts.tensors:
        if kind != "none":
            raise BadConfig(f"{file} has {name}.rope.scaling.type {kind!r} and {FACTORS} too. Which one scales the rope, nothing says.")
        both = _factors(facts, FACTORS)
        return {"rope_type": "longrope", "short_factor": both, "long_factor": both, "attention_factor": 1.0,
                "original_max_position_embeddings": context}
    if LONG in facts.tensors or SHORT in facts.tensors:
        return {"rope_type": "longrope", "short_factor": _factors(facts, SHORT), "long_factor": _factors(facts, LONG),
                "original_max_position_embeddings": original or context} | ({} if gain is None else {"attention_factor": gain})
    if kind == "none" or (kind == "linear" and factor in (None, 1.0)):
        return None
    yarn = dict(architecture.yarn) if kind == "yarn" else {}
    for ours, theirs in _YARN.items() if kind == "yarn" else ():
        if (value := facts.take(f"rope.scaling.{theirs}")) is not None:
            yarn[ours] = value
    if kind == "yarn" and (logs := facts.take("rope.scaling.yarn_log_multiplier")):
        over_all = logs / architecture.log_multiplier
        yarn |= {"mscale": yarn.get("mscale", over_all), "mscale_all_dim": over_all}
    if (ramp := facts.take("rope.scaling.yarn_ext_factor", 1.0)) != 1.0:
        raise UnsupportedModel(f"{file} has a setting this version does not implement: {name}.rope.scaling.yarn_ext_factor={ramp!r:.60} (only 1.0)")
    return {"rope_type": kind, "factor": factor} | ({} if original is None else {"original_max_position_embeddings": original}) | yarn


def _factors(facts: Facts, tensor: str) -> list[float]:
    """The numbers of such a tensor. Raises BadConfig where it is not there, or holds what no frequency can be divided by."""
    factors = facts.floats(tensor) if tensor in facts.tensors else []
    if not factors or not all(0 < factor < math.inf for factor in factors):
        raise BadConfig(f"{facts.file}: {tensor} holds {str(factors)[:60]}, and positive numbers were expected, one a pair of channels")
    return factors


def _plain(value: Any) -> Any:
    """A number as its author wrote it; of a list with one value for every layer, that value."""
    if isinstance(value, Items | list):
        items = [_plain(item) for item in (value.values() if isinstance(value, Items) else value)]
        return items[0] if items and all(item == items[0] for item in items) else items
    return _shortest(value) if isinstance(value, float) else value


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-05 was written as 9.999999747378752e-06."""
    try:
        as_float32 = struct.pack("<f", value)
    except OverflowError:  # a float64, and as it is
        return value
    return next((near for n in range(1, 10) if struct.pack("<f", near := float(f"{value:.{n}g}")) == as_float32), value)
