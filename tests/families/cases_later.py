"""Llama's later descendants and their mixtures: every value of every switch that is published or that transformers implements."""
from __future__ import annotations

from tests.families.case import WINDOW, Case, yarn
from tests.families.cases_llama import EVERY_OTHER, PLAIN, of

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

CASES: list[Case] = [*QWEN2_MOE, *DOTS1]
