"""Families that transformers 5.23 lacks: every value of every switch that a published checkpoint or the published code has.

Each is judged by its module of tests/references, in float64.
"""
from __future__ import annotations

from typing import Any

from tests.families.case import SIZES, Case, Json
from tests.references import chatglm, internlm2, minicpm, pangu_embedded

N_CTX = SIZES["max_position_embeddings"]


def of(family: str, reference: Any) -> Any:
    """A maker of that family's cases."""
    def case(name: str, why: str, config: Json, **rest: Any) -> Case:
        return Case(family, name, why, config, **{"reference": reference, "without": ("head_dim",), **rest})
    return case


internlm = of("internlm2", internlm2)
INTERNLM2 = [
    internlm("released", "no biases, as every release; a base of its own", {"bias": False, "rope_theta": 500.0, "rms_norm_eps": 3e-5}),
    internlm("biases", "the class's biases, linear scaling, one kv head", {
        "bias": True, "rope_scaling": {"type": "linear", "factor": 3.0}, "num_key_value_heads": 1}),
    internlm("dynamic", "2.5's dynamic scaling, up to the original context; tied", {
        "bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.5}, "tie_word_embeddings": True}, length=N_CTX),
]

mini = of("minicpm", minicpm)
MINICPM = [
    mini("released", "three multipliers, tied", {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16, "rms_norm_eps": 3e-5, "rope_theta": 500.0}),
    mini("untied", "no multipliers, attention_bias, linear scaling, untied", {
        "attention_bias": True, "tie_word_embeddings": False, "rope_scaling": {"type": "linear", "factor": 3.0}}),
    mini("dynamic", "dynamic scaling, up to the original context", {
        "scale_depth": 1.2, "dim_model_base": 24, "rope_scaling": {"type": "dynamic", "factor": 2.5}}, length=N_CTX),
]

pangu = of("pangu_embedded", pangu_embedded)
PANGU_EMBEDDED = [
    pangu("released", "biases of q, k, v and o", {"model_type": "PanguEmbedded", "bias": True, "rope_theta": 500.0, "rms_norm_eps": 3e-5}),
    pangu("no_bias", "no biases, head_dim of its own, tied", {
        "model_type": "PanguEmbedded", "bias": False, "tie_word_embeddings": True}, without=()),
]

glm = of("chatglm", chatglm)
NO_SIZES = tuple(SIZES)  # the family has names of its own for all but two
GLM = {"hidden_size": 48, "num_attention_heads": 6, "padded_vocab_size": 101, "ffn_hidden_size": 72, "num_layers": 3, "kv_channels": 12,
       "multi_query_attention": True, "multi_query_group_num": 2, "seq_length": 29}
CHATGLM = [
    glm("chatglm3", "q, k and v biases, two key heads", {**GLM, "add_qkv_bias": True, "layernorm_epsilon": 3e-5}, without=NO_SIZES),
    glm("glm4_9b", "rope_ratio, one key head, no biases, heads of another width", {
        **GLM, "add_qkv_bias": False, "rope_ratio": 500, "kv_channels": 20, "multi_query_group_num": 1, "num_layers": 2}, without=NO_SIZES),
]

CASES: list[Case] = [*INTERNLM2, *MINICPM, *PANGU_EMBEDDED, *CHATGLM]
