"""Hunyuan 0.5B to 7B: Llama with norms on queries and keys after they rotated; a base stretched once by alpha. https://github.com/Tencent-Hunyuan"""
from pellucid.families import _gguf, _hunyuan, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import QK_NORMS, TENSORS
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = llama.WEIGHTS | {
    "model.layers.{i}.self_attn.query_layernorm.weight": "blocks.{i}.attn.q_norm.weight",
    "model.layers.{i}.self_attn.key_layernorm.weight": "blocks.{i}.attn.k_norm.weight",
}
GGUF = _gguf.Architecture(name="hunyuan-dense", tensors=TENSORS | QK_NORMS, present={"attention_bias": "blk.0.attn_q.bias"})


def spec(c: Config) -> DecoderSpec:
    norm = Norm(eps=c("rms_norm_eps", default=1e-5))
    mixer = _parts.attention(c, qk_norm=norm, qk_norm_late=True, called={"dynamic": "ntk_alpha"} if c.rope_fact("alpha") else None)
    _hunyuan.settle(c, mixer.d_head)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"), norm=norm)
