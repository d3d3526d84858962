"""Llama and its closest descendants: every value of every switch that a published checkpoint uses or transformers implements."""
from __future__ import annotations

from tests.families.case import DYNAMIC, LINEAR, LLAMA3, SIZES, YARN, Case, flat_rope, rope

LLAMA = [
    Case("llama", "llama3_rope", "llama3 scaling, grouped heads, head_dim of its own", {"rope_parameters": LLAMA3, "rms_norm_eps": 3e-5}, old=flat_rope),
    Case("llama", "biases", "attention_bias, mlp_bias, tied embeddings, gelu", {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu", "rope_parameters": rope("default", 500.0)}, old=flat_rope),
    Case("llama", "linear", "linear scaling, one kv head for all queries", {"rope_parameters": LINEAR, "num_key_value_heads": 1}, old=flat_rope),
    Case("llama", "yarn", "yarn scaling with its defaults, as many kv heads as heads, no head_dim", {
        "rope_parameters": YARN, "num_key_value_heads": 6}, without=("head_dim",), old=flat_rope),
    Case("llama", "dynamic", "dynamic scaling, up to the original context", {"rope_parameters": DYNAMIC},
         length=SIZES["max_position_embeddings"], old=flat_rope),
]

CASES = [*LLAMA]
