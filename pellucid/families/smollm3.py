"""SmolLM3: every fourth layer has no rotary position. https://huggingface.co/blog/smollm3"""
from dataclasses import replace

from pellucid.errors import BadConfig
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PAIRED, TENSORS
from pellucid.spec import DecoderSpec, Layer

WEIGHTS = llama.WEIGHTS
GGUF = _gguf.Architecture(name="smollm3", tensors=TENSORS | PAIRED, present=llama.GGUF.present)


def spec(c: Config) -> DecoderSpec:
    c.inert(max_window_layers="no_rope_layers says which layers may have a window")
    n, every = c("num_hidden_layers"), c("no_rope_layer_interval", default=4)
    rotary = c("no_rope_layers", default=[int((i + 1) % every != 0) for i in range(n)])[:n]
    if len(rotary) < n:
        raise BadConfig(f"{c.where}: no_rope_layers names {len(rotary)} layers and num_hidden_layers says {n}. Which one is right?")
    window = c("sliding_window", default=None) if c("use_sliding_window", default=False) else None
    kinds = _parts.layer_types(c, ["sliding_attention" if window and not turns else "full_attention" for turns in rotary], window)
    mlp = _parts.feed_forward(c, bias=c("mlp_bias", default=False))
    mixer = _parts.attention(c, theta=2e6, heads_default=False)
    mixers = [replace(mixer, rope=mixer.rope if turns else None, window=window if kind == "sliding_attention" else None)
              for turns, kind in zip(rotary, kinds, strict=True)]
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp) for mixer in mixers], tied=True)
