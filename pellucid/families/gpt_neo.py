"""GPT-Neo: GPT-2 with global and local attention in turn, and scores that are not divided by anything.

https://github.com/EleutherAI/gpt-neo
Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/gpt_neo/modeling_gpt_neo.py
"""
from pellucid.errors import BadConfig, UnsupportedModel
from pellucid.families import _buffers
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {
    "transformer.wte.weight": "embed.weight",
    "transformer.wpe.weight": "pos_embed.weight",
    **{f"transformer.h.{{i}}.attn.attention.{x}_proj.weight": f"blocks.{{i}}.attn.{x}.weight" for x in "qkv"},
    "lm_head.weight": "unembed.weight",
}
WEIGHTS |= {f"transformer.{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "h.{i}.ln_1": "blocks.{i}.attn_norm",
    "h.{i}.attn.attention.out_proj": "blocks.{i}.attn.o",
    "h.{i}.ln_2": "blocks.{i}.mlp_norm",
    "h.{i}.mlp.c_fc": "blocks.{i}.mlp.up",
    "h.{i}.mlp.c_proj": "blocks.{i}.mlp.down",
    "ln_f": "final_norm",
}.items()}
WEIGHTS |= _buffers.MASKS


def spec(c: Config) -> DecoderSpec:
    d_model, n_heads, n_layers, n_ctx = c("hidden_size"), c("num_heads"), c("num_layers"), c("max_position_embeddings")
    pattern = c("attention_types", default=[[["global", "local"], 12]])
    # The list, where the file has one, wins over the pattern it was made from, as it does in transformers.
    kinds = c("attention_layers", default=[kind for kinds, n in pattern for _ in range(n) for kind in kinds])
    if strange := sorted(set(kinds) - {"global", "local"}):
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: attention_layers with {strange[0]!r} (only 'global' and 'local')")
    if len(kinds) != n_layers:
        raise BadConfig(f"{c.where}: attention_layers or attention_types name {len(kinds)} layers and num_layers says {n_layers}. Which one is right?")
    windows = {"global": None, "local": c("window_size", default=256)}
    mixers = {kind: Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_model // n_heads, scale=1.0, window=window, out_bias=True)
              for kind, window in windows.items()}
    mlp = FeedForward(d_ff=c("intermediate_size", default=4 * d_model), act=c.activation("activation_function", default="gelu_new"),
                      gated=False, bias=True)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=n_ctx, d_model=d_model,
                       layers=tuple(Layer(mixer=mixers[kind], mlp=mlp) for kind in kinds), learned_positions=n_ctx,
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_epsilon", default=1e-5)),
                       tied=c("tie_word_embeddings", default=True))
