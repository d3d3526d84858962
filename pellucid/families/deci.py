"""DeciLM 7B: Llama whose layers differ in their number of key/value heads. https://huggingface.co/Deci/DeciLM-7B"""
from dataclasses import replace

from pellucid.families import _parts, llama
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer

WEIGHTS = llama.WEIGHTS


def spec(c: Config) -> DecoderSpec:
    c.inert(num_key_value_heads="num_key_value_heads_per_layer says it")
    # What an absent base or eps would mean is nowhere written but in code that is not run.
    mixer, mlp = _parts.attention(c, theta=c("rope_theta")), _parts.feed_forward(c, bias=c("mlp_bias", default=False))
    kv_heads = _parts.one_a_layer(c, "num_key_value_heads_per_layer", c("num_hidden_layers"))
    return _parts.decoder(c, [Layer(mixer=replace(mixer, n_kv_heads=k), mlp=mlp) for k in kv_heads], eps=c("rms_norm_eps"))
