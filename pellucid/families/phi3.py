"""Phi-3 and Phi-4: Llama with q, k and v stored as one matrix, gate and up as another; longrope in the 128k ones. https://arxiv.org/abs/2404.14219"""
from pellucid.errors import UnsupportedModel
from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_keys import KEYS, Free
from pellucid.families._gguf_tensors import ATTN_FUSED, ENDS, GATE_UP, NORMS, block
from pellucid.spec import DecoderSpec, Layer, LongRope
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if not any(
    x in k for x in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "bias"))} | {
    "model.layers.{i}.self_attn.qkv_proj.weight": to(*(f"blocks.{{i}}.attn.{x}.weight" for x in "qkv")),
    "model.layers.{i}.mlp.gate_up_proj.weight": to("blocks.{i}.mlp.gate.weight", "blocks.{i}.mlp.up.weight"),
}

GGUF = _gguf.Architecture(name="phi3", tensors=ENDS | NORMS | ATTN_FUSED | GATE_UP | block({"ffn_down": "mlp.down"}),
                          derive=lambda facts, raw: _gguf_derive.partial(facts, raw) | {
                              "sliding_window": raw.get("sliding_window") or None,  # zero is written for none
                              "original_max_position_embeddings": facts.said.get("rope.scaling.original_context_length", raw["max_position_embeddings"])},
                          reads=_gguf.reads({"attention.sliding_window": "sliding_window"}), also=("rope.dimension_count",),
                          of={"rope.scaling.original_context_length": lambda s: KEYS["rope.scaling.original_context_length"](s) or Free(s.n_ctx),
                              "attention.sliding_window": lambda s: KEYS["attention.sliding_window"](s) or 0})


def spec(c: Config) -> DecoderSpec:
    c.expect(attention_bias=False, mlp_bias=False, lm_head_bias=False, full_attn_mod=1, interpolate_factor=1)
    c.inert(original_max_position_embeddings="read by longrope only")
    c.raw = {"original_max_position_embeddings": 4096, **c.raw}
    d_head = c("head_dim", default=c("hidden_size") // c("num_attention_heads"))
    # Files of 2024 call longrope 'su', and transformers takes their 'yarn' for it too: configuration_phi3.py, convert_rope_params_to_dict
    rope = c.rope(d_head, called={"su": "longrope", "yarn": "longrope"})
    if not isinstance(rope.scaling, LongRope | None):
        raise UnsupportedModel(f"{c.where} has a rope scaling this family does not implement: {type(rope.scaling).__name__.lower()} (only longrope)")
    mixer = _parts.attention(c, d_head=d_head, rope=rope, window=c("sliding_window", default=None))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"), eps=1e-5)
