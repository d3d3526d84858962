"""StarCoder, SantaCoder and Granite Code 20B and 34B: GPT-2 with one key/value head for all queries. https://arxiv.org/abs/2305.06161

Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/gpt_bigcode/modeling_gpt_bigcode.py
"""
from pellucid.families import _buffers, _gguf, gpt2
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {
    "transformer.wte.weight": "embed.weight",
    "transformer.wpe.weight": "pos_embed.weight",
    "lm_head.weight": "unembed.weight",
}
WEIGHTS |= {f"transformer.{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "h.{i}.ln_1": "blocks.{i}.attn_norm",
    "h.{i}.attn.c_proj": "blocks.{i}.attn.o",
    "h.{i}.ln_2": "blocks.{i}.mlp_norm",
    "h.{i}.mlp.c_fc": "blocks.{i}.mlp.up",
    "h.{i}.mlp.c_proj": "blocks.{i}.mlp.down",
    "ln_f": "final_norm",
}.items()}
# With one key/value head this is all of q, then k, then v; with as many as queries have, q, k and v of each head in turn.
WEIGHTS |= {f"transformer.h.{{i}}.attn.c_attn.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv"), stacked="by_kv_head")
            for p in ("weight", "bias")}
WEIGHTS |= _buffers.MASKS
GGUF = _gguf.Architecture(name="starcoder", tensors=gpt2.GGUF.tensors, reads=gpt2.GGUF.reads, also=("attention.head_count_kv",),
                          derive=lambda facts, raw: {"multi_query": facts.take("attention.head_count_kv", raw["n_head"]) != raw["n_head"]})


def spec(c: Config) -> DecoderSpec:
    c.expect(add_cross_attention=False)
    c.inert(num_key_value_heads="multi_query says it",
            **dict.fromkeys(("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"), "scores are float32 here in any case"),
            **dict.fromkeys(("inference_runner", "max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache",
                             "validate_runner_input"), "of an inference runner of 2023"))
    d_model, n_heads, n_ctx = c("n_embd"), c("n_head"), c("n_positions")
    d_head = d_model // n_heads
    mixer = Attention(n_heads=n_heads, n_kv_heads=1 if c("multi_query", default=True) else n_heads, d_head=d_head,
                      scale=d_head ** -0.5 if c("scale_attn_weights", default=True) else 1.0, qkv_bias=True, out_bias=True)
    mlp = FeedForward(d_ff=c("n_inner", default=4 * d_model), act=c.activation("activation_function", default="gelu_pytorch_tanh"),
                      gated=False, bias=True)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=n_ctx, d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("n_layer"), learned_positions=n_ctx,
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_epsilon", default=1e-5)),
                       tied=c("tie_word_embeddings", default=True))
