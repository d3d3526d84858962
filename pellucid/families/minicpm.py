"""MiniCPM 1B and 2B, MiniCPM4: Llama with multipliers (muP) on embeddings, sublayers and logits. https://arxiv.org/abs/2404.06395

transformers does not have it: modeling_minicpm.py of the MiniCPM repositories is the source.
"""
import math

from pellucid.families import _parts
from pellucid.families._config import Config
from pellucid.families.llama import WEIGHTS as WEIGHTS
from pellucid.spec import DecoderSpec, Layer


def spec(c: Config) -> DecoderSpec:
    c.expect(sparse_config=None)  # MiniCPM4's InfLLM-v2, which attends to chosen blocks only
    c.inert(mup_denominator="read by heads that draft tokens ahead only")
    d_model, n_layers = c("hidden_size"), c("num_hidden_layers")
    mixer = _parts.attention(c, d_head=d_model // c("num_attention_heads"))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * n_layers, tied=True, embed_scale=float(c("scale_emb", default=1)),
                          residual_scale=c("scale_depth", default=1) / math.sqrt(n_layers), logit_scale=c("dim_model_base", default=1) / d_model)
