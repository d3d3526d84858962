"""Gemma 4, text: heads of two widths, keys that are values too, layers that share them, inputs of each layer's own, experts. https://ai.google.dev/gemma/docs/core

Facts: transformers 5.23, models/gemma4/modeling_gemma4.py and configuration_gemma4.py.
"""
from pellucid.errors import BadConfig
from pellucid.families import _gguf, _gguf_derive, _parts, gemma2, qwen3
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import BESIDE, INPUTS, OUT_NORMS, QK_NORMS, TENSORS
from pellucid.spec import DecoderSpec, Layer, LayerInputs, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = qwen3.WEIGHTS | gemma2.WEIGHTS | {"model.layers.{i}.layer_scalar": "blocks.{i}.scale"} | {
    "model.embed_tokens_per_layer.weight": "inputs.table.weight",  # E2B and E4B: what every layer reads beside the stream
    "model.per_layer_model_projection.weight": "inputs.project.weight", "model.per_layer_projection_norm.weight": "inputs.norm.weight",
    **{f"model.layers.{{i}}.{theirs}.weight": f"blocks.{{i}}.input.{ours}.weight" for theirs, ours in (
        ("per_layer_input_gate", "gate"), ("per_layer_projection", "out"), ("post_per_layer_input_norm", "out_norm"))},
    **{f"model.layers.{{i}}.{theirs}.weight": f"blocks.{{i}}.beside.{ours}.weight" for theirs, ours in (  # 26B-A4B: experts beside the feed-forward
        ("post_feedforward_layernorm_1", "mlp_norm"), ("pre_feedforward_layernorm_2", "norm"), ("post_feedforward_layernorm_2", "out_norm"))},
    "model.layers.{i}.router.proj.weight": "blocks.{i}.beside.mixture.router.weight",
    "model.layers.{i}.router.scale": "blocks.{i}.beside.mixture.router.norm.weight",
    "model.layers.{i}.router.per_expert_scale": "blocks.{i}.beside.mixture.router.gain",
    "model.layers.{i}.experts.gate_up_proj": to(*(f"blocks.{{i}}.beside.mixture.experts.{{e}}.{x}.weight" for x in ("gate", "up")), all_experts=True),
    "model.layers.{i}.experts.down_proj": to("blocks.{i}.beside.mixture.experts.{e}.down.weight", all_experts=True),
}
GGUF = _gguf.Architecture(
    name="gemma4", tensors=TENSORS | OUT_NORMS | QK_NORMS | INPUTS | BESIDE, derive=_gguf_derive.two_widths, of=_gguf_derive.TWO_WIDTHS,
    many=_gguf_derive.MANY_WIDTHS, also=_gguf_derive.ALSO_WIDTHS, reads=_gguf.reads(
        {"attention.sliding_window": "sliding_window", "final_logit_softcapping": "final_logit_softcapping"}, less=_gguf_derive.ALSO_WIDTHS))


def spec(c: Config) -> DecoderSpec:
    if c("rope_parameters", default=None) is None:
        c.raw = {**c.raw, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}}}
    n, D, window, norm = c("num_hidden_layers"), c("hidden_size"), c("sliding_window", default=512), Norm(eps=c("rms_norm_eps", default=1e-6))
    causal, window = _parts.both_ways(c, window)
    kinds = _parts.layer_types(c, ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(n)], window)
    kinds = [*kinds[:-1], "full_attention"]  # whatever the file says of the last
    sources, table = _parts.shared_from(c, kinds), c("vocab_size_per_layer_input", default=262_144)
    wide, joint = {"head_dim": c("global_head_dim", default=512)}, c("attention_k_eq_v", default=False)
    if (kv := c("num_global_key_value_heads", default=None)) is not None and joint:
        wide["num_key_value_heads"] = kv
    own = {int(i): part for i, part in c("per_layer_config", default={i: wide for i, kind in enumerate(kinds) if kind == "full_attention"}).items()}
    if beyond := sorted(set(own) - set(range(n))):
        raise BadConfig(f"{c.where}: per_layer_config speaks of layer {beyond[0]}, and num_hidden_layers says {n}. Which is right?")
    act, factor = c.activation("hidden_activation", default="gelu_pytorch_tanh"), 2 if c("use_double_wide_mlp", default=False) else 1
    beside, layers = _parts.router_beside(c, norm, act), []
    for i, (kind, shares) in enumerate(zip(kinds, sources, strict=True)):
        part, full, makes = Config(own.get(i, {}), where=f"per_layer_config of {c.where}"), kind == "full_attention", shares is None
        d_head, n_kv_heads = part("head_dim", default=c("head_dim", default=256)), part("num_key_value_heads", default=c("num_key_value_heads"))
        part.finish()
        mixer = _parts.attention(c, d_head=d_head, n_kv_heads=n_kv_heads, scale=1.0, qk_norm=norm, causal=causal, shares=shares,
                                 window=None if full else window, value_norm=Norm(eps=norm.eps, weight=False) if makes else None,
                                 values_from_keys=joint and full and makes, rope=_parts.whole_rope(c, d_head, layer_type=kind))
        mlp = _parts.feed_forward(c, act=act, d_ff=c("intermediate_size") * (1 if makes else factor))
        layers.append(Layer(mixer=mixer, mlp=mlp, beside=beside, scaled=True))
    inputs = LayerInputs(d_input=width, n_vocab=table, act=act) if (width := c("hidden_size_per_layer_input", default=256)) else None
    return _parts.decoder(c, layers, tied=True, norm=norm, norm_out=True, embed_scale=D ** 0.5, layer_inputs=inputs,
                          logit_softcap=c("final_logit_softcapping", default=None))
