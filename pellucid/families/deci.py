"""DeciLM 7B: Llama whose layers differ in their number of key/value heads. https://huggingface.co/Deci/DeciLM-7B"""
from dataclasses import replace

from pellucid.families import _parts, llama
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer

WEIGHTS = llama.WEIGHTS


def spec(c: Config) -> DecoderSpec:
    c.inert(num_key_value_heads="num_key_value_heads_per_layer says it")
    # The published files have no base: their class, configuration_decilm.py, is transformers 4.35's LlamaConfig, whose base is 10000.
    mixer, mlp = _parts.attention(c), _parts.feed_forward(c, bias=c("mlp_bias", default=False))
    kv_heads = _parts.one_a_layer(c, "num_key_value_heads_per_layer", c("num_hidden_layers"))
    return _parts.decoder(c, [Layer(mixer=replace(mixer, n_kv_heads=k), mlp=mlp) for k in kv_heads], eps=c("rms_norm_eps"))
