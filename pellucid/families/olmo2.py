"""OLMo 2: norms after each sublayer instead of before, and on whole queries and keys. https://arxiv.org/abs/2501.00656"""
from pellucid.families import _gguf, _parts, qwen3
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import ALSO_QKV, ATTN, ENDS, MLP, OUT_NORMS, QK_NORMS
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {k: v for k, v in qwen3.WEIGHTS.items() if "layernorm" not in k} | {
    "model.layers.{i}.post_attention_layernorm.weight": "blocks.{i}.attn_out_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "blocks.{i}.mlp_out_norm.weight",
}
GGUF = _gguf.Architecture(name="olmo2", tensors=ENDS | ATTN | MLP | ALSO_QKV | QK_NORMS | OUT_NORMS,
                          when=lambda facts: not facts.said.get("attention.sliding_window"))


def spec(c: Config) -> DecoderSpec:
    norm = Norm(eps=c("rms_norm_eps", default=1e-5))
    mixer = _parts.attention(c, qk_norm=norm, qk_norm_over="width")
    layer = Layer(mixer=mixer, mlp=_parts.feed_forward(c))
    return _parts.decoder(c, [layer] * c("num_hidden_layers"), norm=norm, norm_in=False, norm_out=True)
