"""CodeGen: GPT-J, its q, v and k in one matrix, in four shards. https://arxiv.org/abs/2203.13474

Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/codegen/modeling_codegen.py
"""
from pellucid.errors import UnsupportedModel
from pellucid.families import gptj
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec
from pellucid.weights.names import Rule, left_out, to

WEIGHTS: dict[str, Rule] = {name: rule for name, rule in gptj.WEIGHTS.items() if not any(f".{x}_proj." in name for x in "qkv")} | {
    # Trained over four TPU cores: each holds a quarter of the heads, first their q, then v, then k.
    "transformer.h.{i}.attn.qkv_proj.weight": to(*(f"blocks.{{i}}.attn.{x}.weight" for x in "qvk"), stacked=4),
    "transformer.h.{i}.attn.causal_mask": left_out("buffer: causal mask, recomputed"),
}


def spec(c: Config) -> DecoderSpec:
    c.inert(n_ctx="n_positions says it")
    if (n_heads := c("n_head")) % 4:
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: n_head={n_heads!r} (only multiples of 4, the shards of qkv_proj)")
    return gptj.spec(c)
