"""Llama's later descendants and their mixtures: every value of every switch that is published or that transformers implements."""
from __future__ import annotations

from typing import Any

from tests.families.case import DYNAMIC, LINEAR, LLAMA3, ORIGINAL, SIZES, WINDOW, YARN, Case, Json, flat_rope, rope, yarn
from tests.families.cases_llama import EVERY_OTHER, PLAIN, of
from tests.references import deci

qwen2_moe = of("qwen2_moe")
QWEN2_MOE = [
    qwen2_moe("released", "a shared expert behind a gate, shares as they are", {
        "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 36, "num_hidden_layers": 2,
        "rope_parameters": PLAIN, "rms_norm_eps": 3e-5}),
    qwen2_moe("windows", "alternating windows up to max_window_layers, some layers dense, norm_topk_prob, no biases, tied, yarn", {
        "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 36, "num_hidden_layers": 5,
        "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        "norm_topk_prob": True, "qkv_bias": False, "tie_word_embeddings": True, "rope_parameters": yarn()}, without=("head_dim",)),
    qwen2_moe("layer_types", "windows where layer_types says", {
        "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 36, "decoder_sparse_step": 3,
        "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": EVERY_OTHER[::-1], "rope_parameters": PLAIN, "hidden_act": "gelu"}),
]

dots1 = of("dots1")
DOTS1 = [
    dots1("released", "one group, a dense layer first, two shared experts, renormalized shares scaled", {
        "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2, "moe_intermediate_size": 20, "first_k_dense_replace": 1,
        "num_hidden_layers": 3, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "sliding_window": None, "rope_parameters": PLAIN,
        "rms_norm_eps": 3e-4}, without=("head_dim",)),
    dots1("groups", "two of five groups, shares as they are, late windows, biases, tied, yarn", {
        "n_routed_experts": 10, "num_experts_per_tok": 3, "n_shared_experts": 1, "moe_intermediate_size": 20, "n_group": 5, "topk_group": 2,
        "norm_topk_prob": False, "sliding_window": WINDOW, "max_window_layers": 2, "attention_bias": True, "tie_word_embeddings": True,
        "rope_parameters": yarn(), "rms_norm_eps": 3e-4}),
]

glm, glm4_moe = of("glm"), of("glm4_moe")
GLM = [
    glm("9b", "q, k and v biases, half of each head rotates, adjacent pairs", {
        "head_dim": 12, "rope_parameters": rope("default", 500.0, partial_rotary_factor=0.5)}),
    glm("no_bias", "attention_bias=false, a quarter of each head rotates, linear scaling, tied, gelu", {
        "head_dim": 16, "attention_bias": False, "rope_parameters": LINEAR | {"partial_rotary_factor": 0.25}, "tie_word_embeddings": True,
        "hidden_act": "gelu", "rms_norm_eps": 3e-5}),
    glm4_moe("4_5", "norms on queries and keys, one dense layer, one shared expert, half of each head rotates", {
        "head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 1, "moe_intermediate_size": 20,
        "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 2.5, "num_hidden_layers": 2, "rms_norm_eps": 3e-4,
        "rope_parameters": rope("default", 500.0, partial_rotary_factor=0.5)}),
    glm4_moe("air", "no norms on queries and keys, groups, two dense layers, two shared experts, shares as they are, tied, yarn", {
        "head_dim": 12, "n_routed_experts": 10, "num_experts_per_tok": 3, "n_shared_experts": 2, "moe_intermediate_size": 20, "n_group": 5,
        "topk_group": 2, "first_k_dense_replace": 2, "norm_topk_prob": False, "tie_word_embeddings": True, "num_hidden_layers": 3,
        "rope_parameters": yarn(partial_rotary_factor=0.5)}),
]

FACTORS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 8.0}
SMALL = {"num_local_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 20, "num_hidden_layers": 2}
granitemoe, granitemoeshared = of("granitemoe"), of("granitemoeshared")
GRANITEMOE = [
    granitemoe("released", "four multipliers, a softmax over the chosen experts, tied", {
        **FACTORS, **SMALL, "tie_word_embeddings": True, "rope_parameters": PLAIN, "rms_norm_eps": 3e-5}, without=("head_dim",)),
    granitemoe("biases", "attention_bias, no multipliers, llama3 scaling, gelu", {
        **SMALL, "attention_bias": True, "rope_parameters": LLAMA3, "hidden_act": "gelu"}, spread=1.0),
    granitemoeshared("shared", "a shared expert", {**FACTORS, **SMALL, "shared_intermediate_size": 36, "rope_parameters": PLAIN, "rms_norm_eps": 3e-5}),
    granitemoeshared("alone", "shared_intermediate_size=0, attention_bias, tied", {
        **SMALL, "attention_multiplier": 0.2, "attention_bias": True, "tie_word_embeddings": True, "rope_parameters": LINEAR}, without=("head_dim",)),
]

minimax_m2 = of("minimax_m2")
MINIMAX_M2 = [
    minimax_m2("released", "part of each head rotates, norms over whole queries and keys, corrected sigmoid scores", {
        **SMALL, "head_dim": 12, "rope_parameters": rope("default", 500.0, partial_rotary_factor=0.5), "rms_norm_eps": 3e-4},
        old=lambda raw: flat_rope(raw, fraction_key="rotary_dim") | {"rotary_dim": 6}),
    minimax_m2("yarn", "all of each head rotates, tied, yarn, gelu", {
        **SMALL, "rope_parameters": yarn(), "tie_word_embeddings": True, "hidden_act": "gelu"}),
]


def old_olmo3(raw: Json) -> Json:
    """OLMo 3's config.json as transformers 4 wrote it: one base, and a scaling for the full layers alone."""
    full = raw["rope_parameters"]["full_attention"]
    assert full["rope_theta"] == raw["rope_parameters"]["sliding_attention"]["rope_theta"]
    old = flat_rope(raw | {"rope_parameters": full})
    if scaling := old["rope_scaling"]:
        scaling["rope_type"] = scaling.pop("type")  # the oldest spelling was gone by then
    return old


def two_ropes(**full: Any) -> Json:
    """Both kinds of layers with the base of the release, the full ones scaled."""
    return {"full_attention": {"rope_theta": 5e5, **full}, "sliding_attention": rope("default", 5e5)}


olmo3, exaone4, ernie4_5, seed_oss = (of(family) for family in ("olmo3", "exaone4", "ernie4_5", "seed_oss"))
DENSE = [
    olmo3("released", "three windowed layers per full one", {
        "sliding_window": WINDOW, "num_hidden_layers": 5, "rms_norm_eps": 3e-4, "rope_parameters": two_ropes(rope_type="default")},
        without=("head_dim",), old=old_olmo3),
    olmo3("long", "yarn in the full layers alone, layer_types, attention_bias, tied, gelu", {
        "sliding_window": WINDOW, "layer_types": EVERY_OTHER, "attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu",
        "rms_norm_eps": 3e-4, "rope_parameters": two_ropes(**YARN | {"rope_theta": 5e5})}, old=old_olmo3),
    olmo3("two_bases", "a base for each kind of layer", {
        "sliding_window": WINDOW, "layer_types": EVERY_OTHER, "rope_parameters": {
            "full_attention": rope("linear", 700.0, factor=3.0), "sliding_attention": rope("default", 90.0)}}, old=None),
    exaone4("32b", "three windowed layers with rope, a full one without", {
        "sliding_window": WINDOW, "num_hidden_layers": 5, "rope_parameters": LLAMA3, "rms_norm_eps": 3e-4}, without=("head_dim",)),
    exaone4("1_2b", "no windows, rope everywhere, tied", {
        "sliding_window": None, "sliding_window_pattern": None, "layer_types": ["full_attention"] * 4, "tie_word_embeddings": True,
        "rope_parameters": PLAIN}),
    exaone4("layer_types", "windows where layer_types says, yarn, gelu", {
        "sliding_window": WINDOW, "layer_types": EVERY_OTHER, "rope_parameters": yarn(), "hidden_act": "gelu"}),
    ernie4_5("released", "adjacent pairs, tied", {"rope_parameters": PLAIN, "rms_norm_eps": 3e-5}),
    ernie4_5("biases", "use_bias, untied, linear scaling, gelu", {
        "use_bias": True, "tie_word_embeddings": False, "rope_parameters": LINEAR, "hidden_act": "gelu"}),
    seed_oss("released", "q, k and v biases", {"rope_parameters": PLAIN, "rms_norm_eps": 3e-5}),
    seed_oss("biases", "attention_out_bias, mlp_bias, tied, llama3 scaling, gelu", {
        "attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rope_parameters": LLAMA3, "hidden_act": "gelu"}),
    seed_oss("no_bias", "attention_bias=false, yarn", {"attention_bias": False, "rope_parameters": yarn(), "num_hidden_layers": 2}),
]

phi3 = of("phi3")


def longrope(n: int, **facts: Any) -> Json:
    """longrope over n pairs, every factor another."""
    return rope("longrope", 500.0, short_factor=[1.0 + 0.1 * i for i in range(n)], long_factor=[1.5 + 0.7 * i for i in range(n)], **facts)


def old_phi3(raw: Json) -> Json:
    """transformers 4 kept the context before stretching outside of the scaling alone."""
    old = flat_rope(raw)
    old["rope_scaling"].pop("original_max_position_embeddings")
    return old


PHI3 = [
    phi3("128k", "longrope, past its original context: the long factors at all positions", {
        "hidden_size": 96, "original_max_position_embeddings": ORIGINAL, "rope_parameters": longrope(8), "rms_norm_eps": 3e-5},
        without=("head_dim",), old=old_phi3),
    phi3("short", "longrope, up to its original context: the short factors; a window", {
        "hidden_size": 96, "original_max_position_embeddings": 29, "max_position_embeddings": 58, "rope_parameters": longrope(8),
        "sliding_window": WINDOW}, length=29, without=("head_dim",), old=old_phi3),
    phi3("4_mini", "longrope over three quarters of each head, its attention_factor, tied", {
        "hidden_size": 96, "original_max_position_embeddings": ORIGINAL, "tie_word_embeddings": True,
        "rope_parameters": longrope(6, partial_rotary_factor=0.75, attention_factor=1.3)}, without=("head_dim",), old=old_phi3),
    phi3("factor", "longrope's factor in place of the ratio of the contexts", {
        "hidden_size": 96, "num_hidden_layers": 2, "original_max_position_embeddings": ORIGINAL, "rope_parameters": longrope(8, factor=7.0)},
        without=("head_dim",), old=old_phi3),
]

def dbrx(name: str, why: str, attn: Json, ffn: Json, **rest: Any) -> Case:
    return Case("dbrx", name, why, {
        "vocab_size": 101, "d_model": 96, "n_heads": 6, "n_layers": 2, "max_seq_len": 29, "attn_config": {"kv_n_heads": 3, "rope_theta": 1e4, **attn},
        "ffn_config": {"ffn_hidden_size": 20, "moe_num_experts": 8, "moe_top_k": 3, **ffn}, **rest}, without=tuple(SIZES))


apertus = of("apertus")
FUSED = [
    dbrx("released", "clip_qkv, shares renormalized", {"clip_qkv": 0.9}, {}, rope_parameters=rope("default")),
    dbrx("as_they_are", "a wider clip, shares as they are, gelu, yarn", {"clip_qkv": 1.7}, {
        "moe_normalize_expert_weights": None, "ffn_act_fn": {"name": "gelu"}}, rope_parameters=YARN),
    apertus("released", "xIELU with learned numbers, norms on queries and keys, llama3 scaling", {"rope_parameters": LLAMA3, "rms_norm_eps": 3e-4}),
    apertus("biases", "attention_bias, tied, gelu, linear scaling", {
        "attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu", "rope_parameters": LINEAR}, without=("head_dim",)),
]

ALPHA = {"rope_type": "dynamic", "rope_theta": 500.0, "alpha": 3.0, "factor": 1.0}
hunyuan_v1_dense, hunyuan_v1_moe, ministral3 = of("hunyuan_v1_dense"), of("hunyuan_v1_moe"), of("ministral3")
LATE_NORMS = [
    hunyuan_v1_dense("released", "norms after the rope, the base stretched by alpha, tied", {
        "rope_parameters": ALPHA | {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}, "tie_word_embeddings": True,
        "rms_norm_eps": 3e-4}),
    hunyuan_v1_dense("biases", "attention_bias, linear scaling, gelu", {"attention_bias": True, "rope_parameters": LINEAR, "hidden_act": "gelu"}),
    hunyuan_v1_dense("dynamic", "dynamic scaling without alpha, past the original context", {"rope_parameters": DYNAMIC}),
    hunyuan_v1_moe("released", "a mixture beside a shared expert, the base stretched by alpha, one moe_topk for all layers", {
        "num_experts": 8, "moe_topk": 3, "intermediate_size": 20, "num_hidden_layers": 2, "rope_parameters": ALPHA, "rms_norm_eps": 3e-4}),
    hunyuan_v1_moe("lists", "a moe_topk for each layer, attention_bias, tied, yarn", {
        "num_experts": 8, "moe_topk": [2, 3], "intermediate_size": 20, "num_hidden_layers": 2, "attention_bias": True, "tie_word_embeddings": True,
        "rope_parameters": yarn()}),
    ministral3("released", "queries that grow with their position, yarn", {
        "rope_parameters": yarn(llama_4_scaling_beta=0.1, mscale=1.0, mscale_all_dim=1.0), "rms_norm_eps": 3e-5}),
    ministral3("window", "a window, tied, llama3 scaling, another growth, gelu", {
        "rope_parameters": LLAMA3 | {"llama_4_scaling_beta": 0.4}, "sliding_window": WINDOW, "tie_word_embeddings": True, "hidden_act": "gelu"}),
]

def block(group: int | None, mult: float | None) -> Json:
    """One of block_configs; None leaves the half out, 0 puts a matrix in its place."""
    attention = {"n_heads_in_group": group or None, "no_op": group is None, "num_sink_tokens": None, "replace_with_linear": group == 0, "sparsify": None,
                 "unshifted_sink": False, "use_prefill_window_in_sink_attention": False, "window_length": None}
    return {"attention": attention, "ffn": {"ffn_mult": mult or None, "no_op": mult is None, "replace_with_linear": mult == 0, "sparsify": None}}


def own_layers(family: str, name: str, why: str, config: Json) -> Case:
    return Case(family, name, why, {"hidden_size": 84, "rope_theta": 500.0, **config}, without=("head_dim", "num_key_value_heads"), reference=deci)


OWN_LAYERS = [
    own_layers("nemotron_nas", "released", "groups and widths of each layer's own, layers without attention or without feed-forward, llama3 scaling", {
        "model_type": "nemotron-nas", "intermediate_size": None, "rms_norm_eps": 3e-5, "num_key_value_heads": None,
        "block_configs": [block(2, 5.25), block(None, 2.625), block(3, None), block(6, 4.5)],
        "rope_scaling": {**{k: v for k, v in LLAMA3.items() if k != "rope_theta"}}}),
    own_layers("nemotron_nas", "linear", "one matrix in place of attention, of a feed-forward, of both", {
        "model_type": "nemotron-nas", "mlp_bias": True, "rms_norm_eps": 3e-5, "num_key_value_heads": None,
        "block_configs": [block(2, 5.25), block(0, 2.625), block(3, 0), block(0, 0)]}),
    own_layers("nemotron_nas", "biases", "attention_bias, mlp_bias, tied", {
        "model_type": "nemotron-nas", "num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5, "block_configs": [block(3, 2.5), block(1, 5.25)]}),
    own_layers("deci", "released", "key/value heads of each layer's own", {"num_key_value_heads_per_layer": [3, 2, 6, 1], "rms_norm_eps": 3e-5}),
]

CASES: list[Case] = [*OWN_LAYERS, *LATE_NORMS, *FUSED, *PHI3, *QWEN2_MOE, *DOTS1, *GLM, *GRANITEMOE, *MINIMAX_M2, *DENSE]
