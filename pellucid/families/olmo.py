"""OLMo 1: LayerNorm without parameters; the 7B clips q, k and v. https://arxiv.org/abs/2402.00838"""
from pellucid.families import _parts, llama
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if "norm" not in k}


def spec(c: Config) -> DecoderSpec:
    mixer = _parts.attention(c, clip=c("clip_qkv", default=None))
    norm = Norm(kind="layer", eps=1e-5, weight=False)  # the eps is written in the code, not in config.json
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"), norm=norm)
