"""gpt-oss: attention sinks, every other layer windowed, experts with biases and a clamped gate. https://arxiv.org/abs/2508.10925"""
from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, MLP, TENSORS, block, without
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if ".mlp." not in k} | {
    "model.layers.{i}.self_attn.sinks": "blocks.{i}.attn.sinks",
    **{f"model.layers.{{i}}.mlp.router.{p}": f"blocks.{{i}}.mlp.router.{p}" for p in ("weight", "bias")},
    # The published files hold these two in MXFP4, as ..._blocks and ..._scales: weights/packed.py gives them under these names.
    "model.layers.{i}.mlp.experts.gate_up_proj": to(*(f"blocks.{{i}}.mlp.experts.{{e}}.{x}.weight" for x in ("gate", "up")), transpose=True,
                                                    stacked="interleaved", all_experts=True),
    "model.layers.{i}.mlp.experts.down_proj": to("blocks.{i}.mlp.experts.{e}.down.weight", transpose=True, all_experts=True),
    "model.layers.{i}.mlp.experts.gate_up_proj_bias": to(*(f"blocks.{{i}}.mlp.experts.{{e}}.{x}.bias" for x in ("gate", "up")), stacked="interleaved",
                                                         all_experts=True),
    "model.layers.{i}.mlp.experts.down_proj_bias": to("blocks.{i}.mlp.experts.{e}.down.bias", all_experts=True),
}
GGUF = _gguf.Architecture(
    name="gpt-oss", tensors=without(TENSORS, *MLP, "ffn_norm") | EXPERTS | block({"post_attention_norm": "mlp_norm"}) | {
        "blk.{i}.attn_sinks.weight": "blocks.{i}.attn.sinks"},
    reads=_gguf.reads({"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok", "attention.sliding_window": "sliding_window"}),
    present={"attention_bias": "blk.0.attn_q.bias"}, derive=_gguf_derive.layer_types, many=("attention.sliding_window_pattern",),
    yarn={"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}, also=("expert_feed_forward_length",))


def spec(c: Config) -> DecoderSpec:
    c("rope_parameters", "rope_scaling")  # must be there: what its absence means is a scaling of transformers' own
    c.inert(initial_context_length="stands in the rope's scaling too", experts_per_token="num_experts_per_tok says it",
            hidden_act="the experts' gate is silu with a slope, whatever this says")
    window, n = c.nullable("sliding_window", absent=128), c("num_hidden_layers")
    kinds = _parts.layer_types(c, ["full_attention" if i % 2 else "sliding_attention" for i in range(n)], window)
    bias, d_head = c("attention_bias", default=True), c.nullable("head_dim", absent=64) or c("hidden_size") // c("num_attention_heads")
    mixers = {kind: _parts.attention(c, theta=150_000.0, heads_default=False, d_head=d_head, qkv_bias=bias, out_bias=bias, sinks=True,
                                     window=window if kind == "sliding_attention" else None) for kind in set(kinds)}
    each = _parts.feed_forward(c, act="silu", slope=float(c("swiglu_alpha", default=1.702)), limit=float(c("swiglu_limit", default=7.0)), up_offset=1.0,
                               bias=True)
    mixture = _parts.experts(c, each, n_experts=128, n_active=4, renormalize=True, router_bias=True)
    return _parts.decoder(c, [Layer(mixer=mixers[kind], mlp=mixture) for kind in kinds], eps=1e-5)
