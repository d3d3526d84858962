"""Gemma 4's text models: every value of every switch that is published or that transformers implements."""
from __future__ import annotations

from tests.families.case import WINDOW, Case, Json, rope
from tests.families.cases_llama import EVERY_OTHER

ROPES = {"full_attention": rope("proportional", 300.0, partial_rotary_factor=0.5), "sliding_attention": rope("default", 90.0)}


def gemma4(name: str, why: str, config: Json) -> Case:
    return Case("gemma4_text", name, why, {"hidden_size_per_layer_input": 0, "sliding_window": WINDOW, "global_head_dim": 16, **config})


def gemma4_unified(name: str, why: str, config: Json) -> Case:
    return Case("gemma4_unified_text", name, why, {"sliding_window": WINDOW, "global_head_dim": 16, **config})


CASES: list[Case] = [
    gemma4("31b", "keys that are values in full layers, heads of two widths, the first pairs of full layers turn, a soft cap", {
        "attention_k_eq_v": True, "num_global_key_value_heads": 2, "final_logit_softcapping": 7.0, "rms_norm_eps": 3e-4, "layer_types": EVERY_OTHER,
        "rope_parameters": ROPES}),
    gemma4("plain", "five windowed layers per full one, keys and values apart, attention_bias, untied, silu, all pairs turn, slower", {
        "num_hidden_layers": 7, "attention_bias": True, "tie_word_embeddings": False, "hidden_activation": "silu", "rms_norm_eps": 3e-4,
        "rope_parameters": {"full_attention": rope("proportional", 300.0, factor=3.0), "sliding_attention": rope("linear", 90.0, factor=2.0)}}),
    gemma4("e2b", "inputs of each layer's own, keys and values of the last layers shared by kind, which have twice the width; a soft cap", {
        "num_hidden_layers": 7, "hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 109, "num_kv_shared_layers": 3, "use_double_wide_mlp": True,
        "final_logit_softcapping": 7.0, "rms_norm_eps": 3e-4, "layer_types": [*EVERY_OTHER, *EVERY_OTHER[:3]], "rope_parameters": ROPES}),
    gemma4("e4b", "the same of one width, attention_bias, untied, silu, keys that are values", {
        "num_hidden_layers": 6, "hidden_size_per_layer_input": 10, "vocab_size_per_layer_input": 101, "num_kv_shared_layers": 4, "attention_bias": True,
        "attention_k_eq_v": True, "num_global_key_value_heads": 2, "tie_word_embeddings": False, "hidden_activation": "silu", "rms_norm_eps": 3e-4,
        "layer_types": [*EVERY_OTHER, *EVERY_OTHER[:2]], "rope_parameters": ROPES}),
    gemma4("26b", "experts beside the feed-forward, each with norms of its own, a router with a norm, shares with a learned gain, keys that are values", {
        "enable_moe_block": True, "num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 20, "attention_k_eq_v": True,
        "num_global_key_value_heads": 2, "final_logit_softcapping": 7.0, "rms_norm_eps": 3e-4, "layer_types": EVERY_OTHER,
        "use_bidirectional_attention": "vision", "rope_parameters": ROPES}),
    # transformers halves the window whenever it makes a config, also of the file it wrote: 2 is what stays.
    gemma4("both_ways", "use_bidirectional_attention=all: keys on both sides, a window to each", {
        "sliding_window": 2, "use_bidirectional_attention": "all", "rms_norm_eps": 3e-4, "layer_types": EVERY_OTHER, "rope_parameters": ROPES}),
    gemma4_unified("12b", "keys that are values in full layers, of one head, heads of two widths, the first pairs of full layers turn, a soft cap", {
        "attention_k_eq_v": True, "num_global_key_value_heads": 1, "final_logit_softcapping": 7.0, "rms_norm_eps": 3e-4, "layer_types": EVERY_OTHER,
        "use_bidirectional_attention": "vision", "rope_parameters": ROPES}),
    gemma4_unified("shared", "keys and values of the last layers shared by kind, twice as wide, attention_bias, untied", {
        "num_hidden_layers": 6, "num_kv_shared_layers": 3, "use_double_wide_mlp": True, "attention_bias": True, "tie_word_embeddings": False,
        "rms_norm_eps": 3e-4, "layer_types": [*EVERY_OTHER, *EVERY_OTHER[:2]], "rope_parameters": ROPES}),
]
