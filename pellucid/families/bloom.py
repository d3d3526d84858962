"""BLOOM: ALiBi in place of positions, a LayerNorm on the embeddings, q, k and v stored head by head. https://arxiv.org/abs/2211.05100

Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/bloom/modeling_bloom.py
"""
from pellucid.families import _gguf
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PLAIN
from pellucid.spec import Alibi, Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {  # BigScience's repositories were saved from the bare model, without the `transformer.` prefix
    "[transformer.]word_embeddings.weight": "embed.weight",
    "lm_head.weight": "unembed.weight",
}
WEIGHTS |= {f"[transformer.]{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "word_embeddings_layernorm": "embed_norm",
    "h.{i}.input_layernorm": "blocks.{i}.attn_norm",
    "h.{i}.self_attention.dense": "blocks.{i}.attn.o",
    "h.{i}.post_attention_layernorm": "blocks.{i}.mlp_norm",
    "h.{i}.mlp.dense_h_to_4h": "blocks.{i}.mlp.up",
    "h.{i}.mlp.dense_4h_to_h": "blocks.{i}.mlp.down",
    "ln_f": "final_norm",
}.items()}
WEIGHTS |= {f"[transformer.]h.{{i}}.self_attention.query_key_value.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv"), stacked="by_kv_head")
            for p in ("weight", "bias")}
GGUF = _gguf.Architecture(name="bloom", tensors=PLAIN | {f"token_embd_norm.{p}": f"embed_norm.{p}" for p in ("weight", "bias")},
                          also=("feed_forward_length", "attention.head_count_kv"),
                          reads={"context_length": "seq_length", "embedding_length": "n_embed", "block_count": "n_layer", "attention.head_count": "n_head",
                                 "attention.layer_norm_epsilon": "layer_norm_epsilon", "vocab_size": "vocab_size"})


def spec(c: Config) -> DecoderSpec:
    d_model, n_heads = c("n_embed", "hidden_size"), c("n_head", "num_attention_heads")  # the first releases say n_embed and num_attention_heads
    if c("pretraining_tp", default=1) > 1:
        c.expect(slow_but_exact=False)  # transformers adds up slices there, and leaves out the biases of two matrices
    c.expect(n_inner=4 * d_model)
    c.inert(hidden_size="n_embed says the same, and wins", slow_but_exact="orders the same sums differently",
            **dict.fromkeys(("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "skip_bias_add", "skip_bias_add_qkv",
                             "offset_alibi"), "a choice of the training code, which transformers never read"))
    d_head, normed = d_model // n_heads, c("apply_residual_connection_post_layernorm", default=False)
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, alibi=Alibi(), qkv_bias=True, out_bias=True)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=c("seq_length", default=2048), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=FeedForward(d_ff=4 * d_model, act="gelu_tanh", gated=False, bias=True)),)
                       * c("n_layer", "num_hidden_layers"),
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_epsilon", default=1e-5)), embed_norm=True,
                       norm_in=not normed, norm_stream="before" if normed else None, tied=c("tie_word_embeddings", default=True))
