"""Gemma 2: norms before and after each sublayer, soft caps, every other layer windowed. https://arxiv.org/abs/2408.00118"""
from typing import Any

from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import ALSO_QKV, ATTN, ENDS, MLP, NORMS, OUT_NORMS, raised
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = llama.WEIGHTS | {
    "model.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.attn_out_norm.weight",
    "model.layers.{i}.pre_feedforward_layernorm.weight": "blocks.{i}.mlp_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "blocks.{i}.mlp_out_norm.weight",
}


def _scalar(facts: _gguf.Facts, raw: dict[str, Any]) -> dict[str, Any]:
    """What divides the scores is not in the file: the width of a head, and in the 27B, whose layers are 46, that of its share (src/models/gemma2.cpp)."""
    share = raw["num_hidden_layers"] == 46
    return {"query_pre_attn_scalar": raw["hidden_size"] // raw["num_attention_heads"] if share else _gguf.d_head(raw)}


TENSORS = raised(ENDS | NORMS | ATTN | MLP | ALSO_QKV | OUT_NORMS)
GGUF = _gguf.Architecture(name="gemma2", tensors=TENSORS, derive=_scalar, reads=_gguf.reads({
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
