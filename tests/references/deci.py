"""DeciLM and Llama-Nemotron in float64: Llama's block, with sizes of each layer's own, or without one of its halves.

After what runs them without remote code: vLLM's decilm.py (key/value heads of each layer), mlx-lm's nemotron-nas.py and exllamav3's decilm.py
(block_configs: heads a group, no_op, and the feed-forward's width, 2/3 ffn_mult d_model rounded up to a multiple of 256). What replace_with_linear
puts in a half's place, without a bias, and under which name: DeciLMLinearAttention and DeciLMLinearMLP of the authors' modeling_decilm.py, as carried by
NVIDIA's Model-Optimizer; the norm before it stays.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, rms, silu, turned_halves

DEFAULTS = {"attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False}
N_CTX = "max_position_embeddings"


def halves(c: Config) -> list[tuple[int | None, int | None]]:
    """(key/value heads, feed-forward width) of every layer, None for a half that is left out, 0 for one that is a matrix."""
    if "num_key_value_heads_per_layer" in c:
        return [(k, c["intermediate_size"]) for k in c["num_key_value_heads_per_layer"]]

    def width(ffn: dict[str, Any]) -> int:
        return 256 * math.ceil(int(2 * ffn["ffn_mult"] * c["hidden_size"] / 3) / 256)

    def size(half: dict[str, Any], whole: Callable[[dict[str, Any]], int]) -> int | None:
        return None if half["no_op"] else 0 if half["replace_with_linear"] else whole(half)

    return [(size(b["attention"], lambda half: c["num_attention_heads"] // half["n_heads_in_group"]), size(b["ffn"], width)) for b in c["block_configs"]]


def shapes(c: Config) -> Shapes:
    D, V, H = c["hidden_size"], c["vocab_size"], c["num_attention_heads"]
    C = D // H
    out: Shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)} | ({} if c["tie_word_embeddings"] else {"lm_head.weight": (V, D)})
    for i, (K, F) in enumerate(halves(c)):
        p = f"model.layers.{i}."
        if K == 0:
            out |= {p + "input_layernorm.weight": (D,), p + "self_attn.linear_attn.weight": (D, D)}
        elif K is not None:
            rows = {"q": H * C, "k": K * C, "v": K * C, "o": D}
            out |= {p + "input_layernorm.weight": (D,)} | {f"{p}self_attn.{x}_proj.weight": (n, H * C if x == "o" else D) for x, n in rows.items()}
            out |= {f"{p}self_attn.{x}_proj.bias": (n,) for x, n in rows.items()} if c["attention_bias"] else {}
        if F == 0:
            out |= {p + "post_attention_layernorm.weight": (D,), p + "mlp.linear_mlp.weight": (D, D)}
        elif F is not None:
            rows = {"gate": F, "up": F, "down": D}
            out |= {p + "post_attention_layernorm.weight": (D,)} | {f"{p}mlp.{x}_proj.weight": (n, F if x == "down" else D) for x, n in rows.items()}
            out |= {f"{p}mlp.{x}_proj.bias": (n,) for x, n in rows.items()} if c["mlp_bias"] else {}
    return out


def frequencies(c: Config, C: int, T: int) -> np.ndarray:
    """Angles (T, C/2); Llama 3's scaling stretches the pairs that turn rarely in the original context."""
    turn, s = angles(c["rope_theta"], C, T), c["rope_scaling"]
    if s is None:
        return turn
    turns = s["original_max_position_embeddings"] * turn[1] / (2 * math.pi)  # a pair's turns; row 1 is one position's angle
    keep = np.clip((turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"]), 0, 1)
    return turn * (keep + (1 - keep) / s["factor"])


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    H, eps, T = c["num_attention_heads"], c["rms_norm_eps"], len(tokens)
    C = c["hidden_size"] // H
    turn, x = frequencies(c, C, T), w["model.embed_tokens.weight"][tokens]

    def project(h: np.ndarray, name: str) -> np.ndarray:
        return h @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    for i, (K, F) in enumerate(halves(c)):
        p = f"model.layers.{i}."
        if K == 0:
            x = x + project(rms(x, w[p + "input_layernorm.weight"], eps), p + "self_attn.linear_attn")
        elif K is not None:
            h = rms(x, w[p + "input_layernorm.weight"], eps)
            q, k, v = (project(h, f"{p}self_attn.{m}_proj").reshape(T, n, C) for m, n in (("q", H), ("k", K), ("v", K)))
            x = x + project(attended(turned_halves(q, turn), turned_halves(k, turn), v, C**-0.5), p + "self_attn.o_proj")
        if F == 0:
            x = x + project(rms(x, w[p + "post_attention_layernorm.weight"], eps), p + "mlp.linear_mlp")
        elif F is not None:
            h = rms(x, w[p + "post_attention_layernorm.weight"], eps)
            x = x + project(silu(project(h, p + "mlp.gate_proj")) * project(h, p + "mlp.up_proj"), p + "mlp.down_proj")
    return rms(x, w["model.norm.weight"], eps) @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
