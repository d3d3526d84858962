"""Sarvam-30B in float64, after the published code: modeling_sarvam_moe.py and configuration_sarvam_moe.py, as carried by sarvamai/mlx-lm @ 2bb35fa7."""
from __future__ import annotations

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, rms, sigmoid, silu, turned_halves

DEFAULTS = {"vocab_size": 262144, "hidden_size": 4096, "intermediate_size": 8192, "num_hidden_layers": 19, "num_attention_heads": 16,
            "num_key_value_heads": 4, "hidden_act": "silu", "use_qkv_bias": False, "use_bias": False, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False, "max_position_embeddings": 4096, "rope_theta": 10000.0, "num_experts": 128, "num_shared_experts": 1,
            "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 1024, "first_k_dense_replace": 1, "head_dim": 256,
            "use_qk_norm": True, "routed_scaling_factor": 2.5}
N_CTX = "max_position_embeddings"


def shapes(c: Config) -> Shapes:
    D, C, H, K, V = (c[k] for k in ("hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads", "vocab_size"))
    out: Shapes = {"model.word_embeddings.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        p, sparse = f"model.layers.{i}.", i >= c["first_k_dense_replace"]
        out |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,),
                p + "attention.query_key_value.weight": ((H + 2 * K) * C, D), p + "attention.dense.weight": (D, H * C)}
        out |= {p + "attention.query_key_value.bias": ((H + 2 * K) * C,)} if c["use_qkv_bias"] else {}
        out |= {p + "attention.dense.bias": (D,)} if c["use_bias"] else {}
        out |= {p + f"attention.{m}_layernorm.weight": (C,) for m in ("query", "key")} if c["use_qk_norm"] else {}
        mlps = {"": c["intermediate_size"]}
        if sparse:
            out |= {p + "mlp.gate.weight": (c["num_experts"], D), p + "mlp.gate.expert_bias": (c["num_experts"],)}
            mlps = {f"experts.{e}.": c["moe_intermediate_size"] for e in range(c["num_experts"])}
            mlps["shared_experts."] = c["moe_intermediate_size"] * c["num_shared_experts"]
        for name, F in mlps.items():
            out |= {f"{p}mlp.{name}{m}_proj.weight": (D, F) if m == "down" else (F, D) for m in ("gate", "up", "down")}
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (V, D)}


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    H, K, C, T, eps = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], len(tokens), c["rms_norm_eps"]
    turn, x = angles(c["rope_theta"], C, T), w["model.word_embeddings.weight"][tokens]

    def mlp(h: np.ndarray, name: str) -> np.ndarray:
        return (silu(h @ w[name + "gate_proj.weight"].T) * (h @ w[name + "up_proj.weight"].T)) @ w[name + "down_proj.weight"].T

    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        qkv = rms(x, w[p + "input_layernorm.weight"], eps) @ w[p + "attention.query_key_value.weight"].T
        qkv = (qkv + w.get(p + "attention.query_key_value.bias", 0)).reshape(T, H + 2 * K, C)
        q, k, v = qkv[:, :H], qkv[:, H : H + K], qkv[:, H + K :]
        if c["use_qk_norm"]:
            q, k = rms(q, w[p + "attention.query_layernorm.weight"], eps), rms(k, w[p + "attention.key_layernorm.weight"], eps)
        a = attended(turned_halves(q, turn), turned_halves(k, turn), v, C**-0.5)
        x = x + a @ w[p + "attention.dense.weight"].T + w.get(p + "attention.dense.bias", 0)
        h = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        if i < c["first_k_dense_replace"]:
            x = x + mlp(h, p + "mlp.")
            continue
        score = sigmoid(h @ w[p + "mlp.gate.weight"].T)
        x = x + mlp(h, p + "mlp.shared_experts.")
        for t, (s, ranked) in enumerate(zip(score, score + w[p + "mlp.gate.expert_bias"], strict=True)):
            groups = ranked.reshape(c["n_group"], -1)
            best = np.argsort(-np.sort(groups, -1)[:, -2:].sum(-1))[: c["topk_group"]]
            inside = np.where(np.isin(np.arange(len(s)) // groups.shape[1], best), ranked, -np.inf)
            chosen = np.argsort(-inside)[: c["num_experts_per_tok"]]
            share = s[chosen] / (s[chosen].sum() if len(chosen) > 1 else 1) * c["routed_scaling_factor"]
            x[t] += sum(a * mlp(h[t], f"{p}mlp.experts.{e}.") for a, e in zip(share, chosen, strict=True))
    return rms(x, w["model.norm.weight"], eps) @ w["model.word_embeddings.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
