"""Qwen3 dense: RMSNorm on each query and key head in place of the biases. https://arxiv.org/abs/2505.09388"""
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import QK_NORMS, TENSORS
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = llama.WEIGHTS | {
    "model.layers.{i}.self_attn.q_norm.weight": "blocks.{i}.attn.q_norm.weight",
    "model.layers.{i}.self_attn.k_norm.weight": "blocks.{i}.attn.k_norm.weight",
}
GGUF = _gguf.Architecture(name="qwen3", tensors=TENSORS | QK_NORMS)


def spec(c: Config) -> DecoderSpec:
    mlp, norm = _parts.feed_forward(c), Norm(eps=c("rms_norm_eps", default=1e-6))
    mixers = [_parts.attention(c, heads_default=False, d_head=c("head_dim", default=128), qk_norm=norm, window=window)
              for window in _parts.late_windows(c)]
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mixer in mixers], norm=norm)
