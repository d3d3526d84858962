"""Llama 1-3, and the many families that kept its block. https://arxiv.org/abs/2302.13971"""
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm

WEIGHTS = {
    "model.embed_tokens.weight": "embed.weight",
    "model.layers.{i}.input_layernorm.weight": "blocks.{i}.attn_norm.weight",
    "model.layers.{i}.self_attn.q_proj.weight": "blocks.{i}.attn.q.weight",
    "model.layers.{i}.self_attn.k_proj.weight": "blocks.{i}.attn.k.weight",
    "model.layers.{i}.self_attn.v_proj.weight": "blocks.{i}.attn.v.weight",
    "model.layers.{i}.self_attn.o_proj.weight": "blocks.{i}.attn.o.weight",
    "model.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.mlp_norm.weight",
    "model.layers.{i}.mlp.gate_proj.weight": "blocks.{i}.mlp.gate.weight",
    "model.layers.{i}.mlp.up_proj.weight": "blocks.{i}.mlp.up.weight",
    "model.layers.{i}.mlp.down_proj.weight": "blocks.{i}.mlp.down.weight",
    "model.norm.weight": "final_norm.weight",
    "lm_head.weight": "unembed.weight",
}


def spec(c: Config) -> DecoderSpec:
    n_heads, d_model = c("num_attention_heads"), c("hidden_size")
    d_head = c("head_dim", default=d_model // n_heads)
    attn_bias, mlp_bias = c("attention_bias", default=False), c("mlp_bias", default=False)
    mixer = Attention(n_heads=n_heads, n_kv_heads=c("num_key_value_heads", default=n_heads), d_head=d_head, scale=d_head ** -0.5,
                      rope=c.rope(d_head), qkv_bias=attn_bias, out_bias=attn_bias)
    mlp = FeedForward(d_ff=c("intermediate_size"), act=c.activation("hidden_act", default="silu"), bias=mlp_bias)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=c("max_position_embeddings", default=2048), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("num_hidden_layers"), norm=Norm(eps=c("rms_norm_eps", default=1e-6)),
                       tied=c("tie_word_embeddings", default=False))
