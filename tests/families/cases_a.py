"""The old line, of 2018 to 2023: every value of every switch that is published or that transformers implements.

Most of these families fix d_head to the model's width over its heads, so that the heads together are as wide as the model.
"""
from __future__ import annotations

import functools
from typing import Any

from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from tests.families.case import LINEAR, LLAMA3, WINDOW, YARN, Case, flat_rope
from tests.families.cases_b import OLD_NAMES, ONE_WIDTH, TABLE
from tests.references import mpt as foundry

NO_FF = ("intermediate_size", *ONE_WIDTH)
RELU = 2.5  # a spread wild enough to tell relu from relu6

GPT_NEO = [
    Case("gpt_neo", "released", "global and local layers in turn, tied, gelu_new, no intermediate_size", {
        "hidden_size": 48, "num_layers": 4, "num_heads": 6, "attention_types": [[["global", "local"], 2]], "window_size": WINDOW,
        "max_position_embeddings": TABLE}, without=(*NO_FF, "num_hidden_layers", "num_attention_heads")),
    Case("gpt_neo", "mixed", "kinds in runs of their own, intermediate_size, untied, relu", {
        "hidden_size": 60, "num_layers": 3, "num_heads": 5, "attention_types": [[["local"], 2], [["global"], 1]], "window_size": 7,
        "max_position_embeddings": TABLE, "intermediate_size": 74, "tie_word_embeddings": False, "activation_function": "relu",
        "layer_norm_epsilon": 3e-5}, without=(*ONE_WIDTH, "num_hidden_layers", "num_attention_heads"), spread=RELU),
]

BLOOM = [
    Case("bloom", "released", "ALiBi over a number of heads that is no power of two, a norm on the embeddings, tied", {
        "hidden_size": 48, "n_layer": 3, "n_head": 6, "seq_length": 29, "pretraining_tp": 4,
        "layer_norm_epsilon": 3e-3},  # so that the norm on the embeddings does not undo every scale
         without=OLD_NAMES[1:], n_ctx="seq_length"),
    Case("bloom", "power_of_two", "ALiBi over eight heads, apply_residual_connection_post_layernorm, untied, slow_but_exact on one rank", {
        "hidden_size": 56, "n_layer": 2, "n_head": 8, "seq_length": 29, "apply_residual_connection_post_layernorm": True,
        "slow_but_exact": True, "tie_word_embeddings": False, "layer_norm_epsilon": 3e-5}, without=OLD_NAMES[1:], n_ctx="seq_length"),
    Case("bloom", "many_heads", "slopes that no half precision holds", {
        "hidden_size": 114, "n_layer": 2, "n_head": 19, "seq_length": 29}, without=OLD_NAMES[1:], n_ctx="seq_length"),
]


def mpt(**attn_config: Any) -> dict[str, Any]:
    return {"d_model": 48, "n_layers": 3, "n_heads": 6, "max_seq_len": TABLE, "attn_config": attn_config}


def alibi_bias_max(theirs: Any) -> None:
    """transformers builds the slopes as if every alibi_bias_max were 8; given the number, its function makes those of llm-foundry."""
    theirs.transformer.build_mpt_alibi_tensor = functools.partial(
        build_mpt_alibi_tensor, alibi_bias_max=theirs.config.attn_config.alibi_bias_max)


MPT = [
    Case("mpt", "released", "ALiBi, no biases, tied", mpt(), without=OLD_NAMES, n_ctx="max_seq_len"),
    Case("mpt", "30b", "clip_qkv, softmax_scale, alibi_bias_max, untied", mpt(clip_qkv=0.7, softmax_scale=0.21, alibi_bias_max=11) | {
        "d_model": 60, "n_heads": 5, "tie_word_embeddings": False, "layer_norm_epsilon": 3e-5},
         without=OLD_NAMES, n_ctx="max_seq_len", adjust=alibi_bias_max),
    Case("mpt", "many_heads", "slopes of a number of heads that is no power of two", mpt(clip_qkv=0.0) | {
        "d_model": 76, "n_layers": 2, "n_heads": 19}, without=OLD_NAMES, n_ctx="max_seq_len"),
    # What transformers does not read, and Replit Code 1.5 and others trained with llm-foundry have.
    Case("mpt", "grouped", "grouped heads under ALiBi, clip_qkv, another expansion_ratio, logit_scale", mpt(
        attn_type="grouped_query_attention", kv_n_heads=2, clip_qkv=0.7) | {"expansion_ratio": 3, "logit_scale": 0.4},
         without=OLD_NAMES, reference=foundry),
    Case("mpt", "biased", "learned positions, biases, qk_ln, one key/value head, logit_scale by the width, untied", mpt(
        attn_type="multiquery_attention", qk_ln=True, alibi=False) | {
        "d_model": 60, "n_heads": 5, "n_layers": 2, "no_bias": False, "logit_scale": "inv_sqrt_d_model", "tie_word_embeddings": False},
         without=OLD_NAMES, reference=foundry),
    Case("mpt", "rms", "RMSNorm, biases of matrices alone, no positions at all, qk_ln", mpt(qk_ln=True, alibi=False) | {
        "d_model": 54, "n_layers": 2, "norm_type": "low_precision_rmsnorm", "no_bias": False, "learned_pos_emb": False},
         without=OLD_NAMES, reference=foundry),
]


def once(theirs: Any) -> None:
    """Falcon's eager attention adds the bias twice, in the mask and in the layer; its other implementation, in the mask alone."""
    theirs.config._attn_implementation = "sdpa"


FALCON = [
    Case("falcon", "40b", "grouped heads, two norms, head by head", {
        "hidden_size": 84, "num_kv_heads": 3, "new_decoder_architecture": True}, without=NO_FF, old=flat_rope),
    Case("falcon", "11b", "grouped heads under one norm, ffn_hidden_size, untied, biases, llama3 scaling", {
        "hidden_size": 96, "num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 74, "bias": True,
        "tie_word_embeddings": False, "rope_parameters": LLAMA3, "layer_norm_epsilon": 3e-5}, without=NO_FF, old=flat_rope),
    Case("falcon", "rw_1b", "ALiBi, biases, one half after the other, q, k and v of each head", {
        "hidden_size": 84, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}, without=NO_FF, adjust=once),
    Case("falcon", "in_sequence", "one half after the other under rope, one key/value head, yarn scaling", {
        "hidden_size": 60, "num_attention_heads": 5, "parallel_attn": False, "rope_parameters": YARN, "activation": "gelu_new"},
         without=NO_FF, old=flat_rope),
    Case("falcon", "grouped_alibi", "ALiBi over grouped heads, two norms, linear scaling that nobody reads", {
        "hidden_size": 96, "num_attention_heads": 8, "num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 2,
        "alibi": True, "rope_parameters": LINEAR}, without=NO_FF, adjust=once),
    Case("falcon", "every_head", "parallel under one norm, q, k and v of each head, biases", {
        "hidden_size": 72, "num_attention_heads": 4, "multi_query": False, "bias": True}, without=NO_FF, old=flat_rope),
]

OPT = [
    Case("opt", "350m", "the stream normalized after each sublayer, none at the end, an embedding narrower than the stream", {
        "ffn_dim": 74, "max_position_embeddings": TABLE, "word_embed_proj_dim": 26, "do_layer_norm_before": False}, without=NO_FF),
    Case("opt", "galactica", "gelu, no biases, norms without weights, an embedding narrower than the stream, untied", {
        "ffn_dim": 74, "max_position_embeddings": TABLE, "hidden_size": 60, "num_attention_heads": 5, "word_embed_proj_dim": 26,
        "activation_function": "gelu", "enable_bias": False, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False}, without=NO_FF),
    Case("opt", "unnormalized", "_remove_final_layer_norm, as fine-tunes before transformers 4.20 were saved", {
        "ffn_dim": 74, "max_position_embeddings": TABLE, "hidden_size": 66, "_remove_final_layer_norm": True}, without=NO_FF),
]

GPT_BIGCODE = [
    Case("gpt_bigcode", "starcoder", "one key/value head, tied, no n_inner", {
        "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": TABLE}, without=OLD_NAMES),
    Case("gpt_bigcode", "every_head", "q, k and v of each head in turn, unscaled, n_inner, untied, gelu", {
        "n_embd": 60, "n_layer": 2, "n_head": 5, "n_positions": TABLE, "n_inner": 74, "multi_query": False, "scale_attn_weights": False,
        "attention_softmax_in_fp32": False, "scale_attention_softmax_in_fp32": False, "tie_word_embeddings": False,
        "activation_function": "gelu", "layer_norm_epsilon": 3e-5}, without=OLD_NAMES, spread=1.0),
]

OPENAI_GPT = [
    Case("openai_gpt", "released", "the stream normalized after each sublayer, tied, gelu that means its tanh approximation", {
        "model_type": "openai-gpt", "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": TABLE}, without=OLD_NAMES),
    Case("openai_gpt", "untied", "untied, silu", {
        "model_type": "openai-gpt", "n_embd": 60, "n_layer": 2, "n_head": 5, "n_positions": TABLE, "afn": "silu", "tie_word_embeddings": False,
        "layer_norm_epsilon": 3e-5}, without=OLD_NAMES),
    Case("openai_gpt", "relu", "relu", {
        "model_type": "openai-gpt", "n_embd": 56, "n_layer": 2, "n_head": 4, "n_positions": TABLE, "afn": "relu",
        "layer_norm_epsilon": 3e-3}, without=OLD_NAMES, spread=2 * RELU),  # (in, out) matrices come out half as wild
]

CODEGEN = [
    Case("codegen", "released", "part of each head rotates, four shards of q, v and k, untied", {
        "n_embd": 56, "n_layer": 3, "n_head": 4, "n_positions": TABLE, "rotary_dim": 6}, without=OLD_NAMES),
    Case("codegen", "tied", "two heads a shard, all of each rotates, n_inner, tied, relu", {
        "n_embd": 80, "n_layer": 2, "n_head": 8, "n_positions": TABLE, "rotary_dim": 10, "n_inner": 74, "tie_word_embeddings": True,
        "activation_function": "relu", "layer_norm_epsilon": 3e-5}, without=OLD_NAMES),
]

XGLM_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", *ONE_WIDTH)
XGLM = [
    Case("xglm", "released", "sines and cosines two rows late, past the table, scaled embeddings, tied", {
        "d_model": 48, "num_layers": 3, "attention_heads": 6, "ffn_dim": 74}, without=XGLM_SIZES),
    Case("xglm", "unscaled", "scale_embedding=false, an odd width, untied, relu", {
        "d_model": 45, "num_layers": 2, "attention_heads": 5, "ffn_dim": 74, "scale_embedding": False, "tie_word_embeddings": False,
        "activation_function": "relu", "pad_token_id": 1}, without=XGLM_SIZES, spread=RELU),
]

CASES = [*GPT_NEO, *BLOOM, *MPT, *FALCON, *OPT, *GPT_BIGCODE, *OPENAI_GPT, *CODEGEN, *XGLM]
