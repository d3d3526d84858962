"""config.json of published repositories of Llama's line, oddities of their year included."""
from __future__ import annotations

from typing import Any

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}
LLAMA3_SCALING = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3",
}
LLAMA31: dict[str, Any] = LLAMA | {
    "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "intermediate_size": 14336,
    "max_position_embeddings": 131072, "mlp_bias": False, "num_key_value_heads": 8, "rope_scaling": LLAMA3_SCALING, "rope_theta": 500000.0,
    "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "vocab_size": 128256,
}
MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "sliding_window": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0",
    "use_cache": True, "vocab_size": 32000,
}
QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}
QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}
OLMO: dict[str, Any] = {
    "architectures": ["OlmoForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "clip_qkv": None, "eos_token_id": 50279,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 2048,
    "model_type": "olmo", "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16, "pad_token_id": 1,
    "pretraining_tp": 1, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "transformers_version": "4.40.0.dev0", "use_cache": True, "vocab_size": 50304,
}
GEMMA: dict[str, Any] = {
    "architectures": ["GemmaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1,
    "head_dim": 256, "hidden_act": "gelu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 16384,
    "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8, "num_hidden_layers": 18, "num_key_value_heads": 1,
    "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0", "use_cache": True, "vocab_size": 256000,
}
GEMMA2: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
    "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0, "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
    "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "sliding_window": 4096, "torch_dtype": "float32", "transformers_version": "4.42.4", "use_cache": True, "vocab_size": 256000,
}
GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": None,
    "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106], "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912,
    "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
    "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
}

# What each is called on the hub -> (config.json, parameters in all: of tied matrices one).
CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "meta-llama/Llama-2-7b-hf": (LLAMA, 6_738_415_616),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (LLAMA | {
        "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 2048, "num_hidden_layers": 22, "num_key_value_heads": 4,
        "rope_theta": 10000.0, "torch_dtype": "bfloat16", "transformers_version": "4.35.0"}, 1_100_048_384),
    "NousResearch/Yarn-Llama-2-7b-64k": (LLAMA | {
        "_name_or_path": "meta-llama/Llama-2-7b-hf", "max_position_embeddings": 65536, "rope_scaling": {
            "factor": 16.0, "finetuned": True, "original_max_position_embeddings": 4096, "type": "yarn"},
        "auto_map": {"AutoConfig": "configuration_llama.LlamaConfig",
                     "AutoModelForCausalLM": "modeling_llama_together_yarn.LlamaForCausalLM"}},
        6_738_415_616),
    "deepseek-ai/deepseek-coder-6.7b-base": (LLAMA | {
        "bos_token_id": 32013, "eos_token_id": 32014, "max_position_embeddings": 16384, "rms_norm_eps": 1e-06, "rope_theta": 100000,
        "rope_scaling": {"factor": 4.0, "type": "linear"}, "vocab_size": 32256}, 6_740_512_768),
    "meta-llama/Llama-3.1-8B-Instruct": (LLAMA31, 8_030_261_248),
    "meta-llama/Llama-3.2-1B": (LLAMA31 | {
        "eos_token_id": 128001, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "rope_scaling": LLAMA3_SCALING | {"factor": 32.0}, "tie_word_embeddings": True, "transformers_version": "4.45.0.dev0"},
        1_235_814_400),
    "HuggingFaceTB/SmolLM2-135M": (LLAMA | {
        "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576, "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False, "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "rope_interleaved": False, "rope_theta": 100000, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "transformers.js_config": {"dtype": "q4"}, "transformers_version": "4.40.1", "vocab_size": 49152},
        134_515_008),
    "mistralai/Mistral-7B-v0.1": (MISTRAL, 7_241_732_096),
    "mistralai/Mistral-7B-v0.3": (MISTRAL | {
        "attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None, "transformers_version": "4.42.0.dev0",
        "vocab_size": 32768}, 7_248_023_552),
    "mistralai/Mistral-Nemo-Base-2407": (MISTRAL | {
        "attention_dropout": 0.0, "head_dim": 128, "hidden_size": 5120, "max_position_embeddings": 128000, "num_hidden_layers": 40,
        "rope_theta": 1000000.0, "sliding_window": None, "transformers_version": "4.43.0.dev0", "vocab_size": 131072}, 12_247_782_400),
    "mistralai/Mixtral-8x7B-v0.1": (MISTRAL | {
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "model_type": "mixtral", "num_experts_per_tok": 2,
        "num_local_experts": 8, "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
        "sliding_window": None, "transformers_version": "4.36.0.dev0"}, 46_702_792_704),
    "Qwen/Qwen2.5-0.5B": (QWEN2, 494_032_768),
    "Qwen/Qwen2.5-7B-Instruct": (QWEN2 | {
        "eos_token_id": 151645, "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28, "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 131072, "tie_word_embeddings": False, "vocab_size": 152064},
        7_615_616_512),
    "Qwen/Qwen3-0.6B": (QWEN3, 596_049_920),
    "Qwen/Qwen3-30B-A3B": (QWEN3 | {
        "architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 1, "hidden_size": 2048, "intermediate_size": 6144,
        "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
        "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False},
        30_532_122_624),
    "allenai/OLMo-1B-hf": (OLMO, 1_176_764_416),
    "allenai/OLMo-1.7-7B-hf": (OLMO | {
        "clip_qkv": 8.0, "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "tie_word_embeddings": False}, 6_888_095_744),
    "allenai/OLMo-2-0425-1B": (OLMO | {
        "architectures": ["Olmo2ForCausalLM"], "clip_qkv": None, "eos_token_id": 100257, "max_position_embeddings": 4096,
        "model_type": "olmo2", "pad_token_id": 100277, "pretraining_tp": None, "rms_norm_eps": 1e-06, "rope_theta": 500000,
        "tie_word_embeddings": False, "torch_dtype": "float32", "vocab_size": 100352}, 1_484_916_736),
    "allenai/OLMoE-1B-7B-0924": (OLMO | {
        "architectures": ["OlmoeForCausalLM"], "intermediate_size": 1024, "max_position_embeddings": 4096, "model_type": "olmoe",
        "norm_topk_prob": False, "num_experts": 64, "num_experts_per_tok": 8, "output_router_logits": False, "pretraining_tp": None,
        "rms_norm_eps": 1e-05, "router_aux_loss_coef": 0.01, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}, 6_919_161_856),
    "google/gemma-2b": (GEMMA, 2_506_172_416),
    "google/gemma-7b": (GEMMA | {
        "hidden_activation": None, "hidden_size": 3072, "intermediate_size": 24576, "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 16}, 8_537_680_896),
    "google/gemma-2-2b": (GEMMA2, 2_614_341_888),
    "google/gemma-2-27b": (GEMMA2 | {
        "_attn_implementation": "eager", "head_dim": 128, "hidden_size": 4608, "intermediate_size": 36864, "num_attention_heads": 32,
        "num_hidden_layers": 46, "num_key_value_heads": 16, "query_pre_attn_scalar": 144, "sliding_window_size": 4096}, 27_227_128_320),
    "google/gemma-3-1b-it": (GEMMA3, 999_885_952),
    "google/gemma-3-270m": ({k: v for k, v in GEMMA3.items() if k not in ("sliding_window_pattern", "cache_implementation")} | {
        "_sliding_window_pattern": 6, "eos_token_id": 1, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "transformers_version": "4.55.0.dev0",
        "use_bidirectional_attention": False, "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0}, 268_098_176),
    "HuggingFaceTB/SmolLM3-3B": (LLAMA | {
        "architectures": ["SmolLM3ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": 128012,
        "hidden_size": 2048,
        "layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False,
        "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_theta": 5000000.0,
        "sliding_window": None, "tie_word_embeddings": True, "transformers_version": "4.54.0.dev0", "use_sliding_window": False,
        "vocab_size": 128256}, 3_075_098_624),
}
