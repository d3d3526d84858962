"""GGUF metadata -> the config.json that says the same, so that one `spec` describes a model wherever its file came from. No torch here.

A family's GGUF names its architecture and its tensors; the keys that all architectures share are here. What has no translation stays under its own
name, and `Config` refuses it as it refuses any key that nobody read.
https://github.com/ggml-org/llama.cpp/blob/a458664fc83b6513baea7adafcb0ef0626b006f8/convert_hf_to_gguf.py
"""
from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from pellucid import families
from pellucid.errors import BadConfig, UnsupportedModel, did_you_mean, nearest
from pellucid.weights.gguf import Gguf, Items
from pellucid.weights.names import Rule, Table, left_out, to

# After the architecture's name -> in config.json
KEYS = {"context_length": "max_position_embeddings", "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.key_length": "head_dim", "rope.freq_base": "rope_theta", "vocab_size": "vocab_size"}
_OPTIONAL = ("attention.head_count_kv", "attention.key_length", "rope.freq_base", "vocab_size")
# Keys of every architecture that say what the file is, how it was made, how to split and join text, or how to sample.
INERT = ("general.", "tokenizer.", "split.", "quantize.")
FACTORS = "rope_freqs.weight"  # what each pair's frequency is divided by: how Llama 3's scaling is written

_BLOCK = {f"blk.{{i}}.{theirs}": f"blocks.{{i}}.{ours}" for theirs, ours in {
    "attn_norm.weight": "attn_norm.weight", "attn_output.weight": "attn.o.weight", "attn_output.bias": "attn.o.bias", "ffn_norm.weight": "mlp_norm.weight",
    **{f"attn_{x}.{kind}": f"attn.{x}.{kind}" for x in "qkv" for kind in ("weight", "bias")},
    **{f"ffn_{x}.{kind}": f"mlp.{x}.{kind}" for x in ("gate", "up", "down") for kind in ("weight", "bias")}}.items()}
TENSORS: dict[str, Rule] = {
    "token_embd.weight": "embed.weight", **_BLOCK, "output_norm.weight": "final_norm.weight", "output.weight": "unembed.weight",
    FACTORS: left_out("factors of the rope, read into its scaling"),
}
# Rows of queries and keys whose head has the two halves of its channels interleaved: convert_hf_to_gguf.py, LlamaModel.permute
PAIRED: dict[str, Rule] = {f"blk.{{i}}.attn_{x}.{kind}": to(f"blocks.{{i}}.attn.{x}.{kind}", paired=True) for x in "qk" for kind in ("weight", "bias")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How a family's models stand in GGUF files.

    tensors: names there -> ours. present: key of config.json -> the tensor whose being there it says. fixed: metadata that this family reads in
    one value only.
    """

    name: str
    tensors: Table = field(default_factory=lambda: TENSORS)
    present: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


@cache
def architectures() -> dict[str, tuple[str, Architecture]]:
    """Name -> (model_type, how its files are read), of every family that has such files."""
    modules: dict[str, ModuleType] = {name: families.family(name) for name in families.NAMES}
    return {module.GGUF.name: (name, module.GGUF) for name, module in modules.items() if hasattr(module, "GGUF")}


def translate(model: Gguf) -> tuple[dict[str, Any], Architecture]:
    """The config.json of a GGUF model, and how its tensors are called.

    Raises UnsupportedModel for an architecture or a file of another kind, BadConfig for a key that lacks or contradicts another.
    """
    metadata, file = model.metadata, model.files[0].name
    name, kind = metadata.get("general.architecture"), metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(f"{file} is of general.type {kind!r}, and only a 'model' is loaded by itself. What it belongs to, its repository says.")
    if not isinstance(name, str):
        raise BadConfig(f"{file} has no general.architecture (found {name!r:.60}), so nothing says which family this is. Is it a model?")
    known = architectures()
    if name not in known:
        raise UnsupportedModel(f"{file} is of architecture {name!r}, whose GGUF files this version does not read (reads: {', '.join(known)})."
                               f"{did_you_mean(nearest(name, known))} The safetensors repository it was made from may be read.")
    model_type, architecture = known[name]
    facts = {key.removeprefix(f"{name}."): _plain(file, key, value) for key, value in metadata.items() if not key.startswith(INERT)}
    for key, value in architecture.fixed.items():
        if facts.pop(key, value) != value:
            raise UnsupportedModel(f"{file} has a setting this family does not implement: {name}.{key}={metadata[f'{name}.{key}']!r:.60} (only {value!r})")
    if missing := [key for key in KEYS if key not in facts and key not in _OPTIONAL]:
        raise BadConfig(f"{file} has no {' and no '.join(f'{name}.{key}' for key in missing)}, which architecture {name!r} needs. Is the file whole?")
    if (n := len({tensor.split(".")[1] for tensor in model.tensors if tensor.startswith("blk.")})) != facts["block_count"]:
        raise BadConfig(f"{file} says {name}.block_count={facts['block_count']!r:.60}, and holds the tensors of {n} blocks. Is a part missing?")
    raw: dict[str, Any] = {"model_type": model_type, "tie_word_embeddings": "output.weight" not in model.tensors}
    raw |= {key: tensor in model.tensors for key, tensor in architecture.present.items()}
    raw |= {config: facts.pop(key) for key, config in KEYS.items() if key in facts}
    _widths(file, name, facts, raw)
    if "vocab_size" not in raw and "token_embd.weight" in model.tensors:  # older files leave it to the table
        raw["vocab_size"] = next(iter(model.tensors["token_embd.weight"][1].shape), 0)
    if scaling := _scaling(model, name, facts, raw):
        raw["rope_scaling"] = scaling
    return raw | {f"{name}.{key}" if f"{name}.{key}" in metadata else key: value for key, value in facts.items()}, architecture


def _widths(file: str, name: str, facts: dict[str, Any], raw: Mapping[str, Any]) -> None:
    """Takes the keys that say again how wide a head is. Raises BadConfig where they disagree."""
    heads, width = raw["num_attention_heads"], raw["hidden_size"]
    if not all(type(n) is int and n > 0 for n in (heads, width)):
        raise BadConfig(f"{file}: {name}.attention.head_count is {heads!r:.60} and {name}.embedding_length {width!r:.60}, and two counts were expected")
    d_head = raw.get("head_dim", width // heads)
    if type(d_head) is not int or d_head < 2:
        raise BadConfig(f"{file}: {name}.attention.key_length is {d_head!r:.60}, and how many channels a head has was expected")
    for key in ("attention.value_length", "rope.dimension_count"):
        if (said := facts.pop(key, d_head)) != d_head:
            raise BadConfig(f"{file}: {name}.{key} is {said!r:.60}, and a head has {d_head} channels, all of which {name!r} turns. Which is right?")


def _scaling(model: Gguf, name: str, facts: dict[str, Any], raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """Takes the keys of the rope's scaling, and its factors where a tensor holds them."""
    kind, factor = facts.pop("rope.scaling.type", "none"), facts.pop("rope.scaling.factor", None)
    if FACTORS in model.tensors:
        if kind != "none":
            raise BadConfig(f"{model.files[0].name} has {name}.rope.scaling.type {kind!r} and {FACTORS} too. Which one scales the rope, nothing says.")
        factors, n = model.floats(FACTORS), raw.get("head_dim", raw["hidden_size"] // raw["num_attention_heads"]) // 2
        if len(factors) != n or not all(0 < factor < math.inf for factor in factors):
            raise BadConfig(f"{model.files[0].name}: {FACTORS} holds {str(factors)[:60]}, and {n} positive numbers were expected, one a pair of channels")
        return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0,
                "original_max_position_embeddings": raw["max_position_embeddings"]}
    if kind == "none":
        return None
    original, facts_of = facts.pop("rope.scaling.original_context_length", None), {"rope_type": kind, "factor": factor}
    facts.pop("rope.scaling.finetuned", None)  # says that the model was tuned so
    return facts_of | ({} if original is None else {"original_max_position_embeddings": original})


def _plain(file: str, key: str, value: Any) -> Any:
    """A number as its author wrote it; of a list with one value for every layer, that value."""
    if isinstance(value, Items):
        items = value.values()
        if not items or any(item != items[0] for item in items):
            raise UnsupportedModel(f"{file} has a setting this version does not implement: {key} differs from layer to layer ({str(items)[:60]})")
        value = items[0]
    return _shortest(value) if isinstance(value, float) else value


def _shortest(value: float) -> float:
    """The shortest decimal that rounds to the same float32: 1e-05 was written as 9.999999747378752e-06."""
    try:
        as_float32 = struct.pack("<f", value)
    except OverflowError:  # a float64, and as it is
        return value
    return next((near for n in range(1, 10) if struct.pack("<f", near := float(f"{value:.{n}g}")) == as_float32), value)
