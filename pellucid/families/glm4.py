"""GLM-4-0414: norms before and after each sublayer, adjacent-pair rotary on half of each head.

https://huggingface.co/zai-org/GLM-4-9B-0414
"""
from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import ALSO_QKV, ATTN, ENDS, GATE_UP, NORMS, OUT_NORMS, block
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if ".mlp." not in k and ".o_proj.bias" not in k} | {
    "model.layers.{i}.mlp.down_proj.weight": "blocks.{i}.mlp.down.weight",
    "model.layers.{i}.mlp.gate_up_proj.weight": to("blocks.{i}.mlp.gate.weight", "blocks.{i}.mlp.up.weight"),
    "model.layers.{i}.post_self_attn_layernorm.weight": "blocks.{i}.attn_out_norm.weight",
    "model.layers.{i}.post_mlp_layernorm.weight": "blocks.{i}.mlp_out_norm.weight",
}
GGUF = _gguf.Architecture(name="glm4", tensors=ENDS | NORMS | ATTN | ALSO_QKV | GATE_UP | block({"ffn_down": "mlp.down"}) | OUT_NORMS,
                          present={"attention_bias": "blk.0.attn_q.bias"}, also=("rope.dimension_count",),
                          derive=lambda facts, raw: {"head_dim": _gguf_derive.d_head(raw), "partial_rotary_factor": _gguf_derive.turning(facts, raw)})


def spec(c: Config) -> DecoderSpec:
    c("head_dim")  # it must be there: 128 where it is absent, whatever hidden_size is, would be transformers' guess
    mixer = _parts.attention(c, fraction=0.5, pairing="adjacent", heads_default=False, qkv_bias=c("attention_bias", default=True))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"), eps=1.5625e-07, norm_out=True)
