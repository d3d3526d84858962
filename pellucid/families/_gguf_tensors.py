"""Names of GGUF's tensors, as tables from theirs to ours; a family picks what it has. One table reads and writes. No torch here.

Source: TENSOR_NAMES of the gguf package's constants.py; what is done to a tensor besides: conversion/*.py of llama.cpp, beside each family's table.
"""
from __future__ import annotations

from collections.abc import Mapping

from pellucid.weights.names import Rule, Table, left_out, old, to

FACTORS = "rope_freqs.weight"  # what each pair's frequency is divided by: how Llama 3's scaling is written
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"  # longrope's, one a pair
ENDS: dict[str, Rule] = {
    "token_embd.weight": "embed.weight", "output_norm.weight": "final_norm.weight", "output.weight": "unembed.weight",
    **dict.fromkeys((FACTORS, LONG, SHORT), left_out("factors of the rope, read into its scaling")),
}


def block(names: Mapping[str, str], *kinds: str) -> dict[str, Rule]:
    """Tensors of every layer: theirs after `blk.{i}.` -> ours after `blocks.{i}.`, of these kinds, of weight and bias where none is named."""
    return {f"blk.{{i}}.{theirs}.{kind}": f"blocks.{{i}}.{ours}.{kind}" for theirs, ours in names.items() for kind in kinds or ("weight", "bias")}


def without(table: Table, *parts: str) -> dict[str, Rule]:
    """The table less the names that have one of these parts in them."""
    return {name: rule for name, rule in table.items() if not any(part in name for part in parts)}


def fused(theirs: str, *ours: str, paired: int = 0, experts: bool = False) -> dict[str, Rule]:
    """One matrix of several of ours, one after another, and its bias."""
    return {f"blk.{{i}}.{theirs}.{kind}": to(*(f"blocks.{{i}}.{name}.{kind}" for name in ours), paired=paired, all_experts=experts)
            for kind in ("weight", "bias")}


NORMS = block({"attn_norm": "attn_norm", "ffn_norm": "mlp_norm"})
FINAL_BIAS: dict[str, Rule] = {"output_norm.bias": "final_norm.bias"}
ATTN = block({"attn_output": "attn.o", **{f"attn_{x}": f"attn.{x}" for x in "qkv"}})
MLP = block({f"ffn_{x}": f"mlp.{x}" for x in ("gate", "up", "down")})
QK_NORMS = block({f"attn_{x}_norm": f"attn.{x}_norm" for x in "qk"})
OUT_NORMS = block({"post_attention_norm": "attn_out_norm", "post_ffw_norm": "mlp_out_norm"})
# q, k and v as one, where the converter was asked for it (--fuse-qkv), and in the architectures whose files always have it so.
ALSO_QKV = {name: old(rule) for name, rule in fused("attn_qkv", "attn.q", "attn.k", "attn.v").items()}
QKV = {name: old(ATTN[name]) for name in ATTN if "output" not in name} | fused("attn_qkv", "attn.q", "attn.k", "attn.v")
ATTN_FUSED = ATTN | QKV
DENSE: dict[str, Rule] = {f"dense_{i}.weight": left_out("what a text's vector passes after it was pooled: this decoder gives the vector") for i in (2, 3)}
GATE_UP = fused("ffn_up", "mlp.gate", "mlp.up")

TENSORS: dict[str, Rule] = ENDS | NORMS | ATTN | MLP | ALSO_QKV
# Rows of queries and keys whose head has the two halves of its channels interleaved: conversion/llama.py, LlamaModel.permute
PAIRED: dict[str, Rule] = {f"blk.{{i}}.attn_{x}.{kind}": to(f"blocks.{{i}}.attn.{x}.{kind}", paired=1) for x in "qk" for kind in ("weight", "bias")} | {
    name: old(rule) for name, rule in fused("attn_qkv", "attn.q", "attn.k", "attn.v", paired=2).items()}
# GPT-2 and those after it: q, k and v in one matrix, no gate, biases everywhere.
PLAIN: dict[str, Rule] = {**without(ENDS, "rope"), **FINAL_BIAS, **NORMS, **block({"attn_output": "attn.o", "ffn_up": "mlp.up", "ffn_down": "mlp.down"}), **QKV}
_EXPERTS = [(x, f"mlp.experts.{{e}}.{x}") for x in ("gate", "up", "down")]
EXPERTS: dict[str, Rule] = block({"ffn_gate_inp": "mlp.router"}) | {
    name: rule for x, ours in _EXPERTS for name, rule in fused(f"ffn_{x}_exps", ours, experts=True).items()} | {
    name: old(rule) for name, rule in fused("ffn_gate_up_exps", *(ours for _, ours in _EXPERTS[:2]), experts=True).items()}  # --fuse-gate-up-exps
CORRECTION: dict[str, Rule] = {"blk.{i}.exp_probs_b.bias": "blocks.{i}.mlp.router.correction"}
SHARED = block({f"ffn_{x}_shexp": f"mlp.shared.{x}" for x in ("gate", "up", "down")})


# DeepSeek's latent attention. What brings latents to keys and values lies apart, a matrix a head, the keys' turned; older files have both in one.
LATENT: dict[str, Rule] = {
    **block({"attn_q": "attn.q", "attn_q_a": "attn.q_down", "attn_q_a_norm": "attn.q_norm", "attn_q_b": "attn.q_up", "attn_kv_a_mqa": "attn.kv_down",
             "attn_kv_a_norm": "attn.kv_norm", "attn_output": "attn.o"}),
    "blk.{i}.attn_k_b.weight": to("blocks.{i}.attn.k_up.weight", by_head="turned"),
    "blk.{i}.attn_v_b.weight": to("blocks.{i}.attn.v_up.weight", by_head=True),
    "blk.{i}.attn_kv_b.weight": old(to("blocks.{i}.attn.k_up.weight", "blocks.{i}.attn.v_up.weight", stacked="by_kv_head"))}
# Gemma 4's inputs of each layer's own, and its mixture beside the feed-forward.
INPUTS: dict[str, Rule] = {
    "per_layer_token_embd.weight": "inputs.table.weight", "per_layer_model_proj.weight": "inputs.project.weight",
    "per_layer_proj_norm.weight": "inputs.norm.weight",
    **block({"inp_gate": "input.gate", "proj": "input.out", "post_norm": "input.out_norm"}, "weight"),
    "blk.{i}.layer_output_scale.weight": to("blocks.{i}.scale", flat=True)}
BESIDE: dict[str, Rule] = {
    **block({"pre_ffw_norm_2": "beside.norm", "post_ffw_norm_1": "beside.mlp_norm", "post_ffw_norm_2": "beside.out_norm",
             "ffn_gate_inp": "beside.mixture.router"}, "weight"),
    "blk.{i}.ffn_gate_inp.scale": "blocks.{i}.beside.mixture.router.norm.weight", "blk.{i}.ffn_down_exps.scale": "blocks.{i}.beside.mixture.router.gain",
    **fused("ffn_gate_up_exps", *(f"beside.mixture.experts.{{e}}.{x}" for x in ("gate", "up")), experts=True),
    **fused("ffn_down_exps", "beside.mixture.experts.{e}.down", experts=True),
    **{name: old(rule) for x in ("gate", "up") for name, rule in fused(f"ffn_{x}_exps", f"beside.mixture.experts.{{e}}.{x}", experts=True).items()}}


def raised(table: Table, by: float = 1.0) -> dict[str, Rule]:
    """The table with the gains of its norms stored with so much added, which the norm of the model itself adds: gemma and nemotron."""
    norms = {name: rule for name, rule in table.items() if name.endswith("norm.weight") and isinstance(rule, str)}
    return {**table, **{name: to(rule, offset=by) for name, rule in norms.items()}}
