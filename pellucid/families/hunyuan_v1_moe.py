"""Hunyuan-A13B: hunyuan_v1_dense with a mixture beside a shared expert in every layer. https://github.com/Tencent-Hunyuan/Hunyuan-A13B"""
from pellucid.families import _gguf, _hunyuan, _parts, hunyuan_v1_dense, qwen3_moe
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, MLP, QK_NORMS, SHARED, TENSORS, without
from pellucid.spec import DecoderSpec, Experts, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {k: v for k, v in hunyuan_v1_dense.WEIGHTS.items() if ".mlp." not in k} | {
    k: v for k, v in qwen3_moe.WEIGHTS.items() if ".mlp.experts." in k} | {
    "model.layers.{i}.mlp.gate.wg.weight": "blocks.{i}.mlp.router.weight",
    **{f"model.layers.{{i}}.mlp.shared_mlp.{x}_proj.weight": f"blocks.{{i}}.mlp.shared.{x}.weight" for x in ("gate", "up", "down")},
}
GGUF = _gguf.Architecture(
    name="hunyuan-moe", tensors=without(TENSORS, *MLP) | QK_NORMS | EXPERTS | SHARED, present={"attention_bias": "blk.0.attn_q.bias"},
    reads=_gguf.reads({"expert_count": "num_experts", "expert_used_count": "moe_topk", "expert_feed_forward_length": "moe_intermediate_size"}),
    also=("expert_shared_feed_forward_length", "expert_shared_count"))


def spec(c: Config) -> DecoderSpec:
    norm, n, each = Norm(eps=c("rms_norm_eps", default=1e-5)), c("num_hidden_layers"), _parts.feed_forward(c)
    c.expect(moe_intermediate_size=each.d_ff, num_shared_expert=1, use_mixed_mlp_moe=True, moe_layer_num_skipped=0, norm_topk_prob=True,
             routed_scaling_factor=1.0, group_limited_greedy=False, moe_drop_tokens=False, moe_random_routing_dropped_token=False,
             position_embedding_xdrope=False, use_mla=False)
    n_experts, n_active = c("num_experts", "num_local_experts"), c("moe_topk", "num_experts_per_tok", default=1)
    mixer = _parts.attention(c, qk_norm=norm, qk_norm_late=True, called={"dynamic": "ntk_alpha"} if c.rope_fact("alpha") else None)
    _hunyuan.settle(c, mixer.d_head)
    # One number for all layers, or a list of one a layer.
    mlps = [Experts(n_experts=n_experts, n_active=active, renormalize=True, each=each, shared=each)
            for active in (n_active if isinstance(n_active, list) else [n_active] * n)]
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mlp in mlps[:n]], norm=norm)
