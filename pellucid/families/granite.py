"""Granite 3: Llama with four fixed multipliers (muP). https://arxiv.org/abs/2408.13359"""
from pellucid.families import _parts
from pellucid.families._config import Config
from pellucid.families.llama import WEIGHTS as WEIGHTS
from pellucid.spec import DecoderSpec, Layer


def spec(c: Config) -> DecoderSpec:
    mixer = _parts.attention(c, scale=float(c("attention_multiplier", default=1.0)))
    mlp = _parts.feed_forward(c, bias=c("mlp_bias", default=False))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), **_parts.multipliers(c))
