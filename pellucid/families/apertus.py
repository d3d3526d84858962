"""Apertus: Llama with norms on queries and keys, and a feed-forward without gate under xIELU. https://arxiv.org/abs/2509.14233"""
from pellucid.families import _gguf, _parts, qwen3
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import QK_NORMS, TENSORS, without
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {k: v for k, v in qwen3.WEIGHTS.items() if "layernorm" not in k and "gate_proj" not in k} | {
    "model.layers.{i}.attention_layernorm.weight": "blocks.{i}.attn_norm.weight",
    "model.layers.{i}.feedforward_layernorm.weight": "blocks.{i}.mlp_norm.weight",
    **{f"model.layers.{{i}}.mlp.act_fn.{x}": f"blocks.{{i}}.mlp.xielu.{x}" for x in ("alpha_p", "alpha_n", "beta", "eps")},
}
GGUF = _gguf.Architecture(name="apertus", tensors=without(TENSORS, "ffn_gate") | QK_NORMS, present={"attention_bias": "blk.0.attn_q.bias"},
                          numbers={f"xielu.{x}": f"blocks.{{i}}.mlp.xielu.{x}" for x in ("alpha_p", "alpha_n", "beta", "eps")})


def spec(c: Config) -> DecoderSpec:
    c.expect(mlp_bias=False, post_norm=False, qk_norm=True)  # of the training code's own config, kept by the published ones
    if c("rope_parameters", default=None) is None and c("rope_scaling", default=None) is None:
        c.expect(rope_theta=12e6)  # a file that is silent means the scaling of the release
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        c.raw = {**c.raw, "rope_scaling": scaling}
    norm, learned = Norm(eps=c("rms_norm_eps", default=1e-5)), c("hidden_act", default="xielu") == "xielu"
    mlp = _parts.feed_forward(c, gated=False, xielu=learned, act="silu" if learned else c.activation("hidden_act"))
    mixer = _parts.attention(c, qk_norm=norm, theta=12e6)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), norm=norm)
