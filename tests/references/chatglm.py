"""ChatGLM 2 and 3 and GLM-4-9B in float64, after their published code: modeling_chatglm.py and configuration_chatglm.py of ChatGLM3-6B, as carried
by zhangbo2008/chatglm3_annotated; rope_ratio as GLM-4-9B and ChatGLM3-6B-32K have it, which multiply the base (github.com/ztxz16/fastllm, issue 374:
ChatGLM2-6B-32K divides the positions; its README calls it position interpolation)."""
from __future__ import annotations

import numpy as np

from tests.references.arithmetic import Config, Shapes, Tensors, angles, attended, rms, silu, turned_neighbours

DEFAULTS = {"num_layers": 28, "padded_vocab_size": 65024, "hidden_size": 4096, "ffn_hidden_size": 13696, "kv_channels": 128,
            "num_attention_heads": 32, "seq_length": 2048, "layernorm_epsilon": 1e-5, "rmsnorm": True, "post_layer_norm": True,
            "add_bias_linear": False, "add_qkv_bias": False, "multi_query_attention": False, "multi_query_group_num": 1, "rope_ratio": 1}
N_CTX = "seq_length"


def shapes(c: Config) -> Shapes:
    D, F, C, V = c["hidden_size"], c["ffn_hidden_size"], c["kv_channels"], c["padded_vocab_size"]
    width, E = (c["num_attention_heads"] + 2 * c["multi_query_group_num"]) * C, "transformer.encoder."
    out: Shapes = {"transformer.embedding.word_embeddings.weight": (V, D), E + "final_layernorm.weight": (D,), "transformer.output_layer.weight": (V, D)}
    for i in range(c["num_layers"]):
        p = f"{E}layers.{i}."
        out |= {p + "input_layernorm.weight": (D,), p + "post_attention_layernorm.weight": (D,),
                p + "self_attention.query_key_value.weight": (width, D), p + "self_attention.dense.weight": (D, c["num_attention_heads"] * C),
                p + "mlp.dense_h_to_4h.weight": (2 * F, D), p + "mlp.dense_4h_to_h.weight": (D, F)}
        if c["add_qkv_bias"]:
            out[p + "self_attention.query_key_value.bias"] = (width,)
    return out


def logits(c: Config, w: Tensors, tokens: np.ndarray) -> np.ndarray:
    H, K, C, F, T = c["num_attention_heads"], c["multi_query_group_num"], c["kv_channels"], c["ffn_hidden_size"], len(tokens)
    eps, scaling = c["layernorm_epsilon"], c.get("rope_scaling") or {"factor": 1}
    turn = angles(c.get("rope_theta", 10000 * c["rope_ratio"]), C // 2, T) / scaling["factor"]  # divided: ChatGLM2-6B-32K's rope_ratio, written out
    x = w["transformer.embedding.word_embeddings.weight"][tokens]
    for i in range(c["num_layers"]):
        p = f"transformer.encoder.layers.{i}."
        h = rms(x, w[p + "input_layernorm.weight"], eps)
        qkv = h @ w[p + "self_attention.query_key_value.weight"].T + w.get(p + "self_attention.query_key_value.bias", 0)
        q, k, v = (part.reshape(T, -1, C) for part in np.split(qkv, [H * C, (H + K) * C], -1))
        x = x + attended(turned_neighbours(q, turn), turned_neighbours(k, turn), v, C**-0.5) @ w[p + "self_attention.dense.weight"].T
        both = rms(x, w[p + "post_attention_layernorm.weight"], eps) @ w[p + "mlp.dense_h_to_4h.weight"].T
        x = x + (silu(both[:, :F]) * both[:, F:]) @ w[p + "mlp.dense_4h_to_h.weight"].T
    return rms(x, w["transformer.encoder.final_layernorm.weight"], eps) @ w["transformer.output_layer.weight"].T
