"""The first GPT: LayerNorm on the stream after each sublayer and none at the end, Conv1D weights stored (in, out).

https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf
Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/openai/modeling_openai.py
"""
from pellucid.errors import UnsupportedModel
from pellucid.families import gpt2
from pellucid.families._config import Config
from pellucid.spec import Activation, Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule

WEIGHTS: dict[str, Rule] = {  # OpenAI's own repository was saved without the `transformer.` prefix
    "[transformer.]tokens_embed.weight": "embed.weight",
    "[transformer.]positions_embed.weight": "pos_embed.weight",
} | {k: v for k, v in gpt2.WEIGHTS.items() if not any(part in k for part in (".]wte.", ".]wpe.", ".]ln_f."))}


def spec(c: Config) -> DecoderSpec:
    c.expect(n_special=0)  # rows the table once grew by
    c.inert(predict_special_tokens="generation of 2019, read by nothing since")
    d_model, n_heads, n_ctx = c("n_embd"), c("n_head"), c("n_positions", "n_ctx")
    # A table of its own, in which "gelu" is the tanh approximation: modeling_openai.py, ACT_FNS.
    known: dict[str, Activation] = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
    if (act := c("afn", default="gelu")) not in known:
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: afn={act!r} (known: {', '.join(known)})")
    d_head = d_model // n_heads
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, qkv_bias=True, out_bias=True)
    return DecoderSpec(family="openai_gpt", n_vocab=c("vocab_size"), n_ctx=n_ctx, d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=FeedForward(d_ff=4 * d_model, act=known[act], gated=False, bias=True)),) * c("n_layer"),
                       learned_positions=n_ctx, norm=Norm(kind="layer", bias=True, eps=c("layer_norm_epsilon", default=1e-5)),
                       norm_in=False, norm_stream="after", final_norm=False, tied=c("tie_word_embeddings", default=True))
