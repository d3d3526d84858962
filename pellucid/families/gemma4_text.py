"""Gemma 4, text, dense: heads of two widths, keys that are values too, rope for the first pairs of full layers. https://ai.google.dev/gemma/docs/core"""
from pellucid.families import _parts, gemma2, qwen3
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = qwen3.WEIGHTS | gemma2.WEIGHTS | {"model.layers.{i}.layer_scalar": "blocks.{i}.scale"}


def spec(c: Config) -> DecoderSpec:
    c("hidden_size_per_layer_input")  # it must be there: a file that is silent has per-layer inputs
    c.expect(use_bidirectional_attention=None, hidden_size_per_layer_input=0, num_kv_shared_layers=0, enable_moe_block=False)
    c.inert(vocab_size_per_layer_input="there are no per-layer inputs", use_double_wide_mlp="it widens layers that share keys, and none does",
            **dict.fromkeys(("num_experts", "top_k_experts", "moe_intermediate_size"), "enable_moe_block is off"))
    if c("rope_parameters", default=None) is None:
        c.raw = {**c.raw, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}}}
    n, window, norm = c("num_hidden_layers"), c("sliding_window", default=512), Norm(eps=c("rms_norm_eps", default=1e-6))
    kinds = _parts.layer_types(c, ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(n)], window)
    kinds = [*kinds[:-1], "full_attention"]  # whatever the file says of the last
    wide, shared = {"head_dim": c("global_head_dim", default=512)}, c("attention_k_eq_v", default=False)
    if (kv := c("num_global_key_value_heads", default=None)) is not None and shared:
        wide["num_key_value_heads"] = kv
    own = c("per_layer_config", default={str(i): wide for i, kind in enumerate(kinds) if kind == "full_attention"})
    mlp, layers = _parts.feed_forward(c, act=c.activation("hidden_activation", default="gelu_pytorch_tanh")), []
    for i, kind in enumerate(kinds):
        part, full = Config(own.get(str(i), {}), where=f"per_layer_config of {c.where}"), kind == "full_attention"
        d_head, n_kv_heads = part("head_dim", default=c("head_dim", default=256)), part("num_key_value_heads", default=c("num_key_value_heads"))
        part.finish()
        mixer = _parts.attention(c, d_head=d_head, n_kv_heads=n_kv_heads, scale=1.0, qk_norm=norm, value_norm=Norm(eps=norm.eps, weight=False),
                                 values_from_keys=shared and full, window=None if full else window, rope=_parts.whole_rope(c, d_head, layer_type=kind))
        layers.append(Layer(mixer=mixer, mlp=mlp, scaled=True))
    return _parts.decoder(c, layers, tied=True, norm=norm, norm_out=True, embed_scale=c("hidden_size") ** 0.5,
                          logit_softcap=c("final_logit_softcapping", default=None))
