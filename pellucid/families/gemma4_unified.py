"""Gemma 4 12B, whose images and sounds enter without towers: the text model inside is gemma4_unified_text. https://ai.google.dev/gemma/docs/core"""
from pellucid.families import _wrapper
from pellucid.families._config import Config
from pellucid.families.gemma4 import WEIGHTS as WEIGHTS
from pellucid.spec import DecoderSpec


def spec(c: Config) -> DecoderSpec:
    _wrapper.senses(c)
    return _wrapper.text_spec(c, "gemma4_unified_text")
