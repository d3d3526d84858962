"""OLMo 3: OLMo 2 with three windowed layers per full one, and rope scaled in the full ones alone. https://arxiv.org/abs/2512.13961"""
from pellucid.families import _gguf, _gguf_derive, _parts, olmo2
from pellucid.families._config import Config
from pellucid.families.olmo2 import WEIGHTS as WEIGHTS
from pellucid.spec import DecoderSpec, Layer, Norm

GGUF = _gguf.Architecture(name="olmo2", tensors=olmo2.GGUF.tensors, reads=_gguf.reads({"attention.sliding_window": "sliding_window"}),
                          derive=_gguf_derive.layer_types,
                          many=("attention.sliding_window_pattern",), also=("attention.sliding_window_pattern", "rope.freq_base_swa"),
                          when=lambda facts: bool(facts.said.get("attention.sliding_window")))


def spec(c: Config) -> DecoderSpec:
    norm, mlp, window = Norm(eps=c("rms_norm_eps", default=1e-5)), _parts.feed_forward(c), c.nullable("sliding_window", absent=4096)
    kinds = _parts.layer_types(c, ["sliding_attention" if (i + 1) % 4 else "full_attention" for i in range(c("num_hidden_layers"))], window)
    d_head = c("head_dim", default=c("hidden_size") // c("num_attention_heads"))
    # The transformers 4 dialect scales the full layers' rope only.
    ropes = {kind: _parts.whole_rope(c, d_head, layer_type=kind, theta=5e5, scaled=kind == "full_attention") for kind in sorted(set(kinds))}
    mixers = {kind: _parts.attention(c, qk_norm=norm, qk_norm_over="width", rope=rope, window=window if kind == "sliding_attention" else None)
              for kind, rope in ropes.items()}
    return _parts.decoder(c, [Layer(mixer=mixers[kind], mlp=mlp) for kind in kinds], norm=norm, norm_in=False, norm_out=True)
