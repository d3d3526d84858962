"""MiMo 7B: Qwen2's decoder, and layers that draft tokens ahead, which are left out. https://arxiv.org/abs/2505.07608

Facts: https://huggingface.co/XiaomiMiMo/MiMo-7B-RL/blob/main/modeling_mimo.py, whose model is a Qwen2ForCausalLM.
"""
from dataclasses import replace

from pellucid.families import _buffers, qwen2
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec

WEIGHTS = qwen2.WEIGHTS | _buffers.MTP
GGUF = replace(qwen2.GGUF, when=None)


def spec(c: Config) -> DecoderSpec:
    c.expect(attention_bias=True, use_mrope=False)
    return qwen2.spec(c)
