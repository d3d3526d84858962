"""The big mixtures: every value of every switch that is published or that transformers implements."""
from __future__ import annotations

from functools import partial

from tests.families.case import LINEAR, LLAMA3, WINDOW, Case, Json, yarn
from tests.families.cases_llama import PLAIN, of
from tests.references import deepseek, grok_1

# A latent wider than a head's channels: a whole pass then expands it, and decoding absorbs it, as at real sizes.
LATENT: Json = {"num_key_value_heads": 6, "q_lora_rank": 34, "kv_lora_rank": 28, "qk_nope_head_dim": 10, "qk_rope_head_dim": 12, "v_head_dim": 16}
MIXTURE: Json = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "first_k_dense_replace": 1, "num_hidden_layers": 3}
NO_HEAD = ("head_dim",)

deepseek_v2 = of("deepseek_v2")
DEEPSEEK_V2 = [
    deepseek_v2("released", "groups by their best expert, scaled shares, two shared experts, yarn whose two mscales are one", {
        **LATENT, **MIXTURE, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "n_shared_experts": 2, "routed_scaling_factor": 1.6,
        "rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.707), "rms_norm_eps": 3e-5}, without=NO_HEAD),
    deepseek_v2("lite", "no latent for queries, greedy, shares as they are, yarn with two mscales, a dense layer more", {
        **LATENT, **MIXTURE, "q_lora_rank": None, "topk_method": "greedy", "n_shared_experts": 1, "first_k_dense_replace": 2,
        "rope_parameters": yarn(mscale=0.8, mscale_all_dim=0.3)}, without=NO_HEAD),
    deepseek_v2("biases", "attention_bias, mlp_bias, no dense layer, tied, gelu, linear scaling", {
        **LATENT, **MIXTURE, "n_shared_experts": 1, "first_k_dense_replace": 0, "num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": True, "hidden_act": "gelu", "rope_parameters": LINEAR}, without=NO_HEAD),
]

deepseek_v3 = of("deepseek_v3")
DEEPSEEK_V3 = [
    deepseek_v3("released", "groups by their two best experts, corrected sigmoid scores, renormalized and scaled, yarn with mscales", {
        **LATENT, **MIXTURE, "n_group": 4, "topk_group": 2, "n_shared_experts": 1, "rope_parameters": yarn(mscale=1.0, mscale_all_dim=1.0),
        "rms_norm_eps": 3e-5}, without=NO_HEAD),
    deepseek_v3("one_group", "one group, as Kimi K2 has it; shares as they are, two shared experts, yarn without mscales, gelu", {
        **LATENT, **MIXTURE, "n_group": 1, "topk_group": 1, "n_shared_experts": 2, "norm_topk_prob": False, "routed_scaling_factor": 2.827,
        "rope_parameters": yarn(), "hidden_act": "gelu"}, without=NO_HEAD),
    deepseek_v3("halves", "rope_interleave=false, no latent for queries, attention_bias, tied, all dense", {
        **LATENT, **MIXTURE, "n_group": 4, "topk_group": 3, "rope_interleave": False, "q_lora_rank": None, "attention_bias": True,
        "tie_word_embeddings": True, "num_hidden_layers": 2, "first_k_dense_replace": 2, "rope_parameters": PLAIN}, without=NO_HEAD),
]

llama4 = of("llama4_text")
CHUNK = {"attention_chunk_size": 9, "intermediate_size": 20, "intermediate_size_mlp": 72, "num_local_experts": 8, "floor_scale": 7, "attn_scale": 0.4}
LLAMA4 = [
    llama4("scout", "every layer sparse, one expert a token, every fourth layer whole and without rope; q/k norms, temperature, llama3 scaling", {
        **CHUNK, "rope_parameters": LLAMA3, "rms_norm_eps": 3e-4}),
    llama4("maverick", "every other layer sparse, no q/k norms, every second layer without rope, no scaling", {
        **CHUNK, "interleave_moe_layer_step": 2, "no_rope_layer_interval": 2, "use_qk_norm": False, "num_experts_per_tok": 2, "rope_parameters": PLAIN}),
    llama4("mixed", "moe_layers, no_rope_layers and layer_types of their own, no temperature, q/k norms that undo yarn's gain, biases, tied, gelu", {
        **CHUNK, "moe_layers": [1], "no_rope_layers": [0, 1, 1, 0], "attn_temperature_tuning": False, "attention_bias": True, "hidden_act": "gelu",
        "layer_types": ["chunked_attention", "full_attention", "chunked_attention", "full_attention"], "tie_word_embeddings": True,
        "rope_parameters": yarn()}, without=NO_HEAD),
]

gpt_oss = of("gpt_oss")
SINKS = {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": WINDOW, "num_hidden_layers": 3}
GPT_OSS = [
    gpt_oss("released", "every other layer windowed from the first on, gates past their limit, yarn over fractional pairs", {
        **SINKS, "rope_parameters": yarn(truncate=False), "swiglu_limit": 1.3}, spread=2.0),
    gpt_oss("switched", "layer_types, no attention_bias, another slope, tied, linear scaling", {
        **SINKS, "layer_types": ["full_attention", "full_attention", "sliding_attention"], "attention_bias": False, "swiglu_alpha": 1.1,
        "swiglu_limit": 0.9, "tie_word_embeddings": True, "rope_parameters": LINEAR, "rms_norm_eps": 3e-4}),
]

# What transformers 5.23 lacks; a module of tests/references judges.

deepseek_v1 = partial(Case, "deepseek", reference=deepseek, without=NO_HEAD)
DEEPSEEK = [
    deepseek_v1("released", "a dense layer first, two shared experts, shares as they are, as many kv heads as heads", {
        **MIXTURE, "n_shared_experts": 2, "norm_topk_prob": False, "num_key_value_heads": 6, "rope_theta": 500.0, "rms_norm_eps": 3e-5}),
    deepseek_v1("renormalized", "every other layer sparse, no shared expert, norm_topk_prob, attention_bias, tied, linear scaling", {
        **MIXTURE, "num_hidden_layers": 4, "first_k_dense_replace": 0, "moe_layer_freq": 2, "norm_topk_prob": True, "attention_bias": True,
        "tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 3.0}}),
    deepseek_v1("one_active", "one expert a token, whose share norm_topk_prob leaves as it is, as mergekit writes it", {
        **MIXTURE, "num_hidden_layers": 2, "first_k_dense_replace": 0, "num_experts_per_tok": 1, "n_shared_experts": 1, "norm_topk_prob": True}),
    deepseek_v1("dense", "no routed experts, dynamic scaling past the original context", {
        "num_hidden_layers": 2, "rope_scaling": {"type": "dynamic", "factor": 2.5}}),
]

grok = partial(Case, "grok_1", reference=grok_1, without=NO_HEAD)
SCALES = {"model_type": "grok-1", "num_hidden_layers": 3, "intermediate_size": 20, "num_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 3e-5}
GROK_1 = [
    grok("released", "scores capped, embedding and logits scaled, tied", {
        **SCALES, "attn_output_multiplier": 0.9, "max_attn_value": 3.0, "embedding_multiplier_scale": 1.7, "output_multiplier_scale": 0.57,
        "tie_word_embeddings": True}),
    grok("untied", "untied, three experts a token", {
        **SCALES, "num_hidden_layers": 2, "num_experts_per_tok": 3, "attn_output_multiplier": 0.4, "max_attn_value": 1.5, "rms_norm_eps": 1e-4,
        "embedding_multiplier_scale": 2.5, "output_multiplier_scale": 1.2, "tie_word_embeddings": False}),
]

CASES: list[Case] = [*DEEPSEEK_V2, *DEEPSEEK_V3, *LLAMA4, *GPT_OSS, *DEEPSEEK, *GROK_1]
