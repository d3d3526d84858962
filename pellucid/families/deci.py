"""DeciLM 7B: Llama whose layers differ in their number of key/value heads. https://huggingface.co/Deci/DeciLM-7B"""
from dataclasses import replace

from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PAIRED, TENSORS
from pellucid.spec import DecoderSpec, Layer

WEIGHTS = llama.WEIGHTS
GGUF = _gguf.Architecture(
    name="deci", tensors=TENSORS | PAIRED, many=("attention.head_count_kv",), present=llama.GGUF.present, also=("attention.head_count_kv",),
    reads=_gguf.reads(less=("attention.head_count_kv",)), when=lambda facts: not _gguf_derive.chosen(facts),
    derive=lambda facts, raw: {"num_key_value_heads_per_layer": _gguf_derive.each(facts, "attention.head_count_kv", raw["num_hidden_layers"])})


def spec(c: Config) -> DecoderSpec:
    c.inert(num_key_value_heads="num_key_value_heads_per_layer says it")
    # The published files have no base: their class, configuration_decilm.py, is transformers 4.35's LlamaConfig, whose base is 10000.
    mixer, mlp = _parts.attention(c), _parts.feed_forward(c, bias=c("mlp_bias", default=False))
    kv_heads = _parts.one_a_layer(c, "num_key_value_heads_per_layer", c("num_hidden_layers"))
    return _parts.decoder(c, [Layer(mixer=replace(mixer, n_kv_heads=k), mlp=mlp) for k in kv_heads], eps=c("rms_norm_eps"))
