"""ChatGLM 2 and 3, GLM-4-9B: Llama with half of each head rotating, by neighbours, and q, k, v as one matrix. https://arxiv.org/abs/2406.12793

transformers does not have it under these names: modeling_chatglm.py of the ChatGLM3 and GLM-4 repositories is the source.
"""
from dataclasses import replace

from pellucid.errors import UnsupportedModel
from pellucid.families import glm
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import ATTN_FUSED
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, left_out, to

WEIGHTS: dict[str, Rule] = {
    "transformer.embedding.word_embeddings.weight": "embed.weight",
    "transformer.rotary_pos_emb.inv_freq": left_out("buffer: rope frequencies, recomputed from config.json"),
    "transformer.encoder.layers.{i}.input_layernorm.weight": "blocks.{i}.attn_norm.weight",
    **{f"transformer.encoder.layers.{{i}}.self_attention.query_key_value.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv"))
       for p in ("weight", "bias")},
    "transformer.encoder.layers.{i}.self_attention.dense.weight": "blocks.{i}.attn.o.weight",
    "transformer.encoder.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.mlp_norm.weight",
    "transformer.encoder.layers.{i}.mlp.dense_h_to_4h.weight": to("blocks.{i}.mlp.gate.weight", "blocks.{i}.mlp.up.weight"),
    "transformer.encoder.layers.{i}.mlp.dense_4h_to_h.weight": "blocks.{i}.mlp.down.weight",
    "transformer.encoder.final_layernorm.weight": "final_norm.weight",
    "transformer.output_layer.weight": "unembed.weight",
}
GGUF = replace(glm.GGUF, when=None, tensors={**glm.GGUF.tensors, **ATTN_FUSED})


def spec(c: Config) -> DecoderSpec:
    if c("position_encoding_2d", "inner_hidden_size", default=None) is not None:
        raise UnsupportedModel(f"{c.where} is the first ChatGLM's (position_encoding_2d, inner_hidden_size), another architecture of the same "
                               f"model_type; of 'chatglm' only ChatGLM 2 and 3 and GLM-4-9B are implemented")
    n_layers, n_vocab, d_head, ratio = c("num_layers"), c("padded_vocab_size"), c("kv_channels"), c("rope_ratio", default=1)
    c("multi_query_attention")  # must be there: without it q, k and v lie in another order
    c.expect(multi_query_attention=True, add_bias_linear=False, rmsnorm=True, post_layer_norm=True, apply_residual_connection_post_layernorm=False,
             fp32_residual_connection=False, rotary_percent=0.5, quantization_bit=0, pre_seq_len=None, tie_word_embeddings=False,
             num_hidden_layers=n_layers, vocab_size=n_vocab)
    c.inert(apply_query_key_layer_scaling="what divides the scores multiplies them again", attention_softmax_in_fp32="attention is float32 here",
            original_rope="both values turn neighbours", interleaved_qkv="multi_query_attention says how q, k and v lie",
            bias_dropout_fusion="chooses how, not what", prefix_projection="there is no prefix")
    if n_vocab == 65_024 and ratio != 1:
        # ChatGLM2-6B-32K reads it in another way than all later ones: https://github.com/ztxz16/fastllm/issues/374
        raise UnsupportedModel(f"{c.where} has a setting with two meanings: rope_ratio={ratio!r} divides the positions in ChatGLM2-6B-32K and multiplies "
                               f"the base in ChatGLM3-6B-32K, which share this vocabulary. Write what it means in its place: "
                               f"'rope_scaling': {{'type': 'linear', 'factor': {ratio}}} for the former, 'rope_theta': {10_000 * ratio} for the latter.")
    rope = c.rope(d_head, pairing="adjacent", fraction=0.5, theta=10_000.0 * ratio)
    mixer = Attention(n_heads=c("num_attention_heads"), n_kv_heads=c("multi_query_group_num"), d_head=d_head, scale=d_head ** -0.5,
                      qkv_bias=c("add_qkv_bias", default=False), rope=rope)
    return DecoderSpec(family=c("model_type"), n_vocab=n_vocab, n_ctx=c("seq_length"), d_model=c("hidden_size"),
                       layers=(Layer(mixer=mixer, mlp=FeedForward(d_ff=c("ffn_hidden_size"))),) * n_layers,
                       norm=Norm(eps=c("layernorm_epsilon", default=1e-5)))
