"""Falcon 7B and Falcon-RW as first released, under another model_type. https://huggingface.co/tiiuae/falcon-7b"""
from pellucid.families import falcon

WEIGHTS = falcon.WEIGHTS
spec = falcon.spec
