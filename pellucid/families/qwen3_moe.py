"""Qwen3 mixture of experts: some layers may be dense. https://arxiv.org/abs/2505.09388"""
from pellucid.families import _gguf, _parts, qwen3
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, MLP, QK_NORMS, TENSORS, without
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = qwen3.WEIGHTS | {
    "model.layers.{i}.mlp.gate.weight": "blocks.{i}.mlp.router.weight",
    **{f"model.layers.{{i}}.mlp.experts.{{e}}.{x}_proj.weight": to(f"blocks.{{i}}.mlp.experts.{{e}}.{x}.weight",
                                                                   parameter=f"model.layers.{{i}}.mlp.experts.{together}")
       for x, together in (("gate", "gate_up_proj"), ("up", "gate_up_proj"), ("down", "down_proj"))},
}
GGUF = _gguf.Architecture(name="qwen3moe", tensors=without(TENSORS, *MLP) | QK_NORMS | EXPERTS, reads=_gguf.reads(_gguf.EXPERTS),
                          given={"norm_topk_prob": True}, present={"attention_bias": "blk.0.attn_q.bias"})


def spec(c: Config) -> DecoderSpec:
    norm = Norm(eps=c("rms_norm_eps", default=1e-6))
    windowed, window = c("use_sliding_window", default=False), c.nullable("sliding_window", absent=4096)
    c.expect(qkv_bias=False, use_qk_norm=True, shared_expert_intermediate_size=0)  # what Qwen3-Coder says beside the rest
    # Here all layers are windowed or none; max_window_layers is carried over from Qwen3 and read by nobody.
    c.inert(max_window_layers="every layer has the same window")
    mixer = _parts.attention(c, heads_default=False, qk_norm=norm, window=window if windowed else None)
    dense = _parts.feed_forward(c, d_ff=c("intermediate_size", default=6144))
    mixture = _parts.experts(c, _parts.feed_forward(c, d_ff=c("moe_intermediate_size")), renormalize=c("norm_topk_prob", default=False),
                             n_experts=128, n_active=8)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mlp in _parts.sparse_steps(c, dense, mixture)], norm=norm)
