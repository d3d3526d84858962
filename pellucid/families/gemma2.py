"""Gemma 2: norms before and after each sublayer, soft caps, every other layer windowed. https://arxiv.org/abs/2408.00118"""
from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import OUT_NORMS, TENSORS, raised
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = llama.WEIGHTS | {
    "model.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.attn_out_norm.weight",
    "model.layers.{i}.pre_feedforward_layernorm.weight": "blocks.{i}.mlp_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "blocks.{i}.mlp_out_norm.weight",
}

GGUF = _gguf.Architecture(name="gemma2", tensors=raised(TENSORS | OUT_NORMS), derive=_gguf_derive.query_scalar(46), reads=_gguf.reads({
    key: key.removeprefix("attention.") for key in ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window")}))


def spec(c: Config) -> DecoderSpec:
    _parts.causal(c)
    c.inert(hidden_act="hidden_activation is the one that is read", cache_implementation="the window is in layer_types")
    mlp = _parts.feed_forward(c, act=c.activation("hidden_activation", default="gelu_pytorch_tanh"))
    n, window = c("num_hidden_layers"), c.nullable("sliding_window", absent=4096)
    c.expect(sliding_window_size=window)  # the 27B says it twice
    cap = c.nullable("attn_logit_softcapping", absent=50.0)
    kinds = _parts.layer_types(c, ["full_attention" if i % 2 else "sliding_attention" for i in range(n)], window)
    mixers = {kind: _parts.attention(c, heads_default=False, d_head=c("head_dim", default=256), softcap=cap,
                                     scale=c("query_pre_attn_scalar", default=256) ** -0.5,
                                     window=window if kind == "sliding_attention" else None) for kind in sorted(set(kinds))}
    return _parts.decoder(c, [Layer(mixer=mixers[kind], mlp=mlp) for kind in kinds], tied=True, norm_out=True,
                          norm=Norm(eps=c("rms_norm_eps", default=1e-6), offset=1.0), embed_scale=c("hidden_size") ** 0.5,
                          logit_softcap=c.nullable("final_logit_softcapping", absent=30.0))
