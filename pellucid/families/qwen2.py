"""Qwen2 and 2.5: Llama with biases on q, k and v; late layers may be windowed. https://arxiv.org/abs/2407.10671"""
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer

WEIGHTS = llama.WEIGHTS
GGUF = _gguf.Architecture(name="qwen2")


def spec(c: Config) -> DecoderSpec:
    c.expect(use_mrope=False)
    mlp = _parts.feed_forward(c)
    mixers = [_parts.attention(c, heads_default=False, qkv_bias=True, window=window) for window in _parts.late_windows(c)]
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mixer in mixers])
