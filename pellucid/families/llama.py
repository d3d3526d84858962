"""Llama 1-3, and the many families that kept its block. https://arxiv.org/abs/2302.13971"""
from pellucid.families import _buffers, _gguf, _parts
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PAIRED, TENSORS
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = _buffers.ROTARY | {
    "model.embed_tokens.weight": "embed.weight",
    "model.layers.{i}.input_layernorm.weight": "blocks.{i}.attn_norm.weight",
    "model.layers.{i}.self_attn.q_proj.weight": "blocks.{i}.attn.q.weight",
    "model.layers.{i}.self_attn.k_proj.weight": "blocks.{i}.attn.k.weight",
    "model.layers.{i}.self_attn.v_proj.weight": "blocks.{i}.attn.v.weight",
    "model.layers.{i}.self_attn.o_proj.weight": "blocks.{i}.attn.o.weight",
    **{f"model.layers.{{i}}.self_attn.{x}_proj.bias": f"blocks.{{i}}.attn.{x}.bias" for x in "qkvo"},  # where attention_bias says so
    "model.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.mlp_norm.weight",
    "model.layers.{i}.mlp.gate_proj.weight": "blocks.{i}.mlp.gate.weight",
    "model.layers.{i}.mlp.up_proj.weight": "blocks.{i}.mlp.up.weight",
    "model.layers.{i}.mlp.down_proj.weight": "blocks.{i}.mlp.down.weight",
    **{f"model.layers.{{i}}.mlp.{x}_proj.bias": f"blocks.{{i}}.mlp.{x}.bias" for x in ("gate", "up", "down")},  # where mlp_bias says so
    "model.norm.weight": "final_norm.weight",
    "lm_head.weight": "unembed.weight",
}

GGUF = _gguf.Architecture(name="llama", tensors=TENSORS | PAIRED, when=lambda facts: not facts.said.get("expert_count"),
                          present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"})


def spec(c: Config) -> DecoderSpec:
    c.expect(rope_interleaved=False, bias=False)  # the second: InternLM 20B, of its projections
    c.inert(is_llama_config="the SmolLM2 repositories say so; it is the family that says it")
    layer = Layer(mixer=_parts.attention(c), mlp=_parts.feed_forward(c, bias=c("mlp_bias", default=False)))
    return _parts.decoder(c, [layer] * c("num_hidden_layers"))
