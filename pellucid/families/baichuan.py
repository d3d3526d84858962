"""Baichuan 1 and 2: Llama with q, k and v as one matrix; 13B with ALiBi; 2 with unembedding rows of length one. https://arxiv.org/abs/2309.10305

transformers does not have it: modeling_baichuan.py and configuration_baichuan.py of the 7B and 13B repositories are the sources. All share one
model_type, and their code differs; what tells them apart in config.json is what only one of their configuration classes has.
"""
from pellucid.errors import UnsupportedModel
from pellucid.families import _gguf, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PAIRED, TENSORS
from pellucid.spec import Alibi, Attention, DecoderSpec, Layer, Norm, Rope
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if "bias" not in k and not any(f".{x}_proj." in k for x in "qkv")} | {
    "model.layers.{i}.self_attn.W_pack.weight": to(*(f"blocks.{{i}}.attn.{x}.weight" for x in "qkv")),
}
GGUF = _gguf.Architecture(
    name="baichuan", tensors=TENSORS | PAIRED, inert=("rope.dimension_count",), also=("rope.freq_base",),
    reads=_gguf.reads(less=("attention.head_count_kv", "attention.key_length", "rope.freq_base")),
    # Of 40 layers is a 13B, and has ALiBi: src/models/baichuan.cpp
    derive=lambda facts, raw: {"max_position_embeddings": None, "model_max_length": raw["max_position_embeddings"]} if raw["num_hidden_layers"] == 40 else {})


def spec(c: Config) -> DecoderSpec:
    d_model, n_heads, n_vocab = c("hidden_size"), c("num_attention_heads"), c("vocab_size")
    reach, d_head = c("max_position_embeddings", default=None), d_model // n_heads
    c.inert(_from_model_config="says what the file is")
    if (reach is None, d_model) in ((True, 4096), (False, 5120)):
        what = ("a 7B's, which has rope, and there is no max_position_embeddings, as in a 13B" if reach is None else
                "a 13B's, which has ALiBi, and max_position_embeddings a 7B's, which has rope")
        raise UnsupportedModel(f"{c.where}: hidden_size={d_model} is {what}; nothing else in the file says which of the two it is")
    unit = c("z_loss_weight", default=None) is not None or n_vocab == 125_696
    if not unit and n_vocab != 64_000:
        raise UnsupportedModel(f"{c.where}: vocab_size={n_vocab} is neither Baichuan 1's (64,000) nor Baichuan 2's (125,696), and without z_loss_weight, "
                               f"which Baichuan 2 has, nothing says whether the unembedding's rows are scaled to length one")
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, alibi=Alibi() if reach is None else None,
                      rope=None if reach is None else Rope(theta=10_000.0, d_rotary=d_head))
    return DecoderSpec(family=c("model_type"), n_vocab=n_vocab, n_ctx=c("model_max_length") if reach is None else reach, d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=_parts.feed_forward(c)),) * c("num_hidden_layers"), unembed_unit=unit,
                       norm=Norm(eps=c("rms_norm_eps", default=1e-6)), tied=c("tie_word_embeddings", default=False))
