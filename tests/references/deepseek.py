"""DeepSeekMoE in float64, after its published code: modeling_deepseek.py and configuration_deepseek.py of deepseek-ai/deepseek-moe-16b-base, as carried by
DaizeDong/Unified-MoE-Compression @ 81b4688b."""
from __future__ import annotations

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, dynamic_angles, rms, silu, softmax, turned_halves

DEFAULTS = {"vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008, "moe_intermediate_size": 1407, "num_hidden_layers": 30,
            "num_attention_heads": 32, "num_key_value_heads": 32, "n_shared_experts": None, "n_routed_experts": None, "num_experts_per_tok": None,
            "moe_layer_freq": 1, "first_k_dense_replace": 0, "norm_topk_prob": False, "scoring_func": "softmax", "hidden_act": "silu",
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0, "rope_scaling": None,
            "attention_bias": False}
N_CTX = "max_position_embeddings"
MATRICES = ("gate_proj", "up_proj", "down_proj")


def is_sparse(c: Config, i: int) -> bool:
    return c["n_routed_experts"] is not None and i >= c["first_k_dense_replace"] and i % c["moe_layer_freq"] == 0


def shapes(c: Config) -> Shapes:
    D, H, K = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    C = D // H
    out: Shapes = {"model.embed_tokens.weight": (c["vocab_size"], D), "model.norm.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
        for x, (rows, columns) in {"q": (H * C, D), "k": (K * C, D), "v": (K * C, D), "o": (D, H * C)}.items():
            out[p + f"self_attn.{x}_proj.weight"] = (rows, columns)
            if c["attention_bias"]:
                out[p + f"self_attn.{x}_proj.bias"] = (rows,)
        widths = {"mlp": c["intermediate_size"]}
        if is_sparse(c, i):
            out[p + "mlp.gate.weight"] = (c["n_routed_experts"], D)
            widths = {f"mlp.experts.{e}": c["moe_intermediate_size"] for e in range(c["n_routed_experts"])}
            if c["n_shared_experts"] is not None:
                widths["mlp.shared_experts"] = c["moe_intermediate_size"] * c["n_shared_experts"]
        for name, F in widths.items():
            out |= {p + f"{name}.{m}.weight": (D, F) if m == "down_proj" else (F, D) for m in MATRICES}
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (c["vocab_size"], D)}


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    T, H, K, eps = len(tokens), c["num_attention_heads"], c["num_key_value_heads"], c["rms_norm_eps"]
    C, scaling = c["hidden_size"] // H, c["rope_scaling"] or {"type": "default"}
    turn = angles(c["rope_theta"], C, T) / (scaling["factor"] if scaling["type"] == "linear" else 1)
    if scaling["type"] == "dynamic":
        turn = dynamic_angles(c["rope_theta"], C, T, scaling, c["max_position_embeddings"])

    def feed_forward(name: str, x: np.ndarray) -> np.ndarray:
        gate, up, down = (w[f"{name}.{m}.weight"] for m in MATRICES)
        return (silu(x @ gate.T) * (x @ up.T)) @ down.T

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        bias = {m: w[p + f"self_attn.{m}_proj.bias"] if c["attention_bias"] else 0 for m in "qkvo"}
        h = rms(x, w[p + "input_layernorm.weight"], eps)
        q, k, v = ((h @ w[p + f"self_attn.{m}_proj.weight"].T + bias[m]).reshape(T, n, C) for m, n in (("q", H), ("k", K), ("v", K)))
        out = attended(turned_halves(q, turn), turned_halves(k, turn), v, C**-0.5)
        x = x + out @ w[p + "self_attn.o_proj.weight"].T + bias["o"]
        h = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        if not is_sparse(c, i):
            x = x + feed_forward(p + "mlp", h)
            continue
        share_TX, A = softmax(h @ w[p + "mlp.gate.weight"].T), c["num_experts_per_tok"]
        x = x + (feed_forward(p + "mlp.shared_experts", h) if c["n_shared_experts"] is not None else 0)
        for t in range(T):
            best = np.argsort(-share_TX[t])[:A]
            whole = share_TX[t, best].sum() if c["norm_topk_prob"] and A > 1 else 1.0
            for e in best:
                x[t] += share_TX[t, e] / whole * feed_forward(p + f"mlp.experts.{e}", h[t])
    return rms(x, w["model.norm.weight"], eps) @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
