"""Baichuan 1 and 2 in float64, after their published code: models/modeling_baichuan.py of Baichuan-7B (baichuan-inc/Baichuan-7B @ 0ae400d6) and of
Baichuan2-7B (pandong2011/Baichuan2 @ ad4d81ec), modeling_baichuan.py of Baichuan2-13B-Chat (jrd77/Baichuan2-13B-Chat @ a56c793e)."""
from __future__ import annotations

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, rms, silu, turned_halves

DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}  # of the rest each class has its own
N_CTX = "model_max_length"


def shapes(c: Config) -> Shapes:
    D, F, V = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    out: Shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,), p + "self_attn.W_pack.weight": (3 * D, D),
                p + "self_attn.o_proj.weight": (D, D), p + "mlp.gate_proj.weight": (F, D), p + "mlp.up_proj.weight": (F, D),
                p + "mlp.down_proj.weight": (D, F)}
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (V, D)}


def slopes(H: int) -> list[float]:
    """ALiBi's, one a head: 2^(-8/H), its square, and so on; where H is no power of two, every other one of twice as many fills in."""
    n = 2 ** int(np.log2(H))
    start = 2 ** -(2 ** -(np.log2(n) - 3))
    own = [start ** (i + 1) for i in range(n)]
    return own if n == H else own + slopes(2 * n)[0::2][: H - n]


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    D, H, T, eps = c["hidden_size"], c["num_attention_heads"], len(tokens), c["rms_norm_eps"]
    rope, turn = "max_position_embeddings" in c, angles(10000, D // H, T)
    bias = None if rope else np.array(slopes(H))[:, None, None] * np.arange(T)  # of the key's position; a query's own falls out of the softmax
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        q, k, v = (part.reshape(T, H, D // H) for part in np.split(
            rms(x, w[p + "input_layernorm.weight"], eps) @ w[p + "self_attn.W_pack.weight"].T, 3, -1))
        if rope:
            q, k = turned_halves(q, turn), turned_halves(k, turn)
        x = x + attended(q, k, v, (D // H) ** -0.5, bias) @ w[p + "self_attn.o_proj.weight"].T
        h = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        x = x + (silu(h @ w[p + "mlp.gate_proj.weight"].T) * (h @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    head = w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
    if "z_loss_weight" in c or c["vocab_size"] == 125696:  # Baichuan 2's NormHead
        head = head / np.sqrt((head**2).sum(-1, keepdims=True))
    return rms(x, w["model.norm.weight"], eps) @ head.T
