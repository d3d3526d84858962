"""Pangu Pro MoE in float64, after the published configuration class (PanguProMoEConfig) and its authors' model in vllm-ascend (models/pangu_moe.py),
both read in November 2026; the routing: https://arxiv.org/abs/2505.21411."""
from __future__ import annotations

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, rms, silu, softmax, turned_halves

DEFAULTS = {"vocab_size": 153376, "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8,
            "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
            "rope_theta": 16000000.0, "moe_intermediate_size": 1344, "shared_expert_intermediate_size": 5376, "num_experts_per_tok": 8,
            "num_experts": 64, "mlp_only_layers": []}
N_CTX = "max_position_embeddings"


def shapes(c: Config) -> Shapes:
    D, H, K, V, X = (c[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "num_experts"))
    C = D // H
    out: Shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
        for m, (rows, width) in {"q": (H * C, D), "k": (K * C, D), "v": (K * C, D), "o": (D, H * C)}.items():
            out |= {p + f"self_attn.{m}_proj.weight": (rows, width), p + f"self_attn.{m}_proj.bias": (rows,)}
        mlps = {"": c.get("intermediate_size")}
        if i not in c["mlp_only_layers"]:
            out |= {p + "mlp.gate.weight": (X, D), p + "mlp.router_scale": (1, X)}
            mlps = {f"experts.{e}.": c["moe_intermediate_size"] for e in range(X)} | {"shared_expert.": c["shared_expert_intermediate_size"]}
        for name, F in mlps.items():
            out |= {f"{p}mlp.{name}{m}_proj.weight": (D, F) if m == "down" else (F, D) for m in ("gate", "up", "down")}
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (V, D)}


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    H, T, eps = c["num_attention_heads"], len(tokens), c["rms_norm_eps"]
    C = c["hidden_size"] // H
    turn, x = angles(c["rope_theta"], C, T), w["model.embed_tokens.weight"][tokens]

    def mlp(h: np.ndarray, name: str) -> np.ndarray:
        return (silu(h @ w[name + "gate_proj.weight"].T) * (h @ w[name + "up_proj.weight"].T)) @ w[name + "down_proj.weight"].T

    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h = rms(x, w[p + "input_layernorm.weight"], eps)
        q, k, v = ((h @ w[p + f"self_attn.{m}_proj.weight"].T + w[p + f"self_attn.{m}_proj.bias"]).reshape(T, -1, C) for m in "qkv")
        a = attended(turned_halves(q, turn), turned_halves(k, turn), v, C**-0.5)
        x = x + a @ w[p + "self_attn.o_proj.weight"].T + w[p + "self_attn.o_proj.bias"]
        h = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        if i in c["mlp_only_layers"]:
            x = x + mlp(h, p + "mlp.")
            continue
        score, size = softmax(h @ w[p + "mlp.gate.weight"].T), c["num_experts"] // c["num_experts_per_tok"]
        x = x + mlp(h, p + "mlp.shared_expert.")
        for t, s in enumerate(score):  # the best expert of every group
            for e in s.reshape(-1, size).argmax(-1) + np.arange(0, c["num_experts"], size):
                x[t] += s[e] * w[p + "mlp.router_scale"][0, e] * mlp(h[t], f"{p}mlp.experts.{e}.")
    return rms(x, w["model.norm.weight"], eps) @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
