"""openPangu-Embedded (model_type PanguEmbedded): Llama with biases around attention. https://ai.gitcode.com/ascend-tribe/openpangu-embedded-7b-model

transformers does not have it: modeling_openpangu_dense.py of openPangu-Embedded-7B-V1.1 is the source.
"""
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if ".mlp." not in k or k.endswith(".weight")}
GGUF = _gguf.Architecture(name="pangu-embedded", present={"bias": "blk.0.attn_q.bias"}, also=("rope.dimension_count",))


def spec(c: Config) -> DecoderSpec:
    bias = c("bias", default=True)
    mixer = _parts.attention(c, theta=16e6, heads_default=False, qkv_bias=bias, out_bias=bias)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"), eps=1e-5, family="pangu_embedded")
