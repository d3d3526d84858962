"""Phi-1, 1.5 and 2: parallel block sharing one LayerNorm, biases everywhere, part of each head rotates. https://arxiv.org/abs/2309.05463"""
from pellucid.families import _buffers, _gguf, _gguf_derive, _parts
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import FINAL_BIAS, TENSORS, without
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {"model.embed_tokens.weight": "embed.weight"}
WEIGHTS |= {f"{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "model.layers.{i}.input_layernorm": "blocks.{i}.attn_norm",
    **{f"model.layers.{{i}}.self_attn.{x}_proj": f"blocks.{{i}}.attn.{x}" for x in "qkv"},
    "model.layers.{i}.self_attn.dense": "blocks.{i}.attn.o",
    **{f"model.layers.{{i}}.self_attn.{x}_layernorm": f"blocks.{{i}}.attn.{x}_norm" for x in "qk"},  # where qk_layernorm says so
    "model.layers.{i}.mlp.fc1": "blocks.{i}.mlp.up",
    "model.layers.{i}.mlp.fc2": "blocks.{i}.mlp.down",
    "model.final_layernorm": "final_norm",
    "lm_head": "unembed",
}.items()}
WEIGHTS |= _buffers.ROTARY
GGUF = _gguf.Architecture(name="phi2", tensors=without(TENSORS, "ffn_norm", "ffn_gate") | FINAL_BIAS | {"output.bias": "unembed.bias"},
                          reads=_gguf.reads(eps="layer_norm_eps"), also=("rope.dimension_count",),
                          derive=_gguf_derive.partial)


def spec(c: Config) -> DecoderSpec:
    norm = Norm(kind="layer", bias=True, eps=c("layer_norm_eps", default=1e-5))
    mixer = _parts.attention(c, fraction=0.5, qkv_bias=True, out_bias=True, qk_norm=norm if c("qk_layernorm", default=False) else None)
    mlp = _parts.feed_forward(c, act=c.activation("hidden_act", default="gelu_new"), gated=False, bias=True)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), norm=norm, parallel=True, shared_norm=True,
                          unembed_bias=True)
