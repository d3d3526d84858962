"""Falcon 40B as first released: what its model_type says, later files say with new_decoder_architecture. https://huggingface.co/tiiuae/falcon-40b"""
from dataclasses import replace

from pellucid.families import falcon
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec

WEIGHTS = falcon.WEIGHTS
GGUF = tuple(replace(each, when=None) for each in falcon.GGUF)


def spec(c: Config) -> DecoderSpec:
    return falcon.spec(c, new=True)
