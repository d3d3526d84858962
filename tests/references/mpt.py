"""MPT in float64, after its training code: llmfoundry/models/mpt/{configuration,modeling}_mpt.py and layers/{attention,norm,ffn}.py of
https://github.com/mosaicml/llm-foundry, as carried by silasdao/llm-foundry @ bd02c933."""
from __future__ import annotations

import math

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, attended, rms

DEFAULTS = {"expansion_ratio": 4, "learned_pos_emb": True, "attn_config": {}, "logit_scale": None, "no_bias": True,
            "norm_type": "low_precision_layernorm", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}
ATTN_DEFAULTS = {"attn_type": "multihead_attention", "qk_ln": False, "clip_qkv": None, "softmax_scale": None, "alibi": True, "alibi_bias_max": 8}
N_CTX = "max_seq_len"


def facts(c: Config) -> tuple[dict, int, int, int]:
    """attn_config with what it leaves out, heads, heads of keys, channels."""
    a, H = ATTN_DEFAULTS | c["attn_config"], c["n_heads"]
    K = {"multihead_attention": H, "multiquery_attention": 1}.get(a["attn_type"]) or a["kv_n_heads"]
    return a, H, K, c["d_model"] // H


def shapes(c: Config) -> Shapes:
    (a, _, K, C), D = facts(c), c["d_model"]
    F, bias, out = c["expansion_ratio"] * D, not c["no_bias"], {"transformer.wte.weight": (c["vocab_size"], D)}
    norms, matrices = {"transformer.norm_f": D}, {}
    if c["learned_pos_emb"] and not a["alibi"]:
        out["transformer.wpe.weight"] = (c["max_seq_len"], D)
    for i in range(c["n_layers"]):
        p = f"transformer.blocks.{i}."
        norms |= {p + "norm_1": D, p + "norm_2": D} | ({p + "attn.q_ln": D, p + "attn.k_ln": K * C} if a["qk_ln"] else {})
        matrices |= {p + "attn.Wqkv": (D + 2 * K * C, D), p + "attn.out_proj": (D, D), p + "ffn.up_proj": (F, D), p + "ffn.down_proj": (D, F)}
    out |= {f"{name}.weight": (width,) for name, width in norms.items()} | {f"{name}.weight": shape for name, shape in matrices.items()}
    if bias:
        out |= {f"{name}.bias": (shape[0],) for name, shape in matrices.items()}
        out |= {f"{name}.bias": (width,) for name, width in norms.items()} if "rms" not in c["norm_type"] else {}
    return out if c["tie_word_embeddings"] else out | {"lm_head.weight": (c["vocab_size"], D)}


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    (a, H, K, C), D, T = facts(c), c["d_model"], len(tokens)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        if "rms" not in c["norm_type"]:
            x = x - x.mean(-1, keepdims=True)
        return rms(x, w[name + ".weight"], c["layer_norm_epsilon"]) + w.get(name + ".bias", 0)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    n = 2 ** math.ceil(math.log2(H))
    slopes = [2.0 ** (-a["alibi_bias_max"] * m / n) for m in range(1, n + 1)]
    slopes = slopes if n == H else (slopes[1::2] + slopes[0::2])[:H]
    back_TT = np.arange(T)[:, None] - np.arange(T)
    bias_HTT = np.stack([-slope * back_TT for slope in slopes]) if a["alibi"] else None
    x = w["transformer.wte.weight"][tokens] + (w["transformer.wpe.weight"][:T] if "transformer.wpe.weight" in w else 0)
    for i in range(c["n_layers"]):
        p = f"transformer.blocks.{i}."
        qkv = linear(norm(x, p + "norm_1"), p + "attn.Wqkv")
        if a["clip_qkv"]:
            qkv = qkv.clip(-a["clip_qkv"], a["clip_qkv"])
        q, k, v = np.split(qkv, [D, D + K * C], 1)
        if a["qk_ln"]:
            q, k = norm(q, p + "attn.q_ln"), norm(k, p + "attn.k_ln")
        heads = attended(q.reshape(T, H, C), k.reshape(T, K, C), v.reshape(T, K, C), a["softmax_scale"] or C**-0.5, bias_HTT)
        x = x + linear(heads, p + "attn.out_proj")
        x = x + linear(gelu(linear(norm(x, p + "norm_2"), p + "ffn.up_proj")), p + "ffn.down_proj")
    out = norm(x, "transformer.norm_f") @ w["transformer.wte.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T
    return out * {None: 1.0, "inv_sqrt_d_model": D**-0.5}.get(c["logit_scale"], c["logit_scale"])
