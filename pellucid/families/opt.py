"""OPT and Galactica: learned positions that start two rows late, LayerNorm, ReLU or GELU. https://arxiv.org/abs/2205.01068

350M alone normalizes the stream after each sublayer, and is wider than its embedding; Galactica is https://arxiv.org/abs/2211.09085.
Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/opt/modeling_opt.py
"""
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, left_out

WEIGHTS: dict[str, Rule] = {  # 125M to 66B were saved from the bare decoder, without the `model.` prefix
    "[model.]decoder.embed_tokens.weight": "embed.weight",
    "[model.]decoder.embed_positions.weight": "pos_embed.weight",
    "[model.]decoder.project_in.weight": "embed_in.weight",
    "[model.]decoder.project_out.weight": "embed_out.weight",
    "[model.]decoder.version": left_out("buffer: a version number of fairseq"),
    "lm_head.weight": "unembed.weight",
}
WEIGHTS |= {f"[model.]decoder.{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "layers.{i}.self_attn_layer_norm": "blocks.{i}.attn_norm",
    "layers.{i}.self_attn.q_proj": "blocks.{i}.attn.q",
    "layers.{i}.self_attn.k_proj": "blocks.{i}.attn.k",
    "layers.{i}.self_attn.v_proj": "blocks.{i}.attn.v",
    "layers.{i}.self_attn.out_proj": "blocks.{i}.attn.o",
    "layers.{i}.final_layer_norm": "blocks.{i}.mlp_norm",
    "layers.{i}.fc1": "blocks.{i}.mlp.up",
    "layers.{i}.fc2": "blocks.{i}.mlp.down",
    "final_layer_norm": "final_norm",
}.items()}


def spec(c: Config) -> DecoderSpec:
    d_model, n_heads, n_ctx = c("hidden_size"), c("num_attention_heads"), c("max_position_embeddings")
    c.expect(learned_embeddings=True, scale_embeddings=False)  # what Galactica's files say of themselves
    d_embed, bias, before = c("word_embed_proj_dim", default=d_model), c("enable_bias", default=True), c("do_layer_norm_before", default=True)
    affine, removed = c("layer_norm_elementwise_affine", default=True), c("_remove_final_layer_norm", default=False)
    d_head = d_model // n_heads
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, qkv_bias=bias, out_bias=bias)
    mlp = FeedForward(d_ff=c("ffn_dim"), act=c.activation("activation_function", default="relu"), gated=False, bias=bias)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=n_ctx, d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("num_hidden_layers"), norm=Norm(kind="layer", weight=affine, bias=affine, eps=1e-5),
                       norm_in=before, norm_stream=None if before else "after", final_norm=before and not removed,
                       d_embed=None if d_embed == d_model else d_embed,
                       learned_positions=n_ctx + 2, position_offset=2, tied=c("tie_word_embeddings", default=True))
