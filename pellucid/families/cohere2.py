"""Command R7B and Command A: three windowed layers with rotary, then one full layer without.

https://huggingface.co/CohereLabs/c4ai-command-r7b-12-2024
"""
import dataclasses

from pellucid.families import _gguf, _gguf_derive, _parts, cohere
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import TENSORS, without
from pellucid.spec import DecoderSpec, Layer, Norm

WEIGHTS = {k: v for k, v in cohere.WEIGHTS.items() if "_norm.weight" not in k}
GGUF = _gguf.Architecture(name="cohere2", tensors=without(TENSORS, "ffn_norm"), of={"logit_scale": lambda s: s.logit_scale}, derive=_gguf_derive.layer_types,
                          reads=_gguf.reads({"logit_scale": "logit_scale", "attention.sliding_window": "sliding_window"}, eps="layer_norm_eps"),
                          many=("attention.sliding_window_pattern",), also=("rope.dimension_count",))


def spec(c: Config) -> DecoderSpec:
    n_layers, every = c("num_hidden_layers"), c("sliding_window_pattern", "_sliding_window_pattern", default=4)
    # What the first release says of itself and transformers takes for granted.
    c.expect(layer_switch=every, order_of_interleaved_layers="local_attn_first", position_embedding_type="rope_gptj", rotary_pct=1.0,
             use_qk_norm=False, use_gated_activation=True, use_parallel_block=True,
             use_embedding_sharing=c("tie_word_embeddings", default=True))
    c.inert(use_parallel_embedding="says how the embedding is spread over devices")
    windowed = _parts.attention(c, pairing="adjacent", window=c("sliding_window"))
    mixers = {"sliding_attention": windowed, "full_attention": dataclasses.replace(windowed, rope=None, window=None)}
    pattern = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(n_layers)]
    mlp = _parts.feed_forward(c)
    layers = [Layer(mixer=mixers[kind], mlp=mlp) for kind in _parts.layer_types(c, pattern, windowed.window)]
    return _parts.decoder(c, layers, tied=True, norm=Norm(kind="layer", eps=c("layer_norm_eps", default=1e-5)), parallel=True,
                          shared_norm=True, logit_scale=c("logit_scale", default=0.0625))
