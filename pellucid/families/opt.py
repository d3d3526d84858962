"""OPT: learned positions that start two rows late, LayerNorm, ReLU. https://arxiv.org/abs/2205.01068"""
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, left_out

WEIGHTS: dict[str, Rule] = {  # 125M to 66B were saved from the bare decoder, without the `model.` prefix
    "[model.]decoder.embed_tokens.weight": "embed.weight",
    "[model.]decoder.embed_positions.weight": "pos_embed.weight",
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
    c.expect(do_layer_norm_before=True, enable_bias=True, layer_norm_elementwise_affine=True, _remove_final_layer_norm=False,
             word_embed_proj_dim=d_model)
    d_head = d_model // n_heads
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, qkv_bias=True, out_bias=True)
    mlp = FeedForward(d_ff=c("ffn_dim"), act=c.activation("activation_function", default="relu"), gated=False, bias=True)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=n_ctx, d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("num_hidden_layers"), norm=Norm(kind="layer", bias=True, eps=1e-5),
                       learned_positions=n_ctx + 2, position_offset=2, tied=c("tie_word_embeddings", default=True))
