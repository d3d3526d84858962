"""Falcon 40B as first released: what its model_type says, later files say with new_decoder_architecture. https://huggingface.co/tiiuae/falcon-40b"""
from pellucid.families import falcon
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec

WEIGHTS = falcon.WEIGHTS


def spec(c: Config) -> DecoderSpec:
    return falcon.spec(c, new=True)
