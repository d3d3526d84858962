"""Families that transformers 5.23 lacks: every value of every switch that a published checkpoint or the published code has.

Each is judged by its module of tests/references, in float64.
"""
from __future__ import annotations

from typing import Any

from tests.families.case import ORIGINAL, SIZES, Case, Json
from tests.references import baichuan, chatglm, internlm2, minicpm, pangu_embedded, pangu_pro_moe, qwen, sarvam_mla, sarvam_moe

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
    internlm("dynamic", "2.5's dynamic scaling, past the original context; tied", {
        "bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.5}, "tie_word_embeddings": True}),
]



def longrope(original: int) -> Json:
    """MiniCPM4's rope_scaling, every factor another."""
    return {"type": "longrope", "rope_type": "longrope", "short_factor": [1.0, 1.3, 1.6, 2.1], "long_factor": [1.5, 2.4, 3.7, 5.2],
            "original_max_position_embeddings": original}


mini = of("minicpm", minicpm)
MINICPM = [
    mini("released", "three multipliers, tied", {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16, "rms_norm_eps": 3e-5, "rope_theta": 500.0}),
    mini("moe", "eight experts, two active, shares made to sum to one, three multipliers", {
        "num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 20, "num_hidden_layers": 2, "scale_emb": 12, "scale_depth": 1.4,
        "dim_model_base": 16, "rms_norm_eps": 3e-5, "rope_theta": 500.0}),
    mini("untied", "no multipliers, attention_bias, linear scaling, untied", {
        "attention_bias": True, "tie_word_embeddings": False, "rope_scaling": {"type": "linear", "factor": 3.0}}),
    mini("dynamic", "dynamic scaling, past the original context", {
        "scale_depth": 1.2, "dim_model_base": 24, "rope_scaling": {"type": "dynamic", "factor": 2.5}}),
    mini("minicpm4", "longrope at its original context: the short factors", {
        "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16, "num_hidden_layers": 2, "rms_norm_eps": 3e-5,
        "rope_scaling": longrope(N_CTX)}, length=N_CTX),
    mini("longrope_past", "longrope, a row past its original context: the long factors", {"num_hidden_layers": 2, "rope_scaling": longrope(N_CTX)}),
    mini("longrope_stretched", "longrope with a context past the original one: the long factors for short rows too, sharpened", {
        "num_hidden_layers": 2, "max_position_embeddings": 58, "rope_scaling": longrope(26)}, length=25),
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
    glm("chatglm2_32k", "rope_ratio written out as position interpolation", {
        **GLM, "add_qkv_bias": True, "rope_scaling": {"type": "linear", "factor": 4.0}, "num_layers": 2}, without=NO_SIZES),
    glm("chatglm3_32k", "rope_ratio written out as the base", {
        **GLM, "add_qkv_bias": True, "rope_theta": 500_000.0, "num_layers": 2}, without=NO_SIZES),
]

qwen1 = of("qwen", qwen)
ONE_HEAD = ("num_key_value_heads", "head_dim")
QWEN = [
    qwen1("logn", "scores sharpened past seq_length, part of each head rotates", {
        "hidden_size": 60, "kv_channels": 10, "seq_length": ORIGINAL, "use_logn_attn": True, "use_dynamic_ntk": False, "rotary_pct": 0.6,
        "rotary_emb_base": 500, "intermediate_size": 74, "layer_norm_epsilon": 3e-5, "num_hidden_layers": 3}, without=ONE_HEAD),
    qwen1("released", "both switches on as released, up to seq_length; biases everywhere, tied", {
        "kv_channels": 8, "seq_length": N_CTX, "use_logn_attn": True, "use_dynamic_ntk": True, "no_bias": False, "tie_word_embeddings": True,
        "max_position_embeddings": 53, "layer_norm_epsilon": 1e-6}, without=ONE_HEAD, length=N_CTX),
    qwen1("released_past", "both switches on as released, past three times seq_length, which counts as four times", {
        "hidden_size": 60, "kv_channels": 10, "seq_length": ORIGINAL, "use_logn_attn": True, "use_dynamic_ntk": True, "num_hidden_layers": 2,
        "max_position_embeddings": 53, "layer_norm_epsilon": 1e-6}, without=ONE_HEAD),
    qwen1("neither", "neither switch, past seq_length", {
        "hidden_size": 84, "kv_channels": 14, "seq_length": ORIGINAL, "use_logn_attn": False, "use_dynamic_ntk": False, "num_hidden_layers": 2,
        "layer_norm_epsilon": 1e-6}, without=ONE_HEAD),
]

sarvam = of("sarvam_moe", sarvam_moe)
SARVAM_MOE = [
    sarvam("released", "norms on q and k, a dense layer first, one group, one shared expert", {
        "num_experts": 8, "num_experts_per_tok": 3, "num_shared_experts": 1, "moe_intermediate_size": 20, "routed_scaling_factor": 2.5,
        "num_hidden_layers": 3, "rms_norm_eps": 3e-4, "rope_theta": 500.0}, without=()),
    sarvam("groups", "two of five groups, two shared experts, biases, no norms, all layers sparse, tied", {
        "num_experts": 10, "num_experts_per_tok": 3, "num_shared_experts": 2, "moe_intermediate_size": 20, "n_group": 5, "topk_group": 2,
        "first_k_dense_replace": 0, "use_qkv_bias": True, "use_bias": True, "use_qk_norm": False, "tie_word_embeddings": True,
        "routed_scaling_factor": 1.5, "num_hidden_layers": 2, "rms_norm_eps": 3e-4}, without=()),
    sarvam("one_active", "one expert a token, whose share is not divided by itself", {
        "num_experts": 8, "num_experts_per_tok": 1, "num_shared_experts": 1, "moe_intermediate_size": 20, "num_hidden_layers": 2,
        "rms_norm_eps": 3e-4}, without=()),
]

pro = of("pangu_pro_moe", pangu_pro_moe)
PANGU_PRO_MOE = [
    pro("released", "one expert of each group, a gain an expert, biases around attention", {
        "model_type": "PanguProMoE", "num_experts": 12, "num_experts_per_tok": 4, "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 36, "rope_theta": 500.0, "rms_norm_eps": 3e-4, "num_hidden_layers": 3},
        without=("intermediate_size", "head_dim")),
    pro("some_dense", "mlp_only_layers, tied", {
        "model_type": "PanguProMoE", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 36, "mlp_only_layers": [1], "tie_word_embeddings": True, "num_hidden_layers": 2, "rms_norm_eps": 3e-4}),
]

bai = of("baichuan", baichuan)
NAMED = ("num_key_value_heads", "head_dim", "max_position_embeddings")
BAICHUAN = [
    bai("baichuan2_7b", "max_position_embeddings: rope; z_loss_weight, as Baichuan 2 saves it: rows of the unembedding of length one", {
        "max_position_embeddings": 29, "model_max_length": 29, "z_loss_weight": 0, "rms_norm_eps": 3e-5}, without=ONE_HEAD),
    bai("baichuan2_13b", "no max_position_embeddings: ALiBi; the same head, tied", {
        "hidden_size": 60, "model_max_length": 29, "z_loss_weight": 0, "tie_word_embeddings": True, "num_hidden_layers": 3}, without=NAMED),
    bai("baichuan_13b", "Baichuan 1 by its vocabulary: ALiBi, an unembedding as it is", {
        "vocab_size": 64_000, "hidden_size": 36, "model_max_length": 29, "num_hidden_layers": 2, "rms_norm_eps": 3e-5}, without=NAMED),
]

mla = of("sarvam_mla", sarvam_mla)
LATENT = {"qk_nope_head_dim": 10, "qk_rope_head_dim": 12, "v_head_dim": 14, "kv_lora_rank": 18, "moe_intermediate_size": 20, "rope_theta": 50.0}
STRETCHED = {"type": "deepseek_yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL, "beta_fast": 1.2, "beta_slow": 0.3,
             "mscale": 1.0, "mscale_all_dim": 1.0}
SARVAM_MLA = [
    mla("released", "two groups of eight experts by default, queries straight from the stream, a dense layer first, deepseek_yarn", {
        **LATENT, "num_experts": 24, "num_experts_per_tok": 3, "num_shared_experts": 1, "rope_scaling": STRETCHED, "num_hidden_layers": 2,
        "rms_norm_eps": 3e-4}, without=ONE_HEAD),
    mla("latent_queries", "q_lora_rank, attention_bias, groups as told, two shared experts, two mscales that differ, all layers sparse, tied", {
        **LATENT, "q_lora_rank": 26, "attention_bias": True, "num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 2, "n_group": 4,
        "topk_group": 2, "first_k_dense_replace": 0, "rope_scaling": STRETCHED | {"mscale": 0.8, "mscale_all_dim": 0.3, "rope_type": "deepseek_yarn"},
        "routed_scaling_factor": 1.5, "tie_word_embeddings": True, "num_hidden_layers": 2, "rms_norm_eps": 3e-4}, without=ONE_HEAD),
]

CASES: list[Case] = [*INTERNLM2, *MINICPM, *PANGU_EMBEDDED, *CHATGLM, *QWEN, *SARVAM_MOE, *PANGU_PRO_MOE, *BAICHUAN, *SARVAM_MLA]
