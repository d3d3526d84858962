"""Nemotron-4 and Minitron: LayerNorm with gain (1 + w), squared ReLU, half of each head rotates. https://arxiv.org/abs/2402.16819"""
from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import FINAL_BIAS, TENSORS, raised, without
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if "gate_proj" not in k} | {
    "model.layers.{i}.input_layernorm.bias": "blocks.{i}.attn_norm.bias",
    "model.layers.{i}.post_attention_layernorm.bias": "blocks.{i}.mlp_norm.bias",
    "model.norm.bias": "final_norm.bias",
}
GGUF = _gguf.Architecture(name="nemotron", tensors=raised(without(TENSORS, "ffn_gate") | FINAL_BIAS), reads=_gguf.reads(eps="norm_eps"),
                          present={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}, also=("rope.dimension_count",),
                          of={"attention.layer_norm_rms_epsilon": lambda s: s.norm.eps},  # the converter writes it twice
                          derive=_gguf_derive.partial)


def spec(c: Config) -> DecoderSpec:
    eps = c("norm_eps", default=1e-5)
    mixer = _parts.attention(c, fraction=0.5, heads_default=False)
    c.expect(kv_channels=mixer.d_head, layer_norm_eps=eps)  # NeMo's converter writes them beside ours
    mlp = _parts.feed_forward(c, act=c.activation("hidden_act", default="relu2"), gated=False, bias=c("mlp_bias", default=False))
    norm = Norm(kind="layer", bias=True, offset=1.0, eps=eps)
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), norm=norm)
