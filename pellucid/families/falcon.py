"""Falcon 7B: parallel block, one LayerNorm for both halves, one key/value head. https://arxiv.org/abs/2311.16867"""
from pellucid.families import _buffers, _parts
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {
    "transformer.word_embeddings.weight": "embed.weight",
    "transformer.h.{i}.input_layernorm.weight": "blocks.{i}.attn_norm.weight",
    "transformer.h.{i}.input_layernorm.bias": "blocks.{i}.attn_norm.bias",
    "transformer.h.{i}.self_attention.query_key_value.weight": to(*(f"blocks.{{i}}.attn.{x}.weight" for x in "qkv"), stacked="by_kv_head"),
    "transformer.h.{i}.self_attention.dense.weight": "blocks.{i}.attn.o.weight",
    "transformer.h.{i}.mlp.dense_h_to_4h.weight": "blocks.{i}.mlp.up.weight",
    "transformer.h.{i}.mlp.dense_4h_to_h.weight": "blocks.{i}.mlp.down.weight",
    "transformer.ln_f.weight": "final_norm.weight",
    "transformer.ln_f.bias": "final_norm.bias",
    "lm_head.weight": "unembed.weight",
}
WEIGHTS |= _buffers.ROTARY


def spec(c: Config) -> DecoderSpec:
    # The first releases (model_type RefinedWebModel) say n_head, n_layer and n_head_kv.
    d_model, n_heads = c("hidden_size", "n_embed"), c("num_attention_heads", "n_head")
    c.expect(alibi=False, bias=False, multi_query=True, new_decoder_architecture=False, parallel_attn=True, num_ln_in_parallel_attn=1,
             apply_residual_connection_post_layernorm=False, rotary=True)
    c.inert(num_kv_heads="multi_query says one", n_head_kv="multi_query says one")
    d_head = d_model // n_heads
    mixer = Attention(n_heads=n_heads, n_kv_heads=1, d_head=d_head, scale=d_head ** -0.5, rope=_parts.whole_rope(c, d_head))
    mlp = FeedForward(d_ff=c("ffn_hidden_size", default=4 * d_model), act=c.activation("activation", default="gelu"), gated=False)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=c("max_position_embeddings", default=2048), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("num_hidden_layers", "n_layer"),
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_epsilon", default=1e-5)), parallel=True, shared_norm=True,
                       tied=c("tie_word_embeddings", default=True))
