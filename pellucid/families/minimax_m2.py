"""MiniMax M2: part of each head rotates, norms over whole queries and keys, many small experts by corrected sigmoid scores.

https://huggingface.co/MiniMaxAI/MiniMax-M2
"""
from pellucid.families import _gguf, _parts, mixtral, olmoe
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import CORRECTION, EXPERTS, MLP, QK_NORMS, TENSORS, without
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {k: v for k, v in olmoe.WEIGHTS.items() if ".mlp." not in k} | mixtral.WEIGHTS | {
    "model.layers.{i}.block_sparse_moe.e_score_correction_bias": "blocks.{i}.mlp.router.correction",
}
GGUF = _gguf.Architecture(
    name="minimax-m2", tensors=without(TENSORS, *MLP) | QK_NORMS | EXPERTS | CORRECTION, also=("expert_feed_forward_length", "expert_gating_func"),
    reads=_gguf.reads({"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok", "rope.dimension_count": "rotary_dim"}))


def spec(c: Config) -> DecoderSpec:
    c.expect(use_qk_norm=True, qk_norm_type="per_layer", scoring_func="sigmoid", use_routing_bias=True, shared_intermediate_size=0,
             attn_type_list=[1] * c("num_hidden_layers"))  # 1 is softmax attention; MiniMax-01 mixed it with linear
    c.inert(**dict.fromkeys(("use_mtp", "num_mtp_modules", "mtp_transformer_layers"), "drafts tokens ahead; the model's own logits do not use it"))
    norm, d_head = Norm(eps=c("rms_norm_eps", default=1e-6)), c("head_dim", default=128)
    turning = c("rotary_dim", default=None)  # the released files count the channels
    rope = c.rope(d_head, theta=5e6, fraction=turning / d_head if turning else 1.0)
    mixer = _parts.attention(c, heads_default=False, d_head=d_head, rope=rope, qk_norm=norm, qk_norm_over="width")
    mlp = _parts.experts(c, _parts.feed_forward(c), n_experts=256, n_active=8, scoring="sigmoid", correction=True, renormalize=True)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), norm=norm)
