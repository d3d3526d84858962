"""MiniCPM in float64, after its published code: modeling_minicpm.py and configuration_minicpm.py of the MiniCPM repositories, as carried by
wxthu/nas_tuner @ fa57d0ce. The multipliers: https://arxiv.org/abs/2404.06395. The mixture: MiniCPMMoE of MiniCPM-MoE-8x2B's modeling_minicpm.py, as
the SPMiniCPMMoE of Samoyeds' benchmarks keeps it."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, dynamic_angles, rms, silu, softmax, turned_halves

DEFAULTS = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": None, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
            "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "scale_emb": 1, "dim_model_base": 1, "scale_depth": 1, "num_experts": 0}
N_CTX = "max_position_embeddings"


def shapes(c: Config) -> Shapes:
    D, F, H, V = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"], c["vocab_size"]
    heads = {"q": H, "k": c["num_key_value_heads"] or H, "v": c["num_key_value_heads"] or H}
    out: Shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,), p + "self_attn.o_proj.weight": (D, D)}
        out |= {p + f"self_attn.{m}_proj.weight": (n * (D // H), D) for m, n in heads.items()}
        for e in range(c["num_experts"]):
            out |= {f"{p}mlp.experts.{e}.{m}.weight": (D, F) if m == "w2" else (F, D) for m in ("w1", "w2", "w3")}
        out |= {p + "mlp.gate.weight": (c["num_experts"], D)} if c["num_experts"] else {
            p + "mlp.gate_proj.weight": (F, D), p + "mlp.up_proj.weight": (F, D), p + "mlp.down_proj.weight": (D, F)}
        if c["attention_bias"]:
            out |= {p + f"self_attn.{m}_proj.bias": (n * (D // H),) for m, n in heads.items()} | {p + "self_attn.o_proj.bias": (D,)}
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (V, D)}


def mixed(c: Config, h: np.ndarray, p: str, linear: Callable[..., np.ndarray]) -> np.ndarray:
    """Each token by the experts of its highest probabilities, which are made to sum to one."""
    share, out = softmax(linear(h, "mlp.gate")), np.zeros_like(h)
    for t, row in enumerate(share):
        chosen = np.argsort(-row)[: c["num_experts_per_tok"]]
        for e in chosen:
            w = f"mlp.experts.{e}."
            out[t] += row[e] / row[chosen].sum() * linear(silu(linear(h[t], w + "w1")) * linear(h[t], w + "w3"), w + "w2")
    return out


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    D, H, T, eps = c["hidden_size"], c["num_attention_heads"], len(tokens), c["rms_norm_eps"]
    scaling, depth = c["rope_scaling"] or {"type": "default"}, c["scale_depth"] / np.sqrt(c["num_hidden_layers"])
    turn, gain = angles(c["rope_theta"], D // H, T) / (scaling["factor"] if scaling["type"] == "linear" else 1), 1.0
    if scaling["type"] == "longrope":  # its tables are made for max_position_embeddings, and made anew for rows that are longer
        n, trained = c["max_position_embeddings"], scaling["original_max_position_embeddings"]
        turn = turn / np.array(scaling["long_factor" if max(n, T) > trained else "short_factor"])
        gain = np.sqrt(1 + np.log(n / trained) / np.log(trained))
    if scaling["type"] == "dynamic":
        turn = dynamic_angles(c["rope_theta"], D // H, T, scaling, c["max_position_embeddings"])
    x = w["model.embed_tokens.weight"][tokens] * c["scale_emb"]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."

        def linear(h: np.ndarray, name: str, p: str = p) -> np.ndarray:
            return h @ w[p + name + ".weight"].T + w.get(p + name + ".bias", 0)

        h = rms(x, w[p + "input_layernorm.weight"], eps)
        q, k, v = (linear(h, f"self_attn.{m}_proj").reshape(T, -1, D // H) for m in "qkv")
        x = x + linear(attended(turned_halves(q, turn) * gain, turned_halves(k, turn) * gain, v, (D // H) ** -0.5), "self_attn.o_proj") * depth
        h = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        if c["num_experts"]:
            x = x + mixed(c, h, p, linear) * depth
        else:
            x = x + linear(silu(linear(h, "mlp.gate_proj")) * linear(h, "mlp.up_proj"), "mlp.down_proj") * depth
    h = rms(x, w["model.norm.weight"], eps) / (D / c["dim_model_base"])
    return h @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
