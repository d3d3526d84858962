"""GLM-4.5 to 4.7: half of each head rotates; experts by corrected sigmoid scores beside shared ones, after a few dense layers. https://arxiv.org/abs/2508.06471"""
from pellucid.families import _gguf, _gguf_derive, _parts, dots1
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import block, without
from pellucid.spec import DecoderSpec, Layer, Norm

WEIGHTS = dots1.WEIGHTS
GGUF = _gguf.Architecture(
    name="glm4moe", tensors=without(dots1.GGUF.tensors, "ffn_norm") | block({"post_attention_norm": "mlp_norm"}), reads=dots1.GGUF.reads,
    given={"norm_topk_prob": False, "routed_scaling_factor": 1.0}, also=("rope.dimension_count", "expert_gating_func"),
    present={"attention_bias": "blk.0.attn_q.bias", "use_qk_norm": "blk.0.attn_q_norm.weight"},
    derive=_gguf_derive.partial)


def spec(c: Config) -> DecoderSpec:
    c.expect(scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1)
    c.inert(num_mtp_layers="those layers are left out, and the load report says so", use_grouped_mm="says how experts are multiplied")
    norm = Norm(eps=c("rms_norm_eps", default=1e-5))
    mixer = _parts.attention(c, fraction=0.5, heads_default=False, qkv_bias=c("attention_bias", default=False),
                             qk_norm=norm if c("use_qk_norm", default=False) else None)
    mlps = _parts.corrected_experts(c, n_dense=1, renormalize=c("norm_topk_prob", default=True))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mlp in mlps], norm=norm)
