"""Qwen1.5-MoE and Qwen2-57B-A14B: many small experts beside a shared one behind a gate. https://arxiv.org/abs/2407.10671"""
from pellucid.families import _gguf, _parts, qwen2, qwen3_moe
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, MLP, SHARED, TENSORS, without
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = qwen2.WEIGHTS | {name: rule for name, rule in qwen3_moe.WEIGHTS.items() if ".mlp." in name} | {
    "model.layers.{i}.mlp.shared_expert_gate.weight": "blocks.{i}.mlp.shared_gate.weight",
    **{f"model.layers.{{i}}.mlp.shared_expert.{x}_proj.weight": f"blocks.{{i}}.mlp.shared.{x}.weight" for x in ("gate", "up", "down")},
}
GGUF = _gguf.Architecture(
    name="qwen2moe", tensors=without(TENSORS, *MLP) | EXPERTS | SHARED | {
        "blk.{i}.ffn_gate_inp_shexp.weight": to("blocks.{i}.mlp.shared_gate.weight", flat=True)},
    reads=_gguf.reads(_gguf.EXPERTS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}),
    present={"qkv_bias": "blk.0.attn_q.bias"}, given={"norm_topk_prob": False})


def spec(c: Config) -> DecoderSpec:
    # Windows alternate here, up to max_window_layers: configuration_qwen2_moe.py of transformers.
    window = c.nullable("sliding_window", absent=4096) if c("use_sliding_window", default=False) else None
    c.inert(sliding_window="use_sliding_window is off")
    last, n = c("max_window_layers", default=28), c("num_hidden_layers")
    kinds = _parts.layer_types(c, ["sliding_attention" if window and i % 2 == 0 and i < last else "full_attention" for i in range(n)], window)
    mixers = [_parts.attention(c, heads_default=False, qkv_bias=c("qkv_bias", default=True), window=window if kind == "sliding_attention" else None)
              for kind in kinds]
    dense = _parts.feed_forward(c)
    mixture = _parts.experts(c, _parts.feed_forward(c, d_ff=c("moe_intermediate_size", default=1408)), n_experts=60, n_active=4,
                             renormalize=c("norm_topk_prob", default=False), shared_gate=True,
                             shared=_parts.feed_forward(c, d_ff=c("shared_expert_intermediate_size", default=5632)))
    mlps = _parts.sparse_steps(c, dense, mixture)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mixer, mlp in zip(mixers, mlps, strict=True)])
