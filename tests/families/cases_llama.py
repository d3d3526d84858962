"""Llama and its closest descendants: every value of every switch that a published checkpoint uses or transformers implements."""
from __future__ import annotations

from typing import Any

from tests.families.case import DYNAMIC, LINEAR, LLAMA3, SIZES, WINDOW, YARN, Case, Json, flat_rope, rope, yarn

PLAIN = rope("default", 500.0)


def of(family: str) -> Any:
    """A maker of that family's cases, all of which have an old dialect."""
    def case(name: str, why: str, config: Json, **rest: Any) -> Case:
        return Case(family, name, why, config, **{"old": flat_rope, **rest})
    return case


llama = of("llama")
LLAMA = [
    llama("llama3_rope", "llama3 scaling, grouped heads, head_dim of its own", {"rope_parameters": LLAMA3, "rms_norm_eps": 3e-5}),
    llama("biases", "attention_bias, mlp_bias, tied embeddings, gelu", {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu", "rope_parameters": PLAIN}),
    llama("linear", "linear scaling, one kv head for all queries", {"rope_parameters": LINEAR, "num_key_value_heads": 1}),
    llama("yarn", "yarn scaling with its defaults, as many kv heads as heads, no head_dim", {
        "rope_parameters": YARN, "num_key_value_heads": 6}, without=("head_dim",)),
    llama("yarn_ramp", "yarn's beta_fast and beta_slow, ramp between whole pairs", {"rope_parameters": yarn()}),
    llama("yarn_mscale", "yarn's mscale, mscale_all_dim, truncate=False; relu", {
        "rope_parameters": yarn(mscale=0.8, mscale_all_dim=0.3, truncate=False), "hidden_act": "relu"}, spread=2.0),
    llama("yarn_factor", "yarn's attention_factor", {"rope_parameters": yarn(attention_factor=1.3)}),
    llama("dynamic", "dynamic scaling, up to the original context", {"rope_parameters": DYNAMIC},
          length=SIZES["max_position_embeddings"]),
    llama("dynamic_past", "dynamic scaling, past the original context: a base for each length", {"rope_parameters": DYNAMIC | {"factor": 2.5}}),
    *(llama(f"act_{act}", f"hidden_act={act}", {"hidden_act": act, "rope_parameters": PLAIN, "num_hidden_layers": 2}, spread=2.0)
      for act in ("gelu_pytorch_tanh", "quick_gelu", "relu2", "relu6", "leaky_relu", "hardswish", "laplace", "sqrtsoftplus", "tanh",
                  "sigmoid", "mish", "linear")),
]

mistral = of("mistral")
MISTRAL = [
    mistral("window", "sliding_window, as version 0.1", {"sliding_window": WINDOW, "rope_parameters": PLAIN, "rms_norm_eps": 3e-5}),
    mistral("no_window", "sliding_window null, as from 0.2 on; yarn; tied", {
        "sliding_window": None, "rope_parameters": yarn(), "tie_word_embeddings": True}, without=("head_dim",)),
]

mixtral = of("mixtral")
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 8}
MIXTRAL = [
    mixtral("no_window", "experts, no window", {**EXPERTS, "rope_parameters": PLAIN, "rms_norm_eps": 3e-4}),
    mixtral("window", "experts and a window; tied; linear scaling", {
        **EXPERTS, "sliding_window": WINDOW, "tie_word_embeddings": True, "rope_parameters": LINEAR, "hidden_act": "gelu"}),
]

qwen2, qwen3, qwen3_moe = of("qwen2"), of("qwen3"), of("qwen3_moe")
LATE = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
EVERY_OTHER = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
QWEN = [
    qwen2("plain", "no windows, untied", {"rope_parameters": PLAIN, "rms_norm_eps": 3e-5}, without=("head_dim",)),
    qwen2("late_windows", "use_sliding_window from max_window_layers on; yarn; tied", {
        **LATE, "rope_parameters": yarn(), "tie_word_embeddings": True}),
    qwen2("layer_types", "windows where layer_types says", {
        "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": EVERY_OTHER, "rope_parameters": PLAIN}),
    qwen3("plain", "q/k norms, tied", {"rope_parameters": PLAIN, "rms_norm_eps": 3e-5, "tie_word_embeddings": True}),
    qwen3("biases", "attention_bias, late windows, yarn", {
        "attention_bias": True, **LATE, "rope_parameters": yarn(), "rms_norm_eps": 3e-5}),
    qwen3_moe("renormalized", "every layer sparse, norm_topk_prob", {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "norm_topk_prob": True, "rope_parameters": PLAIN}),
    qwen3_moe("some_dense", "decoder_sparse_step, mlp_only_layers, shares as they are, a window, biases, tied", {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "norm_topk_prob": False, "decoder_sparse_step": 2,
        "mlp_only_layers": [3], "use_sliding_window": True, "sliding_window": WINDOW, "attention_bias": True,
        "tie_word_embeddings": True, "rope_parameters": yarn()}),
]

olmo, olmo2, olmoe = of("olmo"), of("olmo2"), of("olmoe")
OLMO = [
    olmo("plain", "LayerNorm without parameters", {"rope_parameters": PLAIN}, without=("head_dim",)),
    olmo("clip", "clip_qkv, attention_bias, tied", {
        "clip_qkv": 0.9, "attention_bias": True, "tie_word_embeddings": True, "rope_parameters": LINEAR}),
    olmo2("plain", "norms after, on whole q and k", {"rope_parameters": PLAIN, "rms_norm_eps": 3e-4}, without=("head_dim",)),
    olmo2("biases", "attention_bias, yarn, tied", {"attention_bias": True, "rope_parameters": yarn(), "tie_word_embeddings": True}),
    olmoe("plain", "experts, shares as they are", {
        "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False, "rope_parameters": PLAIN, "rms_norm_eps": 3e-4},
        without=("head_dim",)),
    olmoe("clip", "clip_qkv after the norms, norm_topk_prob, attention_bias, tied", {
        "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True, "clip_qkv": 0.9, "attention_bias": True,
        "tie_word_embeddings": True, "rope_parameters": LINEAR}, without=("head_dim",)),
]


def old_gemma3(raw: Json) -> Json:
    """Gemma 3's config.json as transformers 4 wrote it: a local base, and a scaling for the full layers alone."""
    old = dict(raw)
    ropes = old.pop("rope_parameters")
    full = dict(ropes["full_attention"])
    old["rope_theta"], old["rope_local_base_freq"] = full.pop("rope_theta"), ropes["sliding_attention"]["rope_theta"]
    old["rope_scaling"] = None if full["rope_type"] == "default" else full
    old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
    old["torch_dtype"] = old.pop("dtype")
    return old | {"transformers_version": "4.50.0.dev0"}


gemma, gemma2, gemma3 = of("gemma"), of("gemma2"), of("gemma3_text")
SCALE = {"query_pre_attn_scalar": 24}
GEMMA = [
    gemma("gelu", "hidden_act=gelu, which means its tanh form here", {
        "hidden_act": "gelu", "rope_parameters": PLAIN, "rms_norm_eps": 3e-5}),
    gemma("biases", "attention_bias, untied, silu", {
        "attention_bias": True, "tie_word_embeddings": False, "hidden_act": "silu", "rope_parameters": LINEAR}),
    gemma2("caps", "both soft caps, every other layer windowed", {
        **SCALE, "sliding_window": WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0, "rope_parameters": PLAIN}),
    gemma2("no_caps", "soft caps null, layer_types, attention_bias, untied", {
        **SCALE, "sliding_window": WINDOW, "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True,
        "layer_types": [*EVERY_OTHER[1:], "full_attention"], "tie_word_embeddings": False, "rope_parameters": LINEAR,
        "hidden_activation": "gelu"}),
    gemma3("two_ropes", "a rope for each kind of layer, the full one scaled; windows by pattern", {
        **SCALE, "sliding_window": WINDOW, "num_hidden_layers": 7, "rms_norm_eps": 3e-4, "rope_parameters": {
            "full_attention": rope("linear", 700.0, factor=3.0), "sliding_attention": rope("default", 90.0)}}, old=old_gemma3),
    # transformers halves the window whenever it makes a config, also of the file it wrote: 2 is what stays.
    gemma3("both_ways", "use_bidirectional_attention, as EmbeddingGemma: keys on both sides, a window to each", {
        **SCALE, "use_bidirectional_attention": True, "sliding_window": 2, "rms_norm_eps": 3e-4, "rope_parameters": {
            "full_attention": rope("default", 700.0), "sliding_attention": rope("default", 90.0)}}, old=old_gemma3),
    gemma3("cap", "final_logit_softcapping, an attn_logit_softcapping that nobody applies, layer_types, attention_bias, untied", {
        **SCALE, "sliding_window": WINDOW, "final_logit_softcapping": 7.0, "attn_logit_softcapping": 0.3, "attention_bias": True, "tie_word_embeddings": False,
        "layer_types": EVERY_OTHER, "rope_parameters": {
            "full_attention": rope("default", 700.0), "sliding_attention": rope("default", 90.0)}}, old=old_gemma3),
]

smollm3 = of("smollm3")
SMOLLM = [
    smollm3("interval", "every third layer without rope, tied", {
        "no_rope_layer_interval": 3, "rope_parameters": PLAIN, "rms_norm_eps": 3e-5}, without=("head_dim",)),
    smollm3("windows", "no_rope_layers, windows where there is no rope, both biases, untied, yarn", {
        "no_rope_layers": [1, 0, 0, 1], "use_sliding_window": True, "sliding_window": WINDOW, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": False, "rope_parameters": yarn()}),
]

CASES: list[Case] = [*LLAMA, *MISTRAL, *MIXTRAL, *QWEN, *OLMO, *GEMMA, *SMOLLM]
