"""GPT-2's line and the families with wiring of their own: every value of every switch that is published or that transformers implements.

In every case the widths differ from each other and from those of the cases beside it, as far as the family allows: most of these
families fix d_head to hidden_size / num_attention_heads, so that the heads together are as wide as the model.
"""
from __future__ import annotations

import functools

from tests.families.case import LINEAR, LLAMA3, ORIGINAL, WINDOW, YARN, Case, flat_rope, rope

ONE_WIDTH = ("num_key_value_heads", "head_dim")  # of the sizes, those that families before grouped attention do not know
OLD_NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", *ONE_WIDTH)
TABLE = 53  # learned positions: more than a pass is long

GPT2 = [
    Case("gpt2", "released", "tied, gelu_new, no n_inner", {
        "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": TABLE}, without=OLD_NAMES),
    Case("gpt2", "by_depth", "scores divided by depth and in float32 (stanford-crfm), n_inner, untied", {
        "n_embd": 60, "n_layer": 4, "n_head": 5, "n_positions": TABLE, "n_inner": 74, "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True, "tie_word_embeddings": False, "activation_function": "gelu", "layer_norm_epsilon": 3e-5},
         without=OLD_NAMES),
    Case("gpt2", "unscaled", "scale_attn_weights=false", {
        "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": TABLE, "scale_attn_weights": False, "activation_function": "quick_gelu"},
         without=OLD_NAMES, spread=1.0),
]

GPTJ = [
    Case("gptj", "released", "part of each head rotates, untied", {
        "n_embd": 56, "n_layer": 3, "n_head": 4, "n_positions": TABLE, "rotary_dim": 6}, without=OLD_NAMES),
    Case("gptj", "tied", "all of each head rotates, n_inner, tied, relu", {
        "n_embd": 60, "n_layer": 2, "n_head": 5, "n_positions": TABLE, "rotary_dim": 12, "n_inner": 74, "tie_word_embeddings": True,
        "activation_function": "relu", "layer_norm_epsilon": 3e-5}, without=OLD_NAMES),
]

neox_old = functools.partial(flat_rope, theta_key="rotary_emb_base", fraction_key="rotary_pct")
GPT_NEOX = [
    Case("gpt_neox", "pythia", "parallel, a quarter rotates", {"hidden_size": 96}, without=ONE_WIDTH, old=neox_old),
    Case("gpt_neox", "redpajama", "one after the other, all rotates, no biases, linear scaling, tied, relu", {
        "hidden_size": 84, "use_parallel_residual": False, "rope_parameters": LINEAR | {"partial_rotary_factor": 1.0},
        "attention_bias": False, "tie_word_embeddings": True, "hidden_act": "relu", "layer_norm_eps": 3e-5},
         without=ONE_WIDTH, old=neox_old),
    Case("gpt_neox", "yarn", "yarn scaling over half of each head, gelu_fast", {
        "hidden_size": 96, "rope_parameters": YARN | {"partial_rotary_factor": 0.5}, "hidden_act": "gelu_fast"},
         without=ONE_WIDTH, old=neox_old),
]

OPT = [
    Case("opt", "released", "tied, relu, one bias everywhere", {"ffn_dim": 74, "max_position_embeddings": TABLE, "word_embed_proj_dim": 48},
         without=("intermediate_size", *ONE_WIDTH)),
    Case("opt", "untied", "untied, gelu, no word_embed_proj_dim", {
        "ffn_dim": 74, "max_position_embeddings": TABLE, "hidden_size": 60, "num_attention_heads": 5, "tie_word_embeddings": False,
        "activation_function": "gelu"}, without=("intermediate_size", *ONE_WIDTH)),
]

FALCON = [
    Case("falcon", "7b", "one key/value head, tied", {"hidden_size": 84, "num_kv_heads": 6},
         without=("intermediate_size", *ONE_WIDTH), old=flat_rope),
    Case("falcon", "untied", "untied, ffn_hidden_size, relu, linear scaling", {
        "hidden_size": 96, "ffn_hidden_size": 74, "activation": "relu", "tie_word_embeddings": False, "rope_parameters": LINEAR,
        "layer_norm_epsilon": 3e-5}, without=("intermediate_size", *ONE_WIDTH), old=flat_rope),
]

PHI = [
    Case("phi", "released", "half of each head rotates, grouped heads, head_dim of its own", {"head_dim": 12}, old=flat_rope),
    Case("phi", "qk_layernorm", "LayerNorm with bias over each head, another share, linear scaling, tied, relu", {
        "hidden_size": 96, "qk_layernorm": True, "rope_parameters": LINEAR | {"partial_rotary_factor": 0.4}, "tie_word_embeddings": True,
        "hidden_act": "relu", "layer_norm_eps": 3e-5}, without=("head_dim",), old=flat_rope),
]

PHI3 = [
    Case("phi3", "mini_4k", "a window, all of each head rotates", {"sliding_window": WINDOW}, old=flat_rope),
    Case("phi3", "phi4", "no window, half of each head rotates, tied, gelu", {
        "head_dim": 12, "rope_parameters": rope("default", 500.0, partial_rotary_factor=0.5), "original_max_position_embeddings": ORIGINAL,
        "tie_word_embeddings": True, "hidden_act": "gelu", "rms_norm_eps": 3e-5}, old=flat_rope),
]

STABLELM = [
    Case("stablelm", "3b", "a quarter of each head rotates, nothing else", {"hidden_size": 96}, without=("head_dim",), old=flat_rope),
    Case("stablelm", "12b", "both halves at once under one norm, a LayerNorm gain for each head", {
        "hidden_size": 96, "use_parallel_residual": True, "qk_layernorm": True,
        "rope_parameters": rope("default", 500.0, partial_rotary_factor=0.5), "layer_norm_eps": 3e-5,
        "num_key_value_heads": 2}, without=("head_dim",), old=flat_rope),
    Case("stablelm", "1_6b", "q, k and v biases, linear scaling, tied, gelu", {
        "hidden_size": 96, "use_qkv_bias": True, "rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}, "tie_word_embeddings": True,
        "hidden_act": "gelu"}, without=("head_dim",), old=flat_rope),
]

STARCODER2 = [
    Case("starcoder2", "released", "a window, biases, tied", {"sliding_window": WINDOW}, old=flat_rope),
    Case("starcoder2", "no_bias", "use_bias=false, no window, untied, relu, llama3 scaling, no head_dim", {
        "hidden_size": 60, "num_attention_heads": 6, "use_bias": False, "tie_word_embeddings": False, "hidden_act": "relu",
        "rope_parameters": LLAMA3, "norm_epsilon": 3e-5},
         without=("head_dim",), spread=2.0, old=flat_rope),  # wild enough to tell relu from relu6
]

COHERE = [
    Case("cohere", "command_r", "tied, the logits scaled by their default", old=flat_rope),
    Case("cohere", "command_r_plus", "a gain for each head, biases, untied, its own logit scale, linear scaling, gelu", {
        "use_qk_norm": True, "attention_bias": True, "tie_word_embeddings": False, "logit_scale": 0.8333333333333334,
        "rope_parameters": LINEAR, "hidden_act": "gelu", "layer_norm_eps": 3e-5}, old=flat_rope),
]

COHERE2 = [
    Case("cohere2", "r7b", "three windowed layers with rope, one full without", {"hidden_size": 84, "sliding_window": WINDOW},
         without=("head_dim",), old=flat_rope),
    Case("cohere2", "mixed", "layer_types, biases, untied, its own logit scale, llama3 scaling", {
        "hidden_size": 60, "sliding_window": WINDOW, "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"], "attention_bias": True,
        "tie_word_embeddings": False, "logit_scale": 0.25, "rope_parameters": LLAMA3, "layer_norm_eps": 3e-5},
         without=("head_dim",), old=flat_rope),
]

NEMOTRON = [
    Case("nemotron", "minitron", "half of each head rotates, squared ReLU, head_dim of its own", {"head_dim": 12},
         spread=0.8, old=flat_rope),
    Case("nemotron", "biases", "attention_bias, mlp_bias, all of each head rotates, tied, silu, linear scaling", {
        "hidden_size": 60, "attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR | {"partial_rotary_factor": 1.0},
        "tie_word_embeddings": True, "hidden_act": "silu", "norm_eps": 3e-5}, without=("head_dim",), spread=0.8, old=flat_rope),
]

GRANITE = [
    Case("granite", "released", "four multipliers, tied", {
        "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 8.0,
        "tie_word_embeddings": True}, old=flat_rope),
    Case("granite", "biases", "biases, no multipliers, llama3 scaling, gelu, no head_dim", {
        "hidden_size": 60, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3, "hidden_act": "gelu", "rms_norm_eps": 3e-5},
         without=("head_dim",), spread=1.0, old=flat_rope),
]

GLM4 = [
    Case("glm4", "9b", "q, k and v biases, half of each head rotates", {"head_dim": 12}, old=flat_rope),
    Case("glm4", "32b", "no biases, a quarter of each head rotates, linear scaling, tied, gelu", {
        "head_dim": 16, "attention_bias": False, "rope_parameters": LINEAR | {"partial_rotary_factor": 0.25}, "tie_word_embeddings": True,
        "hidden_act": "gelu", "rms_norm_eps": 3e-5}, old=flat_rope),
]

CASES = [*GPT2, *GPTJ, *GPT_NEOX, *OPT, *FALCON, *PHI, *PHI3, *STABLELM, *STARCODER2, *COHERE, *COHERE2, *NEMOTRON, *GRANITE, *GLM4]
