"""StarCoder2: LayerNorm, biases everywhere, a plain GELU feed-forward, a window over all layers. https://arxiv.org/abs/2402.19173"""
from pellucid.families import _buffers, _gguf, _parts
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import FINAL_BIAS, TENSORS, without
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {"model.embed_tokens.weight": "embed.weight", "lm_head.weight": "unembed.weight"}
WEIGHTS |= {f"{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "model.layers.{i}.input_layernorm": "blocks.{i}.attn_norm",
    **{f"model.layers.{{i}}.self_attn.{x}_proj": f"blocks.{{i}}.attn.{x}" for x in "qkvo"},
    "model.layers.{i}.post_attention_layernorm": "blocks.{i}.mlp_norm",
    "model.layers.{i}.mlp.c_fc": "blocks.{i}.mlp.up",
    "model.layers.{i}.mlp.c_proj": "blocks.{i}.mlp.down",
    "model.norm": "final_norm",
}.items()}
WEIGHTS |= _buffers.ROTARY
GGUF = _gguf.Architecture(name="starcoder2", tensors=without(TENSORS, "ffn_gate") | FINAL_BIAS, reads=_gguf.reads(eps="norm_epsilon"),
                          present={"use_bias": "blk.0.attn_q.bias"})


def spec(c: Config) -> DecoderSpec:
    c.expect(mlp_type="default", norm_type="layer_norm")
    c.inert(rms_norm_eps="the norms are LayerNorm and read norm_epsilon")
    bias = c("use_bias", default=True)
    mixer = _parts.attention(c, heads_default=False, qkv_bias=bias, out_bias=bias, window=c("sliding_window", default=None))
    mlp = _parts.feed_forward(c, act=c.activation("hidden_act", default="gelu_pytorch_tanh"), gated=False, bias=bias)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), tied=True,
                          norm=Norm(kind="layer", bias=True, eps=c("norm_epsilon", default=1e-5)))
