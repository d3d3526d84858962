"""config.json files of the old line as published: old names, nulls and bookkeeping included.

Read on 2026-11-22 from copies in public repositories: falcon-40b as first released (Decentralised-AI/falcon-40b, config.json at e7950c40), and, as
quoted in other projects' source, falcon-7b as first released, bloom-560m in both spellings, openai-gpt, mpt-7b-instruct, xglm-1.7B, TinyStories-8M
and gpt-neo-125m; their revisions are not stated there. The others are written from memory of the repositories. Of each the parameters of the
published model are counted; falcon-rw-1b's total is the one that keras-hub's falcon_presets.py states, those of falcon-40b and 180B, Falcon-11B, mpt-30b and
galactica-125m are our own count, the rest are the totals that are commonly quoted. `auto_map` is shortened.
"""
from __future__ import annotations

from typing import Any

from tests.families.configs_b import FALCON, OPT, SAMPLING, SUMMARY

GPT_NEO: dict[str, Any] = {
    "activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"], "attention_dropout": 0, "attention_layers": ["global", "local"] * 6,
    "attention_types": [[["global", "local"], 6]], "bos_token_id": 50256, "embed_dropout": 0, "eos_token_id": 50256, "gradient_checkpointing": False,
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": None, "layer_norm_epsilon": 1e-05, "max_position_embeddings": 2048,
    "model_type": "gpt_neo", "num_heads": 12, "num_layers": 12, "resid_dropout": 0, **SUMMARY, "torch_dtype": "float32",
    "transformers_version": "4.28.1", "use_cache": True, "vocab_size": 50257, "window_size": 256,
}
BLOOM: dict[str, Any] = {
    "apply_residual_connection_post_layernorm": False, "architectures": ["BloomForCausalLM"], "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2, "hidden_dropout": 0.0, "hidden_size": 1024,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "model_type": "bloom", "n_head": 16, "n_inner": None,
    "n_layer": 24, "offset_alibi": 100, "pad_token_id": 3, "pretraining_tp": 1, "skip_bias_add": True, "skip_bias_add_qkv": False,
    "slow_but_exact": False, "transformers_version": "4.26.0", "unk_token_id": 0, "use_cache": True, "vocab_size": 250880,
}
BLOOM_OLD = {k: v for k, v in BLOOM.items() if k not in ("hidden_size", "n_head")} | {"n_embed": 1024, "num_attention_heads": 16}
MPT: dict[str, Any] = {
    "architectures": ["MPTForCausalLM"], "attn_config": {
        "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "softmax_scale": None},
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig", "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"}, "d_model": 4096,
    "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4, "init_config": {
        "emb_init_std": None, "emb_init_uniform_lim": None, "fan_mode": "fan_in", "init_div_is_residual": True, "init_gain": 0,
        "init_nonlinearity": "relu", "init_std": 0.02, "name": "kaiming_normal_", "verbose": 0},
    "init_device": "cpu", "learned_pos_emb": True, "logit_scale": None, "max_seq_len": 2048, "model_type": "mpt", "n_heads": 32, "n_layers": 32,
    "no_bias": True, "norm_type": "low_precision_layernorm", "resid_pdrop": 0, "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "bfloat16", "transformers_version": "4.28.1", "use_cache": False, "verbose": 0, "vocab_size": 50432,
}
REFINED_WEB: dict[str, Any] = {
    "alibi": False, "apply_residual_connection_post_layernorm": False, "architectures": ["RWForCausalLM"], "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_RW.RWConfig", "AutoModelForCausalLM": "modelling_RW.RWForCausalLM"}, "bias": False,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_dropout": 0.0, "hidden_size": 8192, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "RefinedWeb", "n_head": 128, "n_head_kv": 8, "n_layer": 60, "parallel_attn": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.27.4", "use_cache": True, "vocab_size": 65024,
}
FALCON_7B = {k: v for k, v in REFINED_WEB.items() if k != "n_head_kv"} | {
    "bos_token_id": 11, "eos_token_id": 11, "hidden_size": 4544, "model_type": "RefinedWebModel", "multi_query": True, "n_head": 71, "n_layer": 32}
FALCON_40B = FALCON | {
    "hidden_size": 8192, "new_decoder_architecture": True, "num_attention_heads": 128, "num_hidden_layers": 60, "num_kv_heads": 8}
FALCON_RW = FALCON | {
    "alibi": True, "bias": True, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 2048, "multi_query": False, "num_attention_heads": 32,
    "num_hidden_layers": 24, "num_kv_heads": 32, "parallel_attn": False, "vocab_size": 50304}
BIGCODE: dict[str, Any] = {
    "activation_function": "gelu_pytorch_tanh", "architectures": ["GPTBigCodeForCausalLM"], "attention_softmax_in_fp32": True, "attn_pdrop": 0.1,
    "bos_token_id": 0, "embd_pdrop": 0.1, "eos_token_id": 0, "inference_runner": 0, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "max_batch_size": None, "max_sequence_length": None, "model_type": "gpt_bigcode", "multi_query": True, "n_embd": 6144, "n_head": 48,
    "n_inner": 24576, "n_layer": 40, "n_positions": 8192, "pad_key_length": True, "pre_allocate_kv_cache": False, "resid_pdrop": 0.1,
    "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True, **SUMMARY, "torch_dtype": "float16", "transformers_version": "4.28.1",
    "use_cache": True, "validate_runner_input": True, "vocab_size": 49152,
}
GPT: dict[str, Any] = {
    "afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "openai-gpt", "n_ctx": 512, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 512,
    "n_special": 0, "predict_special_tokens": True, "resid_pdrop": 0.1, **SUMMARY, "task_specific_params": SAMPLING, "vocab_size": 40478,
}
CODEGEN: dict[str, Any] = {
    "activation_function": "gelu_new", "architectures": ["CodeGenForCausalLM"], "attn_pdrop": 0.0, "bos_token_id": 1, "embd_pdrop": 0.0,
    "eos_token_id": 50256, "gradient_checkpointing": False, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "codegen",
    "n_ctx": 2048, "n_embd": 1024, "n_head": 16, "n_inner": None, "n_layer": 20, "n_positions": 2048, "resid_pdrop": 0.0, "rotary_dim": 32,
    "scale_attn_weights": True, **SUMMARY, "task_specific_params": SAMPLING, "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer",
    "torch_dtype": "float16", "transformers_version": "4.21.0.dev0", "use_cache": True, "vocab_size": 51200,
}
XGLM: dict[str, Any] = {
    "activation_dropout": 0.0, "activation_function": "gelu", "architectures": ["XGLMForCausalLM"], "attention_dropout": 0.1, "attention_heads": 16,
    "bos_token_id": 0, "d_model": 2048, "decoder_start_token_id": 2, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 8192, "init_std": 0.02,
    "layerdrop": 0.0, "max_position_embeddings": 2048, "model_type": "xglm", "num_layers": 24, "pad_token_id": 1, "scale_embedding": True,
    "transformers_version": "4.26.1", "use_cache": True, "vocab_size": 256008,
}

# What each is called on the hub -> (config.json, parameters in all: of tied matrices one).
CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "EleutherAI/gpt-neo-125m": (GPT_NEO, 125_198_592),
    "EleutherAI/gpt-neo-2.7B": (GPT_NEO | {
        "attention_layers": ["global", "local"] * 16, "attention_types": [[["global", "local"], 16]], "hidden_size": 2560, "num_heads": 20,
        "num_layers": 32, "tokenizer_class": "GPT2Tokenizer", "task_specific_params": SAMPLING}, 2_651_307_520),
    "bigscience/bloom-560m": (BLOOM, 559_214_592),
    "bigscience/bloom-560m, first release": (BLOOM_OLD, 559_214_592),
    "bigscience/bloom-7b1": (BLOOM | {"hidden_size": 4096, "n_head": 32, "n_layer": 30, "pretraining_tp": 4}, 7_069_016_064),
    "bigscience/bloom": (BLOOM | {"hidden_size": 14336, "n_head": 112, "n_layer": 70, "pretraining_tp": 4, "seq_length": 2048}, 176_247_271_424),
    "mosaicml/mpt-7b-instruct": (MPT, 6_649_286_656),
    "mosaicml/mpt-30b": (MPT | {"d_model": 7168, "max_seq_len": 8192, "n_heads": 64, "n_layers": 48}, 29_957_200_896),
    "tiiuae/falcon-rw-1b": (FALCON_RW, 1_311_625_216),
    "tiiuae/falcon-40b": (FALCON_40B, 41_303_293_952),
    "tiiuae/falcon-180B": (FALCON_40B | {"hidden_size": 14848, "num_attention_heads": 232, "num_hidden_layers": 80}, 178_557_088_768),
    "tiiuae/falcon-11B": (FALCON_40B | {
        "activation": "gelu", "ffn_hidden_size": 16384, "hidden_size": 4096, "max_position_embeddings": 8192, "num_attention_heads": 32,
        "num_ln_in_parallel_attn": 1, "rope_scaling": None, "rope_theta": 500042.0, "tie_word_embeddings": False}, 11_102_822_400),
    "facebook/opt-350m": (OPT | {
        "do_layer_norm_before": False, "ffn_dim": 4096, "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24,
        "word_embed_proj_dim": 512}, 331_196_416),
    "facebook/galactica-125m": (OPT | {
        "activation_function": "gelu", "bos_token_id": 0, "enable_bias": True, "layer_norm_elementwise_affine": True, "learned_embeddings": True,
        "scale_embeddings": False, "vocab_size": 50000}, 125_030_400),
    "bigcode/starcoder": (BIGCODE, 15_517_456_384),
    "bigcode/gpt_bigcode-santacoder": (BIGCODE | {
        "n_embd": 2048, "n_head": 16, "n_inner": 8192, "n_layer": 24, "n_positions": 2048, "vocab_size": 49280}, 1_124_886_528),
    "openai-community/openai-gpt": (GPT, 116_534_784),
    "Salesforce/codegen-350M-mono": (CODEGEN, 356_712_448),
    "facebook/xglm-1.7B": (XGLM, 1_732_907_008),
    "facebook/xglm-564M": (XGLM | {"d_model": 1024, "ffn_dim": 4096}, 564_463_616),
}

# Their first names, which transformers does not know -> (config.json, that of the same model under its later one).
RENAMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiiuae/falcon-40b, first release": (REFINED_WEB, FALCON_40B),
    "tiiuae/falcon-7b, first release": (FALCON_7B, FALCON),
    "tiiuae/falcon-rw-1b, first release": ({k: v for k, v in FALCON_7B.items() if k != "multi_query"} | {
        "alibi": True, "bias": True, "hidden_size": 2048, "multi_query": False, "n_head": 32, "n_layer": 24, "parallel_attn": False,
        "vocab_size": 50304}, FALCON_RW),
}
