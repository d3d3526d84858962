"""ERNIE 4.5, dense: Llama with rotary on adjacent pairs. https://yiyan.baidu.com/blog/publication/ERNIE_Technical_Report.pdf"""
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer

WEIGHTS = llama.WEIGHTS
GGUF = _gguf.Architecture(name="ernie4_5", present={"use_bias": "blk.0.attn_q.bias"})


def spec(c: Config) -> DecoderSpec:
    bias = c("use_bias", default=False)
    mixer = _parts.attention(c, theta=5e5, pairing="adjacent", heads_default=False, d_head=_parts.head_width(c, 128), qkv_bias=bias, out_bias=bias)
    layer = Layer(mixer=mixer, mlp=_parts.feed_forward(c, bias=bias))
    return _parts.decoder(c, [layer] * c("num_hidden_layers"), eps=1e-5, tied=True)
