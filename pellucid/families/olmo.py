"""OLMo 1: LayerNorm without parameters; the 7B clips q, k and v. https://arxiv.org/abs/2402.00838"""
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PAIRED, TENSORS, without
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if "norm" not in k}
GGUF = _gguf.Architecture(name="olmo", tensors=without(TENSORS | PAIRED, "norm"), also=("attention.layer_norm_epsilon",),
                          reads=_gguf.reads({"attention.clamp_kqv": "clip_qkv"}, less=("attention.layer_norm_rms_epsilon",)))


def spec(c: Config) -> DecoderSpec:
    mixer = _parts.attention(c, clip=c("clip_qkv", default=None))
    norm = Norm(kind="layer", eps=1e-5, weight=False)  # the eps is written in the code, not in config.json
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"), norm=norm)
