"""InternLM2 in float64, after its published code: modeling_internlm2.py and configuration_internlm2.py of the InternLM2 repositories, as carried by
IntMeGroup/HarmonyIQA @ 79a7bf62 and OpenGVLab/InternVL @ 0c158c32."""
from __future__ import annotations

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, dynamic_angles, rms, silu, turned_halves

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bias": True, "rope_theta": 10000, "rope_scaling": None,
            "num_key_value_heads": None, "vocab_size": 103168, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "max_position_embeddings": 2048}
N_CTX = "max_position_embeddings"


def shapes(c: Config) -> Shapes:
    D, F, H = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    K, C = c["num_key_value_heads"] or H, D // H
    out: Shapes = {"model.tok_embeddings.weight": (c["vocab_size"], D), "model.norm.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {p + "attention_norm.weight": (D,), p + "ffn_norm.weight": (D,), p + "attention.wqkv.weight": ((H + 2 * K) * C, D),
                p + "attention.wo.weight": (D, D), p + "feed_forward.w1.weight": (F, D), p + "feed_forward.w3.weight": (F, D),
                p + "feed_forward.w2.weight": (D, F)}
        if c["bias"]:
            out |= {p + "attention.wqkv.bias": ((H + 2 * K) * C,), p + "attention.wo.bias": (D,)}
    return out if c["tie_word_embeddings"] else out | {"output.weight": (c["vocab_size"], D)}


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    D, H, T, eps = c["hidden_size"], c["num_attention_heads"], len(tokens), c["rms_norm_eps"]
    K, C = c["num_key_value_heads"] or H, D // H
    G, scaling = H // K, c["rope_scaling"] or {"type": "default"}
    turn = angles(c["rope_theta"], C, T)
    if scaling["type"] == "linear":
        turn = turn / scaling["factor"]
    if scaling["type"] == "dynamic":
        turn = dynamic_angles(c["rope_theta"], C, T, scaling, c["max_position_embeddings"])
    x = w["model.tok_embeddings.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        bias_qkv, bias_o = (w[p + f"attention.{m}.bias"] if c["bias"] else 0 for m in ("wqkv", "wo"))
        h = rms(x, w[p + "attention_norm.weight"], eps)
        # One group a key head: its G queries, then its key, then its value.
        qkv = (h @ w[p + "attention.wqkv.weight"].T + bias_qkv).reshape(T, K, G + 2, C)
        q, k, v = qkv[:, :, :G].reshape(T, H, C), qkv[:, :, G], qkv[:, :, G + 1]
        x = x + attended(turned_halves(q, turn), turned_halves(k, turn), v, C**-0.5) @ w[p + "attention.wo.weight"].T + bias_o
        h = rms(x, w[p + "ffn_norm.weight"], eps)
        up = silu(h @ w[p + "feed_forward.w1.weight"].T) * (h @ w[p + "feed_forward.w3.weight"].T)
        x = x + up @ w[p + "feed_forward.w2.weight"].T
    return rms(x, w["model.norm.weight"], eps) @ w["model.tok_embeddings.weight" if c["tie_word_embeddings"] else "output.weight"].T
