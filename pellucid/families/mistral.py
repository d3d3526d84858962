"""Mistral 7B: Llama with a sliding window, in version 0.1 only. https://arxiv.org/abs/2310.06825"""
from dataclasses import replace

from pellucid.families import _parts, llama
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer

WEIGHTS = llama.WEIGHTS
# Mistral Small 3.1 and later stand as another architecture, which knows more than they need.
GGUF = (replace(llama.GGUF, when=None),
        replace(llama.GGUF, name="mistral3", when=lambda facts: not facts.said.get("attention.temperature_scale"), given={"sliding_window": None}))


def spec(c: Config) -> DecoderSpec:
    c.expect(attention_bias=False)
    # Version 0.2 and later say null, no window; a file that says nothing means the window of 0.1.
    mixer = _parts.attention(c, heads_default=False, window=c.nullable("sliding_window", absent=4096))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"))
