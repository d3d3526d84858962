"""Sarvam-105B: DeepSeek-V3's decoder, its experts in groups of eight unless told. https://www.sarvam.ai/blogs/sarvam-30b-105b

transformers 5.23 does not have it: modeling_sarvam_moe.py and configuration_sarvam_moe.py of the 105B's repository are the source.
"""
from pellucid.errors import UnsupportedModel
from pellucid.families import _parts, deepseek_v3
from pellucid.families._config import Config, temperature
from pellucid.spec import DecoderSpec, LatentAttention, Layer, Norm
from pellucid.weights.names import one_by_one

WEIGHTS = one_by_one(deepseek_v3.WEIGHTS)


def spec(c: Config) -> DecoderSpec:
    # The published router knows one kind of score, and always divides the shares of more than one expert by their sum.
    n_heads, n_experts, d_plain, d_rotary = c("num_attention_heads"), c("num_experts"), c("qk_nope_head_dim", default=128), c("qk_rope_head_dim", default=64)
    c.expect(score_function="sigmoid", norm_topk_prob=True, moe_layer_freq=1, num_key_value_heads=n_heads, default_theta=10_000)
    c.inert(moe_router_enable_expert_bias="the published router always has the correction", use_qk_norm="the published attention does not read it",
            q_head_dim="follows from qk_nope_head_dim and qk_rope_head_dim", head_dim="the published attention does not read it",
            output_dropout="acts in training only", ep_size="says how experts are spread over devices")
    scaling = c("rope_scaling")
    if scaling.get("type") != "deepseek_yarn" or None in (scaling.get("mscale"), scaling.get("mscale_all_dim")):
        raise UnsupportedModel(f"{c.where} has a rope scaling this family does not implement: {scaling!r} (only type='deepseek_yarn' with mscale and "
                               f"mscale_all_dim; without a 'type' the published code sharpens the scores and leaves the rope as it is)")
    rope = _parts.whole_rope(c, d_rotary, pairing="adjacent", called={"deepseek_yarn": "yarn"})
    scale = (d_plain + d_rotary) ** -0.5 * temperature(scaling["factor"], scaling["mscale_all_dim"]) ** 2
    bias = c("attention_bias", default=False)
    mixer = LatentAttention(n_heads=n_heads, d_plain=d_plain, d_value=c("v_head_dim", default=128), d_latent=c("kv_lora_rank", default=512),
                            d_query_latent=c("q_lora_rank", default=None), scale=scale, rope=rope, norm=Norm(eps=1e-6), latent_bias=bias, out_bias=bias)
    mlps = _parts.corrected_experts(c, n_dense=1, keys=("num_experts",), shared_key="num_shared_experts", renormalize=c("num_experts_per_tok") > 1,
                                    n_groups=c("n_group", default=n_experts // 8), n_active_groups=c("topk_group", default=2),
                                    share_scale=float(c("routed_scaling_factor", default=2.5)))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mlp in mlps])
