"""EXAONE 4: norms after each sublayer and on queries and keys; where layers have windows, the full ones have no rope. https://arxiv.org/abs/2507.11407"""
from dataclasses import replace

from pellucid.families import _gguf, _gguf_derive, _parts, olmo2
from pellucid.families._config import Config
from pellucid.spec import DecoderSpec, Layer, Norm

WEIGHTS = olmo2.WEIGHTS
GGUF = _gguf.Architecture(name="exaone4", tensors=olmo2.GGUF.tensors, reads=_gguf.reads({"attention.sliding_window": "sliding_window"}),
                          given={"sliding_window": None}, derive=_gguf_derive.layer_types, many=("attention.sliding_window_pattern",),
                          also=("attention.sliding_window_pattern",))


def spec(c: Config) -> DecoderSpec:
    window, pattern = c.nullable("sliding_window", absent=4096), c("sliding_window_pattern", default=4)
    # "LLLG": local, local, local, global, and again; or how many layers the pattern is long.
    letters = pattern if isinstance(pattern, str) else "L" * (pattern - 1) + "G"
    local = [window is not None and letters[i % len(letters)] == "L" for i in range(c("num_hidden_layers"))]
    kinds = _parts.layer_types(c, ["sliding_attention" if here else "full_attention" for here in local], window)
    c.expect(attention_bias=False)
    norm = Norm(eps=c("rms_norm_eps", default=1e-5))
    mixer = _parts.attention(c, heads_default=False, qk_norm=norm)
    mixers = {"sliding_attention": replace(mixer, window=window), "full_attention": mixer if window is None else replace(mixer, rope=None)}
    mlp = _parts.feed_forward(c)
    return _parts.decoder(c, [Layer(mixer=mixers[kind], mlp=mlp) for kind in kinds], norm=norm, norm_in=False, norm_out=True)
