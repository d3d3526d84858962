"""Gemma 4 with vision, and E2B and E4B with audio too: the text model inside is gemma4_text. https://ai.google.dev/gemma/docs/core"""
from pellucid.families import _buffers, _wrapper, gemma4_text
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec

WEIGHTS = _buffers.AUDIO | _wrapper.table(gemma4_text.WEIGHTS)


def spec(c: Config) -> DecoderSpec:
    _wrapper.senses(c)
    return _wrapper.text_spec(c, "gemma4_text")
