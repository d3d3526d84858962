"""Ministral 3: Mistral whose queries grow with the logarithm of their position past the original context. https://mistral.ai/news/mistral-3"""
from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_keys import Free, of_attention
from pellucid.families._gguf_tensors import PAIRED, TENSORS
from pellucid.spec import DecoderSpec, Layer, Temperature

WEIGHTS = llama.WEIGHTS
GGUF = _gguf.Architecture(
    name="mistral3", tensors=TENSORS | PAIRED, when=lambda facts: bool(facts.said.get("attention.temperature_scale")), derive=_gguf_derive.sharpened,
    also=("attention.temperature_scale", "rope.scaling.yarn_log_multiplier"),
    of={"rope.scaling.yarn_log_multiplier": lambda s: Free(1.0), "attention.temperature_scale": of_attention(lambda a: getattr(a.temperature, "by", None))})


def spec(c: Config) -> DecoderSpec:
    c.expect(attention_bias=False)
    if c("rope_parameters", default=None) is None and c("rope_scaling", default=None) is None:
        c.expect(rope_theta=1e6)  # a file that is silent means the scaling of the release
        c.raw = {**c.raw, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0, "beta_slow": 1.0,
            "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1}}
    by, every = c.rope_fact("llama_4_scaling_beta"), c.rope_fact("original_max_position_embeddings")
    temperature = Temperature(every=every, by=float(by), first=0) if by else None
    mixer = _parts.attention(c, d_head=_parts.head_width(c, 128), heads_default=False, window=c("sliding_window", default=None),
                             temperature=temperature, beside=("llama_4_scaling_beta", "max_position_embeddings"))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"), eps=1e-5)
