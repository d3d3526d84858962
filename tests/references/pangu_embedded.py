"""openPangu-Embedded in float64, after its published code: modeling_openpangu_dense.py and configuration_openpangu_dense.py of
openPangu-Embedded-7B-V1.1, as carried by wujing215/OpenPangu7B-on-NVIDIA @ 1d101f9f."""
from __future__ import annotations

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, rms, silu, turned_halves

DEFAULTS = {"vocab_size": 153376, "hidden_size": 4096, "intermediate_size": 12800, "num_hidden_layers": 34, "num_attention_heads": 32,
            "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
            "rope_theta": 16000000.0, "bias": True}
N_CTX = "max_position_embeddings"


def shapes(c: Config) -> Shapes:
    D, F, H, K, V = (c[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size"))
    C = c.get("head_dim", D // H)
    attention = {"q": (H * C, D), "k": (K * C, D), "v": (K * C, D), "o": (D, H * C)}
    out: Shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,)}
        out |= {p + "mlp.gate_proj.weight": (F, D), p + "mlp.up_proj.weight": (F, D), p + "mlp.down_proj.weight": (D, F)}
        for m, shape in attention.items():
            out |= {p + f"self_attn.{m}_proj.weight": shape} | ({p + f"self_attn.{m}_proj.bias": shape[:1]} if c["bias"] else {})
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (V, D)}


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    D, H, T, eps = c["hidden_size"], c["num_attention_heads"], len(tokens), c["rms_norm_eps"]
    C = c.get("head_dim", D // H)
    turn = angles(c["rope_theta"], C, T)
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."

        def linear(h: np.ndarray, name: str, p: str = p) -> np.ndarray:
            return h @ w[p + name + ".weight"].T + w.get(p + name + ".bias", 0)

        h = rms(x, w[p + "input_layernorm.weight"], eps)
        q, k, v = (linear(h, f"self_attn.{m}_proj").reshape(T, -1, C) for m in "qkv")
        x = x + linear(attended(turned_halves(q, turn), turned_halves(k, turn), v, C**-0.5), "self_attn.o_proj")
        h = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        x = x + linear(silu(linear(h, "mlp.gate_proj")) * linear(h, "mlp.up_proj"), "mlp.down_proj")
    return rms(x, w["model.norm.weight"], eps) @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
