"""Sarvam-105B in float64, after the published code: modeling_sarvam_moe.py and configuration_sarvam_moe.py of the 105B, as carried by
MOBIRIZER-TECHNOLOGY/AnuLM @ 02d3a5f4 under sarvam/sarvam-105b."""
from __future__ import annotations

import math

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, attended, rms, sigmoid, silu, turned_neighbours

DEFAULTS = {"vocab_size": 262144, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 16384, "moe_intermediate_size": 2048,
            "num_experts": 128, "num_experts_per_tok": 8, "num_shared_experts": 1, "first_k_dense_replace": 1, "num_attention_heads": 64,
            "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "kv_lora_rank": 512, "v_head_dim": 128, "max_position_embeddings": 4096,
            "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu", "routed_scaling_factor": 2.5, "tie_word_embeddings": False,
            "q_lora_rank": None, "attention_bias": False, "topk_group": 2}
N_CTX = "max_position_embeddings"


def shapes(c: Config) -> Shapes:
    D, H, V, L, Q = (c[k] for k in ("hidden_size", "num_attention_heads", "vocab_size", "kv_lora_rank", "q_lora_rank"))
    N, R, C = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    attention = {"kv_a_proj_with_mqa": (L + R, D), "kv_b_proj": (H * (N + C), L), "o_proj": (D, H * C)}
    attention |= {"q_proj": (H * (N + R), D)} if Q is None else {"q_a_proj": (Q, D), "q_b_proj": (H * (N + R), Q)}
    out: Shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        p, mlps = f"model.layers.{i}.", {"": c["intermediate_size"]}
        out |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,), p + "self_attn.kv_a_layernorm.weight": (L,)}
        out |= {} if Q is None else {p + "self_attn.q_a_layernorm.weight": (Q,)}
        for name, shape in attention.items():
            biased = c["attention_bias"] and name in ("q_a_proj", "kv_a_proj_with_mqa", "o_proj")
            out |= {f"{p}self_attn.{name}.weight": shape} | ({f"{p}self_attn.{name}.bias": shape[:1]} if biased else {})
        if i >= c["first_k_dense_replace"]:
            out |= {p + "mlp.gate.weight": (c["num_experts"], D), p + "mlp.gate.e_score_correction_bias": (c["num_experts"],)}
            mlps = {f"experts.{e}.": c["moe_intermediate_size"] for e in range(c["num_experts"])}
            mlps["shared_experts."] = c["moe_intermediate_size"] * c["num_shared_experts"]
        for name, F in mlps.items():
            out |= {f"{p}mlp.{name}{m}_proj.weight": (D, F) if m == "down" else (F, D) for m in ("gate", "up", "down")}
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (V, D)}


def stretched(c: Config, T: int) -> tuple[np.ndarray, float, float]:
    """YaRN: angles (T, R / 2), what queries and keys are multiplied by, and what the scores are multiplied by."""
    s, R, theta = c["rope_scaling"], c["qk_rope_head_dim"], c["rope_theta"]
    plain = theta ** (-np.arange(0, R, 2) / R)
    low, high = (R * math.log(s["original_max_position_embeddings"] / (s[k] * 2 * math.pi)) / (2 * math.log(theta)) for k in ("beta_fast", "beta_slow"))
    low, high = max(math.floor(low), 0), min(math.ceil(high), R - 1)
    ramp = np.clip((np.arange(R // 2) - low) / (high - low or 0.001), 0, 1)
    over, under = (0.1 * s[k] * math.log(s["factor"]) + 1 for k in ("mscale", "mscale_all_dim"))
    return np.outer(np.arange(T), plain / s["factor"] * ramp + plain * (1 - ramp)), over / under, under**2


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    H, N, L, T, eps = c["num_attention_heads"], c["qk_nope_head_dim"], c["kv_lora_rank"], len(tokens), c["rms_norm_eps"]
    turn, gain, sharp = stretched(c, T)
    scale = (N + c["qk_rope_head_dim"]) ** -0.5 * sharp
    n_groups, x = c.get("n_group", c["num_experts"] // 8), w["model.embed_tokens.weight"][tokens]

    def linear(h: np.ndarray, name: str) -> np.ndarray:
        return h @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    def mlp(h: np.ndarray, name: str) -> np.ndarray:
        return linear(silu(linear(h, name + "gate_proj")) * linear(h, name + "up_proj"), name + "down_proj")

    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        h, a = rms(x, w[p + "input_layernorm.weight"], eps), p + "self_attn."
        q = (linear(h, a + "q_proj") if c["q_lora_rank"] is None else
             linear(rms(linear(h, a + "q_a_proj"), w[a + "q_a_layernorm.weight"], 1e-6), a + "q_b_proj")).reshape(T, H, -1)
        latent = linear(h, a + "kv_a_proj_with_mqa")
        kv = linear(rms(latent[:, :L], w[a + "kv_a_layernorm.weight"], 1e-6), a + "kv_b_proj").reshape(T, H, -1)
        q = np.concatenate([q[..., :N], turned_neighbours(q[..., N:], turn) * gain], -1)
        shared = turned_neighbours(latent[:, None, L:], turn) * gain
        k = np.concatenate([kv[..., :N], shared.repeat(H, 1)], -1)
        x = x + linear(attended(q, k, kv[..., N:], scale), a + "o_proj")
        h = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        if i < c["first_k_dense_replace"]:
            x = x + mlp(h, p + "mlp.")
            continue
        score = sigmoid(h @ w[p + "mlp.gate.weight"].T)
        x = x + mlp(h, p + "mlp.shared_experts.")
        for t, (s, ranked) in enumerate(zip(score, score + w[p + "mlp.gate.e_score_correction_bias"], strict=True)):
            groups = ranked.reshape(n_groups, -1)
            best = np.argsort(-np.sort(groups, -1)[:, -2:].sum(-1))[: c["topk_group"]]
            inside = np.where(np.isin(np.arange(len(s)) // groups.shape[1], best), ranked, -np.inf)
            chosen = np.argsort(-inside)[: c["num_experts_per_tok"]]
            share = s[chosen] / (s[chosen].sum() if len(chosen) > 1 else 1) * c["routed_scaling_factor"]
            x[t] += sum(a * mlp(h[t], f"{p}mlp.experts.{e}.") for a, e in zip(share, chosen, strict=True))
    return rms(x, w["model.norm.weight"], eps) @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
