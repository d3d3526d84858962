"""Gemma 4 12B, text: gemma4_text without inputs of each layer's own and without experts, and with defaults of its own.

Facts: transformers 5.23, models/gemma4_unified/configuration_gemma4_unified.py.
"""
from dataclasses import replace

from pellucid.families import gemma4_text
from pellucid.families._config import Config
from pellucid.families.gemma4_text import WEIGHTS as WEIGHTS
from pellucid.spec import DecoderSpec

GGUF = replace(gemma4_text.GGUF, when=None)


def spec(c: Config) -> DecoderSpec:
    c.expect(hidden_size_per_layer_input=0, enable_moe_block=False)
    c.raw = {"sliding_window": 1024, "hidden_size_per_layer_input": 0, **{key: value for key, value in c.raw.items() if value is not None}}
    return gemma4_text.spec(c)
