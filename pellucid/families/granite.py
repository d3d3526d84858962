"""Granite 3: Llama with four fixed multipliers (muP). https://arxiv.org/abs/2408.13359"""
from pellucid.families import _gguf, _gguf_derive, _parts
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PAIRED, TENSORS
from pellucid.families.llama import WEIGHTS as WEIGHTS
from pellucid.spec import DecoderSpec, Layer

GGUF = _gguf.Architecture(name="granite", tensors=TENSORS | PAIRED, reads=_gguf.reads(_gguf.MULTIPLIERS),
                          of={"logit_scale": lambda s: 1 / s.logit_scale, "rope.scaling.finetuned": lambda s: True},  # false: no rope at all
                          derive=lambda facts, raw: {"attention_multiplier": raw.get("attention_multiplier", _gguf_derive.d_head(raw) ** -0.5)},
                          present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"})


def spec(c: Config) -> DecoderSpec:
    mixer = _parts.attention(c, scale=float(c("attention_multiplier", default=1.0)))
    mlp = _parts.feed_forward(c, bias=c("mlp_bias", default=False))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), **_parts.multipliers(c))
