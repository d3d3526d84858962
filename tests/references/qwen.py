"""The first Qwen in float64, after its published code: modeling_qwen.py of Qwen-7B as carried by zhangningboo/Qwen-7B @ 1ff20863, and
configuration_qwen.py of later releases as carried by x1ngzai/Qwen-VL-Chat-Int4 @ 1cd721a2."""
from __future__ import annotations

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, rms, silu, turned_halves

DEFAULTS = {"vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "layer_norm_epsilon": 1e-6,
            "max_position_embeddings": 8192, "kv_channels": 128, "rotary_pct": 1.0, "rotary_emb_base": 10000, "use_dynamic_ntk": True,
            "use_logn_attn": True, "intermediate_size": 22016, "no_bias": True, "tie_word_embeddings": False}
N_CTX = "max_position_embeddings"


def shapes(c: Config) -> Shapes:
    D, F, V = c["hidden_size"], c["intermediate_size"] // 2, c["vocab_size"]
    out: Shapes = {"transformer.wte.weight": (V, D), "transformer.ln_f.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        p = f"transformer.h.{i}."
        out |= {p + "ln_1.weight": (D,), p + "ln_2.weight": (D,), p + "attn.c_attn.weight": (3 * D, D), p + "attn.c_attn.bias": (3 * D,)}
        for name, shape in {"attn.c_proj": (D, D), "mlp.w1": (F, D), "mlp.w2": (F, D), "mlp.c_proj": (D, F)}.items():
            out |= {p + name + ".weight": shape} | ({} if c["no_bias"] else {p + name + ".bias": shape[:1]})
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (V, D)}


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    H, T, eps, trained = c["num_attention_heads"], len(tokens), c["layer_norm_epsilon"], c["seq_length"]
    C = c["hidden_size"] // H
    width = int(c["kv_channels"] * c["rotary_pct"])
    alpha = max(2 ** np.ceil(np.log2(T / trained) + 1) - 1, 1) if c["use_dynamic_ntk"] else 1
    turn = angles(c["rotary_emb_base"] * alpha ** (width / (width - 2)), width, T)
    seen = np.arange(1, T + 1)
    sharp = np.where(c["use_logn_attn"] & (seen > trained), np.log(seen) / np.log(trained), 1.0)
    x = w["transformer.wte.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        p = f"transformer.h.{i}."

        def linear(h: np.ndarray, name: str, p: str = p) -> np.ndarray:
            return h @ w[p + name + ".weight"].T + w.get(p + name + ".bias", 0)

        q, k, v = (part.reshape(T, H, C) for part in np.split(linear(rms(x, w[p + "ln_1.weight"], eps), "attn.c_attn"), 3, -1))
        q = turned_halves(q, turn) * sharp[:, None, None]
        x = x + linear(attended(q, turned_halves(k, turn), v, C**-0.5), "attn.c_proj")
        h = rms(x, w[p + "ln_2.weight"], eps)
        x = x + linear(linear(h, "mlp.w1") * silu(linear(h, "mlp.w2")), "mlp.c_proj")
    return rms(x, w["transformer.ln_f.weight"], eps) @ w["transformer.wte.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
