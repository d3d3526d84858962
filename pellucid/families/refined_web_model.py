"""Falcon 7B and Falcon-RW as first released, under another model_type. https://huggingface.co/tiiuae/falcon-7b"""
from dataclasses import replace

from pellucid.families import falcon

WEIGHTS = falcon.WEIGHTS
GGUF = tuple(replace(each, when=None) for each in falcon.GGUF)
spec = falcon.spec
