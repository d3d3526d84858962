"""Llama 4, text: experts that read their token times its share, chunked attention under rope, whole attention without. https://ai.meta.com/blog/llama-4-multimodal-intelligence

Facts: https://github.com/huggingface/transformers/blob/v4.51.0/src/transformers/models/llama4/modeling_llama4.py
"""
import dataclasses

from pellucid.errors import BadConfig, UnsupportedModel
from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, SHARED, TENSORS
from pellucid.spec import DecoderSpec, Layer, Norm, Temperature
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if ".mlp." not in k} | {
    **{f"model.layers.{{i}}.feed_forward.{x}_proj.weight": f"blocks.{{i}}.mlp.{x}.weight" for x in ("gate", "up", "down")},
    **{f"model.layers.{{i}}.feed_forward.shared_expert.{x}_proj.weight": f"blocks.{{i}}.mlp.shared.{x}.weight" for x in ("gate", "up", "down")},
    "model.layers.{i}.feed_forward.router.weight": "blocks.{i}.mlp.router.weight",
    "model.layers.{i}.feed_forward.experts.gate_up_proj": to(*(f"blocks.{{i}}.mlp.experts.{{e}}.{x}.weight" for x in ("gate", "up")), transpose=True,
                                                             all_experts=True, turned=True),
    "model.layers.{i}.feed_forward.experts.down_proj": to("blocks.{i}.mlp.experts.{e}.down.weight", transpose=True, all_experts=True,
                                                          turned=True),
}
GGUF = _gguf.Architecture(
    name="llama4", tensors=TENSORS | EXPERTS | SHARED, derive=_gguf_derive.chunked, also=("rope.dimension_count", "expert_shared_count"),
    reads=_gguf.reads({"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok", "feed_forward_length": "intermediate_size_mlp",
                       "expert_feed_forward_length": "intermediate_size", "interleave_moe_layer_step": "interleave_moe_layer_step"}),
    of={"interleave_moe_layer_step": _gguf_derive.every})


def spec(c: Config) -> DecoderSpec:
    n, every, norm = c("num_hidden_layers"), c("no_rope_layer_interval", default=4), Norm(eps=c("rms_norm_eps", default=1e-5))
    c.inert(for_llm_compressor="bookkeeping of how the file was made")
    turning = c("no_rope_layers", default=None) or [int((i + 1) % every != 0) for i in range(n)]  # 1 = with rope; an empty list says nothing
    kinds = c("layer_types", default=["chunked_attention" if turns else "full_attention" for turns in turning[:n]])
    sparse_at = c("moe_layers", default=range((step := c("interleave_moe_layer_step", default=1)) - 1, n, step))
    chunk = c.nullable("attention_chunk_size", absent=8192)
    if strange := sorted(set(kinds) - {"chunked_attention", "full_attention"}):
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: layer_types with {strange[0]!r} "
                               f"(only 'chunked_attention' and 'full_attention')")
    if len(turning) < n or len(kinds) != n:
        raise BadConfig(f"{c.where}: no_rope_layers names {len(turning)} layers, layer_types {len(kinds)}, and num_hidden_layers says {n}. Which is right?")
    if "chunked_attention" in kinds and chunk is None:
        raise BadConfig(f"{c.where}: layer_types has chunked layers and attention_chunk_size is null. Set it, or make every layer 'full_attention'.")
    usual = _parts.attention(c, theta=500_000.0, pairing="adjacent", heads_default=False,
                             d_head=c.nullable("head_dim", absent=128) or c("hidden_size") // c("num_attention_heads"))
    tuned = Temperature(every=c("floor_scale", default=8192), by=float(c("attn_scale", default=0.1)), first=1)
    rope = dataclasses.replace(usual, qk_norm=dataclasses.replace(norm, weight=False) if c("use_qk_norm", default=True) else None, qk_norm_late=True)
    bare = dataclasses.replace(usual, rope=None, temperature=tuned if c("attn_temperature_tuning", default=True) else None)
    each, dense = _parts.feed_forward(c), _parts.feed_forward(c, d_ff=c("intermediate_size_mlp", default=16_384))
    mixture = _parts.experts(c, each, n_experts=16, n_active=1, scoring="sigmoid", renormalize=False, scale_input=True, shared=each)
    return _parts.decoder(c, [Layer(mixer=dataclasses.replace(rope if turning[i] else bare, chunk=chunk if kinds[i] == "chunked_attention" else None),
                                    mlp=mixture if i in sparse_at else dense) for i in range(n)], norm=norm)
