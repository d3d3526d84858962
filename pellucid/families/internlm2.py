"""InternLM2 and 2.5: Llama with q, k and v as one matrix, key head by key head. https://arxiv.org/abs/2403.17297

transformers does not have it: modeling_internlm2.py of the InternLM2 repositories is the source.
"""
from pellucid.families import _buffers, _gguf, _parts
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PAIRED, TENSORS
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = _buffers.ROTARY | {
    "model.tok_embeddings.weight": "embed.weight",
    "model.layers.{i}.attention_norm.weight": "blocks.{i}.attn_norm.weight",
    **{f"model.layers.{{i}}.attention.wqkv.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv"), stacked="by_kv_head") for p in ("weight", "bias")},
    **{f"model.layers.{{i}}.attention.wo.{p}": f"blocks.{{i}}.attn.o.{p}" for p in ("weight", "bias")},
    "model.layers.{i}.ffn_norm.weight": "blocks.{i}.mlp_norm.weight",
    "model.layers.{i}.feed_forward.w1.weight": "blocks.{i}.mlp.gate.weight",
    "model.layers.{i}.feed_forward.w3.weight": "blocks.{i}.mlp.up.weight",
    "model.layers.{i}.feed_forward.w2.weight": "blocks.{i}.mlp.down.weight",
    "model.norm.weight": "final_norm.weight",
    "output.weight": "unembed.weight",
}
GGUF = _gguf.Architecture(name="internlm2", tensors=TENSORS | PAIRED, present={"bias": "blk.0.attn_q.bias"}, reads=_gguf.reads(less=("attention.key_length",)))


def spec(c: Config) -> DecoderSpec:
    c.expect(rope_pos_id_version="default")
    c.inert(rope_pos_id_stride="the default rope_pos_id_version does not read it")
    bias = c("bias", default=True)
    mixer = _parts.attention(c, d_head=c("hidden_size") // c("num_attention_heads"), qkv_bias=bias, out_bias=bias)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"))
