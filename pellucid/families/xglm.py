"""XGLM: sines and cosines for positions, two rows late, and embeddings scaled up. https://arxiv.org/abs/2112.10668

Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/xglm/modeling_xglm.py
"""
from pellucid.errors import UnsupportedModel
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, left_out

WEIGHTS: dict[str, Rule] = {
    "model.embed_tokens.weight": "embed.weight",
    "model.embed_positions.weights": left_out("buffer: sines and cosines of the positions, recomputed"),
    "lm_head.weight": "unembed.weight",
}
WEIGHTS |= {f"model.{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "layers.{i}.self_attn_layer_norm": "blocks.{i}.attn_norm",
    **{f"layers.{{i}}.self_attn.{x}_proj": f"blocks.{{i}}.attn.{x}" for x in "qkv"},
    "layers.{i}.self_attn.out_proj": "blocks.{i}.attn.o",
    "layers.{i}.final_layer_norm": "blocks.{i}.mlp_norm",
    "layers.{i}.fc1": "blocks.{i}.mlp.up",
    "layers.{i}.fc2": "blocks.{i}.mlp.down",
    "layer_norm": "final_norm",
}.items()}


def spec(c: Config) -> DecoderSpec:
    c.expect(add_cross_attention=False)
    if (padding := c("pad_token_id", default=1)) > 1:  # that row of the table is zero, and the first position stands in row 2
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: pad_token_id={padding!r} (only 0 and 1): "
                               f"transformers gives position {padding - 2} no sines then")
    d_model, n_heads = c("d_model"), c("attention_heads")
    d_head = d_model // n_heads
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, qkv_bias=True, out_bias=True)
    mlp = FeedForward(d_ff=c("ffn_dim"), act=c.activation("activation_function", default="gelu"), gated=False, bias=True)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=c("max_position_embeddings"), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("num_layers"), norm=Norm(kind="layer", bias=True, eps=1e-5),
                       sinusoidal_positions=True, position_offset=2, embed_scale=d_model ** 0.5 if c("scale_embedding", default=True) else 1.0,
                       tied=c("tie_word_embeddings", default=True))
