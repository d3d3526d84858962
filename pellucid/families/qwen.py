"""The first Qwen: Llama with q, k and v as one matrix with a bias, and scores that sharpen past the trained length. https://arxiv.org/abs/2309.16609

transformers does not have it: modeling_qwen.py of the Qwen-7B and Qwen-7B-Chat repositories is the source. With use_dynamic_ntk the base grows
with the row, whose length counts as the next power of two of seq_length: 2 ** ceil(log2(length / seq_length) + 1) - 1 is what Dynamic says with factor 2.
"""
from pellucid.families import _buffers, _gguf, _gguf_derive
from pellucid.families._config import Config
from pellucid.families._gguf_keys import feed_forward_length
from pellucid.families._gguf_tensors import ATTN_FUSED, ENDS, MLP, NORMS
from pellucid.spec import Attention, DecoderSpec, Dynamic, FeedForward, Layer, LogTemperature, Norm, Rope
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = _buffers.ROTARY | _buffers.MASKS | {
    "transformer.wte.weight": "embed.weight",
    "transformer.h.{i}.ln_1.weight": "blocks.{i}.attn_norm.weight",
    "transformer.h.{i}.ln_2.weight": "blocks.{i}.mlp_norm.weight",
    **{f"transformer.h.{{i}}.attn.c_attn.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv")) for p in ("weight", "bias")},
    **{f"transformer.h.{{i}}.{theirs}.{p}": f"blocks.{{i}}.{ours}.{p}" for p in ("weight", "bias") for theirs, ours in (
        ("attn.c_proj", "attn.o"), ("mlp.w1", "mlp.up"), ("mlp.w2", "mlp.gate"), ("mlp.c_proj", "mlp.down"))},  # biases where no_bias is false
    "transformer.ln_f.weight": "final_norm.weight",
    "lm_head.weight": "unembed.weight",
}
GGUF = _gguf.Architecture(
    name="qwen", tensors=ENDS | NORMS | ATTN_FUSED | MLP, present={"no_bias": "output_norm.weight"},
    also=("rope.dimension_count", "attention.layer_norm_rms_epsilon"),
    reads=_gguf.reads({"rope.freq_base": "rotary_emb_base"}, less=("attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon")),
    derive=lambda facts, raw: {"layer_norm_epsilon": facts.take("attention.layer_norm_rms_epsilon", facts.take("attention.layer_norm_epsilon")),
                               "kv_channels": _gguf_derive.d_head(raw), "rotary_pct": _gguf_derive.turning(facts, raw),
                               "seq_length": raw["max_position_embeddings"], "use_dynamic_ntk": False, "use_logn_attn": False},
    of={"feed_forward_length": lambda s: 2 * feed_forward_length(s),  # gate and up together, as config.json counts too
        "attention.layer_norm_epsilon": lambda s: s.norm.eps})


def spec(c: Config) -> DecoderSpec:
    # Second names are those of the first release. What the two releases' classes take an absent key for differs, so it must be there.
    d_model, n_heads, n_ctx = c("hidden_size", "n_embd"), c("num_attention_heads", "n_head"), c("max_position_embeddings", "n_positions")
    n_vocab, original, bias = c("vocab_size"), c("seq_length"), not c("no_bias", default=True)
    d_head = d_model // n_heads
    c("kv_channels")
    c.expect(kv_channels=d_head, scale_attn_weights=True, apply_residual_connection_post_layernorm=False, activation="swiglu", pos_emb="rotary",
             padded_vocab_size=n_vocab, rope_theta=c("rotary_emb_base", default=10_000))  # Qwen-72B says it twice
    c.inert(**dict.fromkeys(("emb_dropout_prob", "attn_dropout_prob"), "acts in training only"), bias_dropout_fusion="chooses how, not what",
            softmax_in_fp32="attention is float32 here", use_cache_kernel="chooses how, not what", params_dtype="the files say it",
            tokenizer_type="says what the file is", n_inner="the published code does not read it")
    rope = Rope(theta=float(c("rotary_emb_base", default=10_000)), d_rotary=int(d_head * c("rotary_pct", default=1.0)),
                scaling=Dynamic(original=original, factor=2.0, doubling=True) if c("use_dynamic_ntk") else None)
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, rope=rope, qkv_bias=True, out_bias=bias,
                      temperature=LogTemperature(original=original) if c("use_logn_attn") else None)
    mlp = FeedForward(d_ff=c("intermediate_size", "ffn_hidden_size") // 2, bias=bias)
    return DecoderSpec(family=c("model_type"), n_vocab=n_vocab, n_ctx=n_ctx, d_model=d_model, norm=Norm(eps=c("layer_norm_epsilon")),
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("num_hidden_layers", "n_layer"), tied=c("tie_word_embeddings", default=False))
