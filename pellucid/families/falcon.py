"""Falcon: parallel blocks over shared key/value heads (7B one, 40B and 180B eight); the RW models in sequence under ALiBi. https://arxiv.org/abs/2311.16867

Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/falcon/modeling_falcon.py
"""
from pellucid.errors import BadConfig
from pellucid.families import _buffers, _gguf, _gguf_derive, _parts
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PLAIN, block, without
from pellucid.spec import Alibi, Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = _buffers.ROTARY | {"transformer.word_embeddings.weight": "embed.weight", "lm_head.weight": "unembed.weight"}
WEIGHTS |= {f"transformer.{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "h.{i}.self_attention.dense": "blocks.{i}.attn.o", "ln_f": "final_norm",
    "h.{i}.mlp.dense_h_to_4h": "blocks.{i}.mlp.up", "h.{i}.mlp.dense_4h_to_h": "blocks.{i}.mlp.down",
}.items()}
WEIGHTS |= {f"transformer.h.{{i}}.self_attention.query_key_value.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv"), stacked="by_kv_head")
            for p in ("weight", "bias")}
WEIGHTS |= {f"transformer.h.{{i}}.ln_{x}.{p}": to(f"blocks.{{i}}.{x}_norm.{p}", when=lambda spec: spec.parallel and not spec.shared_norm)
            for p in ("weight", "bias") for x in ("attn", "mlp")}  # where both halves of a parallel block have a norm of their own
WEIGHTS |= {f"transformer.h.{{i}}.{theirs}_layernorm.{p}": to(f"blocks.{{i}}.{x}_norm.{p}", when=lambda spec: not spec.parallel or spec.shared_norm)
            for p in ("weight", "bias") for theirs, x in {"input": "attn", "post_attention": "mlp"}.items()}
GGUF = tuple(_gguf.Architecture(
    name="falcon", tensors=without(PLAIN, "attn_norm", "ffn_norm") | block(norms), present={"bias": "blk.0.attn_qkv.bias"},
    reads=_gguf.reads({"attention.head_count_kv": "num_kv_heads", "feed_forward_length": "ffn_hidden_size"}, less=("attention.key_length",),
                      eps="layer_norm_epsilon"),
    given={"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1 + two}, **_gguf_derive.norms_apart(two))
    for two, norms in ((False, {"attn_norm": "attn_norm"}), (True, {"attn_norm": "mlp_norm", "attn_norm_2": "attn_norm"})))


def spec(c: Config, *, new: bool = False) -> DecoderSpec:
    """`new` is what an absent new_decoder_architecture means."""
    # The first releases say n_head, n_layer and n_head_kv.
    d_model, n_heads, bias = c("n_embed", "hidden_size"), c("num_attention_heads", "n_head"), c("bias", default=False)
    c.inert(hidden_size="n_embed says the same, and wins")
    c.expect(apply_residual_connection_post_layernorm=False, rotary=not c("alibi", default=False))
    new, n_kv_heads = c("new_decoder_architecture", default=new), c("num_kv_heads", "n_head_kv", default=n_heads)
    parallel, n_norms = bool(c.nullable("parallel_attn", absent=True)) or new, c("num_ln_in_parallel_attn", default=2 if new else 1)
    if new:
        c.inert(multi_query="the new architecture counts its key/value heads")
        c.expect(parallel_attn=True)
    elif c.nullable("multi_query", absent=True):
        n_kv_heads = 1  # whatever num_kv_heads says: 7B says 71
    else:
        c.expect(num_kv_heads=n_heads, n_head_kv=n_heads)
    if parallel and n_norms not in ((1, 2) if new else (1,)):
        raise BadConfig(f"{c.where}: num_ln_in_parallel_attn={n_norms!r} (only 1, or 2 with new_decoder_architecture=true). Which of the two is wrong?")
    d_head = d_model // n_heads
    alibi = c("alibi", default=False)
    if alibi:
        c.inert(**dict.fromkeys(("rope_parameters", "rope_theta", "rope_scaling"), "ALiBi takes the place of rope"))
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head, scale=d_head ** -0.5, qkv_bias=bias, out_bias=bias,
                      rope=None if alibi else _parts.whole_rope(c, d_head),
                      alibi=Alibi(gain=d_head ** -0.5) if alibi else None)  # scores are scaled after the bias is added
    mlp = FeedForward(d_ff=c("ffn_hidden_size", default=4 * d_model), act=c.activation("activation", default="gelu"), gated=False, bias=bias)
    c.expect(ff_factor=mlp.d_ff / d_model)  # 11B says it beside ffn_hidden_size, and transformers reads that alone
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=c("max_position_embeddings", default=2048), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("num_hidden_layers", "n_layer"),
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_epsilon", default=1e-5)),
                       parallel=parallel, shared_norm=parallel and n_norms == 1, tied=c("tie_word_embeddings", default=True))
