"""Sarvam-30B: Llama with norms on queries and keys; experts by corrected sigmoid scores, one shared. https://www.sarvam.ai/blogs/sarvam-30b-105b

transformers 5.23 does not have it: modeling_sarvam_moe.py of Sarvam AI is the source.
"""
from pellucid.families import _parts
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {
    "model.word_embeddings.weight": "embed.weight",
    "model.layers.{i}.input_layernorm.weight": "blocks.{i}.attn_norm.weight",
    **{f"model.layers.{{i}}.attention.query_key_value.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv")) for p in ("weight", "bias")},
    "model.layers.{i}.attention.query_layernorm.weight": "blocks.{i}.attn.q_norm.weight",
    "model.layers.{i}.attention.key_layernorm.weight": "blocks.{i}.attn.k_norm.weight",
    **{f"model.layers.{{i}}.attention.dense.{p}": f"blocks.{{i}}.attn.o.{p}" for p in ("weight", "bias")},
    "model.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.mlp_norm.weight",
    **{f"model.layers.{{i}}.mlp.{theirs}{x}_proj.weight": f"blocks.{{i}}.mlp.{ours}{x}.weight" for x in ("gate", "up", "down") for theirs, ours in (
        ("", ""), ("experts.{e}.", "experts.{e}."), ("shared_experts.", "shared."))},
    "model.layers.{i}.mlp.gate.weight": "blocks.{i}.mlp.router.weight",
    "model.layers.{i}.mlp.gate.expert_bias": "blocks.{i}.mlp.router.correction",
    "model.norm.weight": "final_norm.weight",
    "lm_head.weight": "unembed.weight",
}


def spec(c: Config) -> DecoderSpec:
    # The published router knows one kind of score, and always divides the shares of more than one expert by their sum.
    c.expect(score_function="sigmoid", norm_topk_prob=True, router_dtype="fp32", use_rmsnorm=True)
    c.expect(moe_shared_expert_intermediate_size=c("moe_intermediate_size") * c("num_shared_experts"))
    c.inert(moe_router_enable_expert_bias="the published router always has the correction", max_window_layers="there are no windows",
            output_dropout="acts in training only")
    norm = Norm(eps=c("rms_norm_eps", default=1e-6))
    mixer = _parts.attention(c, heads_default=False, d_head=_parts.head_width(c, 256), qkv_bias=c("use_qkv_bias", default=False),
                             out_bias=c("use_bias", default=False), qk_norm=norm if c("use_qk_norm", default=True) else None)
    mlps = _parts.corrected_experts(c, n_dense=1, keys=("num_experts",), shared_key="num_shared_experts", renormalize=c("num_experts_per_tok") > 1,
                                    share_scale=float(c("routed_scaling_factor", default=2.5)))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mlp in mlps], norm=norm)
