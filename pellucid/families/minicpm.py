"""MiniCPM 1B and 2B, MiniCPM4: Llama with multipliers (muP) on embeddings, sublayers and logits. https://arxiv.org/abs/2404.06395

transformers does not have it: modeling_minicpm.py of the MiniCPM repositories is the source.
"""
import math
from dataclasses import replace

from pellucid.errors import UnsupportedModel
from pellucid.families import _parts
from pellucid.families._config import Config
from pellucid.families.llama import WEIGHTS as WEIGHTS
from pellucid.spec import DecoderSpec, Layer, LongRope


def spec(c: Config) -> DecoderSpec:
    c.expect(sparse_config=None)  # MiniCPM4's InfLLM-v2, which attends to chosen blocks only
    c.inert(mup_denominator="read by heads that draft tokens ahead only")
    d_model, n_layers = c("hidden_size"), c("num_hidden_layers")
    mixer = _parts.attention(c, d_head=d_model // c("num_attention_heads"))
    if mixer.rope is not None and isinstance(scaling := mixer.rope.scaling, LongRope):
        n_ctx, unknown = c("max_position_embeddings"), [name for name in ("factor", "attention_factor") if c.rope_fact(name) is not None]
        if unknown:
            raise UnsupportedModel(f"{c.where} has a setting this family does not implement: {unknown[0]} in rope_scaling (the published code does not "
                                   f"read it with longrope: max_position_embeddings says it)")
        if n_ctx > scaling.original:  # the published tables are made for n_ctx, by the long factors: shorter rows read them too
            mixer = replace(mixer, rope=replace(mixer.rope, scaling=replace(scaling, short=scaling.long)))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * n_layers, tied=True, embed_scale=float(c("scale_emb", default=1)),
                          residual_scale=c("scale_depth", default=1) / math.sqrt(n_layers), logit_scale=c("dim_model_base", default=1) / d_model)
