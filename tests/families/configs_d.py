"""Published config.json files of families that transformers lacks, as read: where from is said beside each."""
from __future__ import annotations

from tests.families.case import Json

CONFIGS: dict[str, Json] = {
    # github.com/mapengAdam/qianwen-72B @ c677f291, a copy of Qwen-72B's repository
    "Qwen-72B": {
        "architectures": ["QWenLMHeadModel"], "attn_dropout_prob": 0.0,
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}, "bf16": False,
        "emb_dropout_prob": 0.0, "fp16": False, "fp32": False, "hidden_size": 8192, "initializer_range": 0.02, "intermediate_size": 49152,
        "kv_channels": 128, "layer_norm_epsilon": 1e-06, "max_position_embeddings": 8192, "model_type": "qwen", "no_bias": True,
        "num_attention_heads": 64, "num_hidden_layers": 80, "onnx_safe": None, "padded_vocab_size": 152064, "rope_theta": 1000000,
        "rotary_emb_base": 1000000, "rotary_pct": 1.0, "scale_attn_weights": True, "seq_length": 8192, "tie_word_embeddings": False,
        "tokenizer_type": "QWenTokenizer", "transformers_version": "4.32.0", "use_cache": True, "use_dynamic_ntk": False, "use_flash_attn": "auto",
        "use_logn_attn": False, "vocab_size": 152064},
    # github.com/sophgo/LLM-TPU @ d581e7bf, models/Baichuan2/compile/files/Baichuan2-7B: a copy of Baichuan2-7B's
    "Baichuan2-7B": {
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_baichuan.BaichuanConfig", "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
        "tokenizer_class": "BaichuanTokenizer", "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096, "model_max_length": 4096, "model_type": "baichuan",
        "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": 0, "rms_norm_eps": 1e-06, "_from_model_config": True,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.29.2", "use_cache": True, "vocab_size": 125696},
    # github.com/jrd77/Baichuan2-13B-Chat @ a56c793e, a copy of Baichuan2-13B-Chat's repository
    "Baichuan2-13B-Chat": {
        "_from_model_config": True, "architectures": ["BaichuanForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_baichuan.BaichuanConfig", "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
        "tokenizer_class": "BaichuanTokenizer", "bos_token_id": 1, "eos_token_id": 2, "gradient_checkpointing": False, "hidden_act": "silu",
        "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 13696, "model_max_length": 4096, "model_type": "baichuan",
        "num_attention_heads": 40, "num_hidden_layers": 40, "pad_token_id": 0, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "transformers_version": "4.29.2", "use_cache": True, "vocab_size": 125696},
    # github.com/zhangningboo/Qwen-7B @ abcb6d6d, a copy of Qwen-7B's repository
    "Qwen-7B": {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "attn_dropout_prob": 0.0, "bf16": False, "emb_dropout_prob": 0.0, "fp16": False, "fp32": False, "hidden_size": 4096,
        "intermediate_size": 22016, "initializer_range": 0.02, "kv_channels": 128, "layer_norm_epsilon": 1e-06, "max_position_embeddings": 8192,
        "model_type": "qwen", "no_bias": True, "num_attention_heads": 32, "num_hidden_layers": 32, "onnx_safe": None, "rotary_emb_base": 10000,
        "rotary_pct": 1.0, "scale_attn_weights": True, "seq_length": 8192, "tie_word_embeddings": False, "tokenizer_class": "QWenTokenizer",
        "transformers_version": "4.32.0", "use_cache": True, "use_dynamic_ntk": True, "use_flash_attn": "auto", "use_logn_attn": True,
        "vocab_size": 151936},
    # github.com/undefdev/Qwen-7B-Chat @ 405556da, a copy of Qwen-7B-Chat's repository at its first release
    "Qwen-7B-Chat, first release": {
        "activation": "swiglu", "apply_residual_connection_post_layernorm": False, "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "attn_pdrop": 0.0, "bf16": False, "fp16": False, "fp32": False, "bias_dropout_fusion": True, "bos_token_id": 151643, "embd_pdrop": 0.0,
        "eos_token_id": 151643, "ffn_hidden_size": 22016, "initializer_range": 0.02, "kv_channels": 128, "layer_norm_epsilon": 1e-06,
        "model_type": "qwen", "n_embd": 4096, "n_head": 32, "n_layer": 32, "n_positions": 6144, "no_bias": True, "onnx_safe": None,
        "padded_vocab_size": 151936, "params_dtype": "torch.bfloat16", "pos_emb": "rotary", "resid_pdrop": 0.1, "rotary_emb_base": 10000,
        "rotary_pct": 1.0, "scale_attn_weights": True, "seq_length": 2048, "tie_word_embeddings": False, "tokenizer_type": "QWenTokenizer",
        "transformers_version": "4.31.0", "use_cache": True, "use_flash_attn": "auto", "vocab_size": 151936, "use_dynamic_ntk": True,
        "use_logn_attn": True},
    # github.com/zhangbo2008/chatglm3_annotated @ 84fba0f3, a copy of chatglm3-6b's repository
    "chatglm3-6b": {
        "_name_or_path": "THUDM/chatglm3-6b", "model_type": "chatglm", "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "add_bias_linear": False, "add_qkv_bias": True, "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "ffn_hidden_size": 13696,
        "fp32_residual_connection": False, "hidden_dropout": 0.0, "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1e-05,
        "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28, "original_rope": True,
        "padded_vocab_size": 65024, "post_layer_norm": True, "rmsnorm": True, "seq_length": 8192, "use_cache": True, "torch_dtype": "float16",
        "transformers_version": "4.30.2", "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0},
    # glm-4-9b-chat's, as quoted whole in a public repository's front end; read in November 2026
    "glm-4-9b-chat": {
        "model_type": "chatglm", "auto_map": {"AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "add_bias_linear": False, "add_qkv_bias": True, "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0, "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "ffn_hidden_size": 13696,
        "fp32_residual_connection": False, "hidden_dropout": 0.0, "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1.5625e-07,
        "multi_query_attention": True, "multi_query_group_num": 2, "num_attention_heads": 32, "num_hidden_layers": 40, "num_layers": 40,
        "rope_ratio": 500, "original_rope": True, "padded_vocab_size": 151552, "post_layer_norm": True, "rmsnorm": True, "seq_length": 131072,
        "use_cache": True, "torch_dtype": "bfloat16", "transformers_version": "4.30.2", "tie_word_embeddings": False,
        "eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329},
    # internlm2-chat-1_8b's, as quoted in a public repository; read in November 2026
    "internlm2-chat-1_8b": {
        "architectures": ["InternLM2ForCausalLM"], "attn_implementation": "eager", "auto_map": {
            "AutoConfig": "configuration_internlm2.InternLM2Config", "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
            "AutoModel": "modeling_internlm2.InternLM2ForCausalLM"},
        "bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 32768, "model_type": "internlm2", "num_attention_heads": 16, "num_hidden_layers": 24,
        "num_key_value_heads": 8, "pad_token_id": 2, "rms_norm_eps": 1e-05, "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rope_theta": 1000000, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.41.0", "use_cache": True,
        "vocab_size": 92544, "pretraining_tp": 1},
    # github.com/wujing215/OpenPangu7B-on-NVIDIA @ 1d101f9f, a copy of openPangu-Embedded-7B-V1.1's repository
    "openPangu-Embedded-7B-V1.1": {
        "architectures": ["PanguEmbeddedForCausalLM"], "auto_map": {
            "AutoConfig": "configuration_openpangu_dense.PanguEmbeddedConfig", "AutoModel": "modeling_openpangu_dense.PanguEmbeddedModel",
            "AutoModelForCausalLM": "modeling_openpangu_dense.PanguEmbeddedForCausalLM"},
        "bias": True, "attention_dropout": 0.0, "bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 45892, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12800, "max_position_embeddings": 32768,
        "model_type": "PanguEmbedded", "num_attention_heads": 32, "num_hidden_layers": 34, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_theta": 16000000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.53.2", "use_cache": True,
        "vocab_size": 153376},
}
