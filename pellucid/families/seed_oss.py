"""Seed-OSS 36B: Llama with biases on q, k and v, and heads of a width of their own. https://huggingface.co/ByteDance-Seed/Seed-OSS-36B-Instruct"""
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import TENSORS, block, without
from pellucid.spec import DecoderSpec, Layer

WEIGHTS = llama.WEIGHTS
GGUF = _gguf.Architecture(name="seed_oss", tensors=without(TENSORS, "ffn_norm") | block({"post_attention_norm": "mlp_norm"}), present={
    "attention_bias": "blk.0.attn_q.bias", "attention_out_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_gate.bias"})


def spec(c: Config) -> DecoderSpec:
    mixer = _parts.attention(c, heads_default=False, d_head=_parts.head_width(c, 128), qkv_bias=c("attention_bias", default=True),
                             out_bias=c("attention_out_bias", default=False))
    layer = Layer(mixer=mixer, mlp=_parts.feed_forward(c, bias=c("mlp_bias", default=False)))
    return _parts.decoder(c, [layer] * c("num_hidden_layers"))
