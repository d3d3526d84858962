"""Grok-1: soft-capped scores, norms on both sides of each sublayer, two of eight experts by their plain shares. https://github.com/xai-org/grok-1

The release has no config.json; config and tensor names are those of the conversion hpcai-tech/grok-1 (modeling_grok1.py), whose class says
model_type "grok-1": a config.json without it needs it added. The matrices are tied where the file is silent, as that class says. Its code has the
exact gelu, the release's own has `jax.nn.gelu`, which is the tanh form: the release is followed.
"""
from pellucid.families import _gguf, _parts
from pellucid.families._config import Config
from pellucid.families._gguf_keys import KEYS
from pellucid.families._gguf_tensors import EXPERTS, MLP, TENSORS, block, without
from pellucid.spec import DecoderSpec, Layer
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {
    "model.embed_tokens.weight": "embed.weight",
    **{f"model.layers.{{i}}.attn.{x}_proj.weight": f"blocks.{{i}}.attn.{x}.weight" for x in "qkvo"},
    "model.layers.{i}.pre_attn_norm.scale": "blocks.{i}.attn_norm.weight",
    "model.layers.{i}.post_attn_norm.scale": "blocks.{i}.attn_out_norm.weight",
    "model.layers.{i}.pre_moe_norm.scale": "blocks.{i}.mlp_norm.weight",
    "model.layers.{i}.post_moe_norm.scale": "blocks.{i}.mlp_out_norm.weight",
    "model.layers.{i}.moe_block.gate.weight": "blocks.{i}.mlp.router.weight",
    "model.layers.{i}.moe_block.experts.{e}.linear.weight": "blocks.{i}.mlp.experts.{e}.gate.weight",
    "model.layers.{i}.moe_block.experts.{e}.linear_v.weight": "blocks.{i}.mlp.experts.{e}.up.weight",
    "model.layers.{i}.moe_block.experts.{e}.linear_1.weight": "blocks.{i}.mlp.experts.{e}.down.weight",
    "model.norm.scale": "final_norm.weight",
    "lm_head.weight": "unembed.weight",
}
GGUF = _gguf.Architecture(
    name="grok", tensors=without(TENSORS, *MLP) | EXPERTS | block({"attn_output_norm": "attn_out_norm", "layer_output_norm": "mlp_out_norm"}, "weight"),
    reads=_gguf.reads({
        "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok", "attention.output_scale": "attn_output_multiplier",
        "attn_logit_softcapping": "max_attn_value", "embedding_scale": "embedding_multiplier_scale", "logit_scale": "output_multiplier_scale"},
        less=("attention.key_length",)),
    given={"max_attn_value": 30.0, "attn_output_multiplier": 128 ** -0.5, "output_multiplier_scale": 3 ** -0.5,  # of files without these keys
           "embedding_multiplier_scale": 6144 ** 0.5}, inert=("router_logit_softcapping",),
    of={"attention.output_scale": KEYS["attention.scale"], "logit_scale": lambda s: s.logit_scale})


def spec(c: Config) -> DecoderSpec:
    mixer = _parts.attention(c, heads_default=False, d_head=c("hidden_size") // c("num_attention_heads"), qkv_bias=False,
                             scale=float(c("attn_output_multiplier")), softcap=float(c("max_attn_value")))
    mlp = _parts.experts(c, _parts.feed_forward(c, act="gelu_tanh"), renormalize=False, n_experts=c("num_experts"), n_active=c("num_experts_per_tok"))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), family="grok_1", eps=1e-5, tied=True, norm_out=True,
                          embed_scale=float(c("embedding_multiplier_scale")), logit_scale=float(c("output_multiplier_scale")))
