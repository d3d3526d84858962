"""Gemma 1: embeddings times sqrt(d_model), gains of 1 + weight, gated gelu. https://arxiv.org/abs/2403.08295"""
from pellucid.errors import BadConfig
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import TENSORS, raised
from pellucid.spec import DecoderSpec, Layer, Norm

WEIGHTS = llama.WEIGHTS
GGUF = _gguf.Architecture(name="gemma", tensors=raised(TENSORS))


def spec(c: Config) -> DecoderSpec:
    _parts.causal(c)
    acts = {c.activation(key, default="gelu_pytorch_tanh") for key in ("hidden_act", "hidden_activation") if c(key, default=None)}
    # The released files say "gelu" and were trained with its tanh form: https://github.com/huggingface/transformers/pull/29402
    acts = {"gelu_tanh" if act == "gelu" else act for act in acts} or {"gelu_tanh"}
    if len(acts) > 1:
        raise BadConfig(f"{c.where}: hidden_act and hidden_activation disagree: {', '.join(sorted(acts))}. Remove the wrong one.")
    mlp = _parts.feed_forward(c, act=acts.pop())
    mixer = _parts.attention(c, heads_default=False, d_head=c("head_dim", default=256))
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=mlp)] * c("num_hidden_layers"), tied=True,
                          norm=Norm(eps=c("rms_norm_eps", default=1e-6), offset=1.0), embed_scale=c("hidden_size") ** 0.5)
