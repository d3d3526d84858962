"""Grok-1 in float64, after xai-org/grok-1 @ 7050ed20, model.py; tensor names after the conversion hpcai-tech/grok-1, modeling_grok1.py, as carried by
tenstorrent/tt-metal @ 390dce04, and its configuration_grok1.py."""
from __future__ import annotations

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, rms, softmax, turned_halves

DEFAULTS = {"vocab_size": 131072, "hidden_size": 6144, "intermediate_size": 32768, "num_hidden_layers": 64, "num_attention_heads": 48,
            "num_key_value_heads": 8, "attn_output_multiplier": 0.08838834764831845, "max_attn_value": 30.0, "max_position_embeddings": 8192,
            "embedding_multiplier_scale": 78.38367176906169, "output_multiplier_scale": 0.5773502691896257, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True, "num_experts_per_tok": 2, "num_experts": 8}
N_CTX = "max_position_embeddings"
NORMS = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")


def shapes(c: Config) -> Shapes:
    D, F, H, K = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"], c["num_key_value_heads"]
    C = D // H
    out: Shapes = {"model.embed_tokens.weight": (c["vocab_size"], D), "model.norm.scale": (D,)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {p + f"{norm}.scale": (D,) for norm in NORMS}
        out |= {p + f"attn.{x}_proj.weight": shape for x, shape in {"q": (H * C, D), "k": (K * C, D), "v": (K * C, D), "o": (D, H * C)}.items()}
        out[p + "moe_block.gate.weight"] = (c["num_experts"], D)
        for e in range(c["num_experts"]):
            out |= {p + f"moe_block.experts.{e}.{x}.weight": shape for x, shape in {"linear": (F, D), "linear_v": (F, D), "linear_1": (D, F)}.items()}
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (c["vocab_size"], D)}


def gelu(x: np.ndarray) -> np.ndarray:
    """jax.nn.gelu as the release calls it: the tanh form. https://arxiv.org/abs/1606.08415"""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    T, H, K, eps = len(tokens), c["num_attention_heads"], c["num_key_value_heads"], c["rms_norm_eps"]
    turn, future_TT = angles(10_000.0, c["hidden_size"] // H, T), np.triu(np.ones((T, T), bool), 1)
    x = w["model.embed_tokens.weight"][tokens] * c["embedding_multiplier_scale"]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        before_attn, after_attn, before_moe, after_moe = (w[p + f"{norm}.scale"] for norm in NORMS)
        h = rms(x, before_attn, eps)
        q, k, v = ((h @ w[p + f"attn.{m}_proj.weight"].T).reshape(T, n, -1) for m, n in (("q", H), ("k", K), ("v", K)))
        q, k, heads = turned_halves(q, turn), turned_halves(k, turn), []
        for head in range(H):
            scores_TT = q[:, head] @ k[:, head * K // H].T * c["attn_output_multiplier"]
            scores_TT = c["max_attn_value"] * np.tanh(scores_TT / c["max_attn_value"])
            heads.append(softmax(np.where(future_TT, -np.inf, scores_TT)) @ v[:, head * K // H])
        x = x + rms(np.concatenate(heads, -1) @ w[p + "attn.o_proj.weight"].T, after_attn, eps)
        h = rms(x, before_moe, eps)
        share_TX, out = softmax(h @ w[p + "moe_block.gate.weight"].T), np.zeros_like(x)
        for t in range(T):
            for e in np.argsort(-share_TX[t])[: c["num_experts_per_tok"]]:
                gate, up, down = (w[p + f"moe_block.experts.{e}.{m}.weight"] for m in ("linear", "linear_v", "linear_1"))
                out[t] += share_TX[t, e] * (down @ (gelu(gate @ h[t]) * (up @ h[t])))
        x = x + rms(out, after_moe, eps)
    unembed = w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
    return rms(x, w["model.norm.scale"], eps) @ unembed.T * c["output_multiplier_scale"]
