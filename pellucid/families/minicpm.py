"""MiniCPM 1B, 2B and MoE 8x2B, MiniCPM4: Llama with multipliers (muP) on embeddings, sublayers and logits. https://arxiv.org/abs/2404.06395

transformers does not have it: modeling_minicpm.py of the MiniCPM repositories is the source.
"""
import math
from dataclasses import replace

from pellucid.errors import UnsupportedModel
from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import EXPERTS, PAIRED, TENSORS
from pellucid.spec import DecoderSpec, Experts, FeedForward, Layer, LongRope
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = llama.WEIGHTS | {  # of the mixture
    "model.layers.{i}.mlp.gate.weight": "blocks.{i}.mlp.router.weight",
    **{f"model.layers.{{i}}.mlp.experts.{{e}}.{theirs}.weight": f"blocks.{{i}}.mlp.experts.{{e}}.{ours}.weight"
       for theirs, ours in (("w1", "gate"), ("w3", "up"), ("w2", "down"))},
}
GGUF = _gguf.Architecture(
    name="minicpm", tensors=TENSORS | PAIRED | EXPERTS, derive=_gguf_derive.scaled, of={
        "logit_scale": lambda s: 1 / s.logit_scale, "rope.scaling.attn_factor": lambda s: None},
    reads=_gguf.reads({"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok", "embedding_scale": "scale_emb"},
                      less=("attention.key_length",)), also=("residual_scale", "logit_scale"))


def spec(c: Config) -> DecoderSpec:
    c.expect("it switches on InfLLM-v2, which attends to chosen blocks only, and the published files leave it out. Without it attention is whole",
             sparse_config=None)
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
    mlp: FeedForward | Experts = _parts.feed_forward(c)
    if n_experts := c("num_experts", default=0):
        mlp = Experts(n_experts=n_experts, n_active=c("num_experts_per_tok"), renormalize=True, each=_parts.feed_forward(c))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * n_layers, tied=True, embed_scale=float(c("scale_emb", default=1)),
                          residual_scale=c("scale_depth", default=1) / math.sqrt(n_layers), logit_scale=c("dim_model_base", default=1) / d_model)
