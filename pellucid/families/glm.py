"""GLM-4 9B as transformers spells it: glm4 without the norms after each sublayer. https://arxiv.org/abs/2406.12793"""
from pellucid.families import _gguf, _parts, glm4
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import without
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {k: v for k, v in glm4.WEIGHTS.items() if "post_self_attn" not in k and "post_mlp" not in k}
GGUF = _gguf.Architecture(name="chatglm", tensors=without(glm4.GGUF.tensors, "post_"), present={"attention_bias": "blk.0.attn_q.bias"},
                          derive=glm4.GGUF.derive, also=("rope.dimension_count",))


def spec(c: Config) -> DecoderSpec:
    mixer = _parts.attention(c, fraction=0.5, pairing="adjacent", heads_default=False, d_head=_parts.head_width(c, 128),
                             qkv_bias=c("attention_bias", default=True))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"), eps=1.5625e-07)
