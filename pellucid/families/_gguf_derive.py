"""What a config.json says that no single key of GGUF's metadata does: formulas that families share. Each takes the keys it reads. No torch here."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pellucid.errors import BadConfig
from pellucid.families._gguf import THETA, Derive, Facts
from pellucid.families._gguf_keys import Free, Of, mixtures, near, of_latent, one
from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, LatentAttention, Yarn


def d_head(raw: Mapping[str, Any]) -> int:
    """Channels of a head, where no key need say it."""
    return int(raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"])


def turning(facts: Facts, raw: Mapping[str, Any]) -> float:
    """The share of a head's channels that rotate: all of them where no key counts them."""
    return float(facts.take("rope.dimension_count", d_head(raw)) / d_head(raw))


def layer_types(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The kind of each layer where the file lists the windowed ones; a number is how many layers the pattern is long, the last one without a window."""
    said, n = facts.take("attention.sliding_window_pattern"), raw["num_hidden_layers"]
    if said is None or not raw.get("sliding_window"):
        return {}
    here = [bool(each) for each in said] if isinstance(said, list) else [said is True or (said is not False and (i + 1) % said != 0) for i in range(n)]
    return {"layer_types": ["sliding_attention" if each else "full_attention" for each in here]}


def partial(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The share that rotates, as most families call it."""
    return {"partial_rotary_factor": turning(facts, raw)}


def query_scalar(wide: int) -> Derive:
    """What divides the scores is not in Gemma's files: the square root of a head's width, or of its share of d_model in the model that has so many
    layers. src/models/gemma2.cpp and gemma3.cpp of llama.cpp.
    """
    def derive(facts: Facts, raw: dict[str, Any]) -> dict[str, Any]:
        return {"query_pre_attn_scalar": raw["hidden_size"] // raw["num_attention_heads"] if raw["num_hidden_layers"] == wide else d_head(raw)}
    return derive


def windows(every: int) -> Derive:
    """`layer_types` of files that need not list them: each layer but every so many is windowed, and none where there is no window."""
    def derive(facts: Facts, raw: dict[str, Any]) -> dict[str, Any]:
        n = raw["num_hidden_layers"]
        if not raw.get("sliding_window"):
            return {"sliding_window": None, "layer_types": ["full_attention"] * n}
        return layer_types(facts, raw) or {"layer_types": ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(n)]}
    return derive


def ways(both: bool) -> dict[str, Any]:
    """Of tokens that see what follows them too, whose files count a window's both sides; and of those that do not."""
    return {"given": {"sliding_window": None, "use_bidirectional_attention": both}, "fits": lambda spec: spec.causal != both,
            "inert": tuple(f"dense_{i}_feat_{way}" for i in (2, 3) for way in ("in", "out")),
            "of": {"attention.sliding_window": lambda s: one(2 * (m.window - 1) for m in near(s) if m.window is not None)} if both else {}}


def each(facts: Facts, key: str, n: int) -> list[Any]:
    """A key's value for each layer, which the file may say once for all."""
    said = facts.take(key)
    return said if isinstance(said, list) else [said] * n


# Latent attention: keys and values of one head are the latents, and their widths as if every head had its own stand under -mla. Files made before
# those keys were have the widths in their place, and the matrices in one: conversion/deepseek.py.
LATENT: dict[str, Of] = {key: lambda s, of=of: Free(of(s)) for key, of in {
    "attention.head_count_kv": lambda s: 1, "attention.key_length": of_latent(lambda m: m.n_cached),
    "attention.value_length": of_latent(lambda m: m.d_latent)}.items()} | {
    "rope.dimension_count": of_latent(lambda m: m.rope.d_rotary),
    "rope.scaling.yarn_log_multiplier": of_latent(lambda m: _sharpness(m) or None)}
ALSO_LATENT = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.key_length_mla", "attention.value_length_mla",
               "attention.q_lora_rank", "attention.kv_lora_rank", "rope.dimension_count", "expert_gating_func",
               "rope.scaling.yarn_log_multiplier")


def _sharpness(m: LatentAttention) -> float:
    """A tenth of mscale_all_dim, out of what it made of the scores."""
    return (math.sqrt(m.scale * math.sqrt(m.d_plain + m.rope.d_rotary)) - 1) / math.log(m.rope.scaling.factor) if isinstance(m.rope.scaling, Yarn) else 0.0


def latent(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    turns = facts.take("rope.dimension_count")
    keys, values = (facts.said.get(f"attention.{x}_length_mla", facts.said.get(f"attention.{x}_length")) for x in ("key", "value"))
    return {"num_key_value_heads": raw["num_attention_heads"], "q_lora_rank": facts.take("attention.q_lora_rank"),
            "kv_lora_rank": facts.take("attention.kv_lora_rank"), "qk_rope_head_dim": turns, "qk_nope_head_dim": keys - turns, "v_head_dim": values}


def norms_apart(two: bool) -> dict[str, Any]:
    """`when` and `fits` of parallel blocks whose halves have a norm of their own each, or one for both."""
    return {"when": lambda facts: facts.has("blk.0.attn_norm_2.weight") == two, "fits": lambda spec: spec.shared_norm != two}


def mosaic(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    kv, alibi = facts.take("attention.head_count_kv", raw["n_heads"]), facts.take("attention.max_alibi_bias", 0.0)
    attn = {"attn_type": "grouped_query_attention", "kv_n_heads": kv, "clip_qkv": facts.take("attention.clamp_kqv"), "alibi": alibi > 0,
            "qk_ln": facts.has("blk.0.attn_q_norm.weight")}
    return {"attn_config": attn | ({"alibi_bias_max": alibi} if alibi > 0 else {}), "no_bias": not facts.has("blk.0.attn_qkv.bias"),
            "expansion_ratio": facts.take("feed_forward_length") // raw["d_model"], "learned_pos_emb": facts.has("position_embd.weight")}


def chosen(facts: Facts) -> bool:
    """Whether the layers were chosen one by one, each of its own width, or left out."""
    return any(isinstance(facts.said.get(key), list) for key in ("attention.head_count", "feed_forward_length"))


def blocks(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    """block_configs. A layer without heads has no attention; one with queries alone is a matrix there, for which these files have no name of its own."""
    n, D = raw["num_hidden_layers"], raw["hidden_size"]
    heads, kv, wide = (each(facts, key, n) for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"))
    if torn := [i for i in range(n) if bool(heads[i]) != bool(kv[i])]:
        raise BadConfig(f"{facts.file}: layer {torn[0]} has {heads[torn[0]]} heads and {kv[torn[0]]} of keys: a matrix in place of attention, which is "
                        f"read from safetensors only")
    return {"num_attention_heads": max(heads), "num_key_value_heads": max(kv), "block_configs": [
        {"attention": {"no_op": True, "n_heads_in_group": None} if not h else {"n_heads_in_group": h // k},
         "ffn": {"no_op": True, "ffn_mult": None} if not w else {"ffn_mult": 3 * w / (2 * D)}} for h, k, w in zip(heads, kv, wide, strict=True)]}


def every(s: DecoderSpec) -> int:
    """How many layers after another one is sparse."""
    sparse = [isinstance(layer.mlp, Experts) for layer in s.layers]
    return sparse.index(True) + 1 if True in sparse else 0


def chunked(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 4's constants, which src/models/llama4.cpp has in place of keys: every fourth layer sees everything and has no rope; 128 experts, no norms."""
    n, whole = raw["num_hidden_layers"], facts.take("attention.sliding_window") == 0
    facts.take("rope.dimension_count")
    return {"no_rope_layers": [1 if whole else int((i + 1) % 4 != 0) for i in range(n)], "attn_temperature_tuning": not whole,
            "layer_types": ["chunked_attention" if not whole and (i + 1) % 4 else "full_attention" for i in range(n)],
            "attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1, "use_qk_norm": raw.get("num_local_experts") != 128}


def scaled(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    """MiniCPM's factors; those of the first model where the file has none: src/models/minicpm.cpp."""
    n, D = raw["num_hidden_layers"], raw["hidden_size"]
    residual, logit = facts.take("residual_scale", 1.4 / math.sqrt(n)), facts.take("logit_scale", D / 256)
    return {"scale_emb": raw.get("scale_emb", 12.0), "scale_depth": residual * math.sqrt(n), "dim_model_base": D / logit}


def sharpened(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Ministral 3's rope, whose length before stretching is also the step at which queries grow."""
    over_all = facts.take("rope.scaling.yarn_log_multiplier", 1.0)
    more = {ours: value for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow"))
            if (value := facts.take(f"rope.scaling.{theirs}")) is not None}
    kind, factor = facts.take("rope.scaling.type", "default"), facts.take("rope.scaling.factor")
    more |= {"mscale": 1.0, "mscale_all_dim": over_all} if kind == "yarn" else {}
    return {"rope_theta": None, "rope_parameters": {
        "rope_type": kind, "factor": factor, "rope_theta": raw["rope_theta"], "llama_4_scaling_beta": facts.take("attention.temperature_scale"),
        "original_max_position_embeddings": facts.take("rope.scaling.original_context_length", raw["max_position_embeddings"])} | more}


def two_widths(facts: Facts, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Gemma 4: heads of one width where a layer is windowed, and of another where it sees everything. conversion/gemma.py, Gemma4Model."""
    n = raw["num_hidden_layers"]
    here = [bool(x) for x in each(facts, "attention.sliding_window_pattern", n)]
    kv, wide = (each(facts, key, n) for key in ("attention.head_count_kv", "feed_forward_length"))
    full, sharing = here.index(False), facts.take("attention.shared_kv_layers", 0)
    factors = facts.floats("rope_freqs.weight") if "rope_freqs.weight" in facts.tensors else []
    turning = sum(factor < 1e9 for factor in factors) / len(factors) if factors else 1.0
    mixture = facts.has("blk.0.ffn_gate_inp.weight")
    return {
        "layer_types": ["sliding_attention" if x else "full_attention" for x in here], "num_kv_shared_layers": sharing,
        "num_key_value_heads": kv[here.index(True)] if True in here else kv[0], "num_global_key_value_heads": kv[full],
        "head_dim": facts.take("attention.key_length_swa"), "global_head_dim": facts.take("attention.key_length"),
        "intermediate_size": wide[0], "use_double_wide_mlp": wide[-1] != wide[0],
        "hidden_size_per_layer_input": facts.take("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": next(iter(facts.tensors.get("per_layer_token_embd.weight", (0,)))),
        "attention_k_eq_v": not facts.has(f"blk.{full}.attn_v.weight"), "enable_moe_block": mixture,
        **({ours: facts.take(key) for key, ours in _MIXTURE.items()} if mixture else {}),
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": turning, "rope_theta": facts.take("rope.freq_base", THETA)},
            "sliding_attention": {"rope_type": "default", "rope_theta": facts.take("rope.freq_base_swa", THETA)}}}


_MIXTURE = {"expert_count": "num_experts", "expert_used_count": "top_k_experts", "expert_feed_forward_length": "moe_intermediate_size"}
TWO_WIDTHS: dict[str, Of] = {
    "attention.shared_kv_layers": lambda s: sum(isinstance(m, Attention) and m.shares is not None for m in s.mixers),
    "embedding_length_per_layer_input": lambda s: 0 if s.layer_inputs is None else s.layer_inputs.d_input,
    "feed_forward_length": lambda s: one(layer.mlp.d_ff for layer in s.layers if isinstance(layer.mlp, FeedForward)),
    "expert_feed_forward_length": lambda s: mixtures(s)[0].each.d_ff if mixtures(s) else Free(0)}
MANY_WIDTHS = ("attention.sliding_window_pattern", "attention.head_count_kv", "feed_forward_length")
ALSO_WIDTHS = (*TWO_WIDTHS, "attention.key_length", "attention.value_length", "attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count",
               "rope.dimension_count_swa", "rope.freq_base", "rope.freq_base_swa", "attention.sliding_window_pattern", "attention.head_count_kv",
               "expert_count", "expert_used_count")
