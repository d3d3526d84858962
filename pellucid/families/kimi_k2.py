"""Kimi K2: DeepSeek-V3's decoder with more experts and fewer heads. https://arxiv.org/abs/2507.20534

"Kimi-K2 reuses the DeepSeekV3CausalLM architecture": docs/deploy_guidance.md of https://github.com/MoonshotAI/Kimi-K2.
"""
from dataclasses import replace

from pellucid.families import deepseek_v3
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec
from pellucid.weights.names import one_by_one

WEIGHTS = one_by_one(deepseek_v3.WEIGHTS)
GGUF = replace(deepseek_v3.GGUF, when=None)


def spec(c: Config) -> DecoderSpec:
    return deepseek_v3.spec(c)
