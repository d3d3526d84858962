"""Gemma 3, text: q/k norms for soft caps, five windowed layers per full one, a rope for each kind. https://arxiv.org/abs/2503.19786"""
from pellucid.families import _gguf, _gguf_derive, _parts, gemma2, qwen3
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import DENSE, OUT_NORMS, QK_NORMS, TENSORS, raised
from pellucid.spec import DecoderSpec, Layer, Norm

WEIGHTS = qwen3.WEIGHTS | gemma2.WEIGHTS
GGUF = tuple(_gguf.Architecture(
    name=name, tensors=raised(TENSORS | OUT_NORMS | QK_NORMS) | DENSE, many=("attention.sliding_window_pattern",),
    derive=lambda facts, raw: _gguf_derive.query_scalar(62)(facts, raw) | _gguf_derive.windows(6)(facts, raw),
    reads=_gguf.reads({"attention.sliding_window": "sliding_window", "final_logit_softcapping": "final_logit_softcapping",
                       "rope.freq_base_swa": "rope_local_base_freq"}), **_gguf_derive.ways(both))
    for name, both in (("gemma3", False), ("gemma-embedding", True)))


def spec(c: Config) -> DecoderSpec:
    causal = not c("use_bidirectional_attention", default=False)
    # Gemma3Attention keeps the number and hands it to no attention: transformers 5.23, models/gemma3/modeling_gemma3.py. Norms stand in its place.
    c.inert(attn_logit_softcapping="Gemma 2's, and read by nobody")
    mlp = _parts.feed_forward(c, act=c.activation("hidden_activation", default="gelu_pytorch_tanh"))
    n, every = c("num_hidden_layers"), c("sliding_window_pattern", "_sliding_window_pattern", default=6)
    window = c.nullable("sliding_window", absent=4096)
    if window is not None and not causal:
        window = window // 2 + 1  # the stated one counts both sides, ours each, the token itself included: Gemma3TextConfig.__post_init__
    kinds = _parts.layer_types(c, ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(n)], window)
    norm, d_head = Norm(eps=c("rms_norm_eps", default=1e-6), offset=1.0), c("head_dim", default=256)
    ropes = {"full_attention": _parts.whole_rope(c, d_head, layer_type="full_attention", theta=1e6),
             # The transformers 4 dialect scales the full layers' rope only.
             "sliding_attention": _parts.whole_rope(c, d_head, layer_type="sliding_attention", scaled=False,
                                                    theta=1e4, theta_key="rope_local_base_freq")}
    scale = c("query_pre_attn_scalar", default=256) ** -0.5
    mixers = {kind: _parts.attention(c, heads_default=False, d_head=d_head, scale=scale, qk_norm=norm, rope=ropes[kind],
                                     causal=causal, window=window if kind == "sliding_attention" else None) for kind in ropes}
    return _parts.decoder(c, [Layer(mixer=mixers[kind], mlp=mlp) for kind in kinds], tied=True, norm=norm, norm_out=True,
                          embed_scale=c("hidden_size") ** 0.5, logit_softcap=c("final_logit_softcapping", default=None))
