"""GPT-2: learned positions, LayerNorm, and Conv1D weights stored (in, out).

https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/gpt2/modeling_gpt2.py
"""
from pellucid.families import _buffers, _gguf
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PLAIN
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {
    "[transformer.]wte.weight": "embed.weight",  # OpenAI's own repositories were saved without the prefix
    "[transformer.]wpe.weight": "pos_embed.weight",
    "lm_head.weight": "unembed.weight",
}
WEIGHTS |= {f"[transformer.]{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "h.{i}.ln_1": "blocks.{i}.attn_norm",
    "h.{i}.ln_2": "blocks.{i}.mlp_norm",
    "ln_f": "final_norm",
}.items()}
WEIGHTS |= {f"[transformer.]h.{{i}}.{theirs}.{p}": to(*(f"blocks.{{i}}.{x}.{p}" for x in ours), transpose=p == "weight")
            for p in ("weight", "bias") for theirs, ours in {
    "attn.c_attn": ("attn.q", "attn.k", "attn.v"),
    "attn.c_proj": ("attn.o",),
    "mlp.c_fc": ("mlp.up",),
    "mlp.c_proj": ("mlp.down",),
}.items()}
WEIGHTS |= _buffers.MASKS
GGUF = _gguf.Architecture(name="gpt2", tensors=PLAIN | {"position_embd.weight": "pos_embed.weight"}, reads={
    "context_length": "n_positions", "embedding_length": "n_embd", "block_count": "n_layer", "feed_forward_length": "n_inner",
    "attention.head_count": "n_head", "attention.layer_norm_epsilon": "layer_norm_epsilon", "vocab_size": "vocab_size"})


def spec(c: Config) -> DecoderSpec:
    c.expect(add_cross_attention=False, n_special=0)  # n_special: rows the table once grew by, in files of 2019
    c.inert(reorder_and_upcast_attn="orders the same sum differently; scores are float32 here in any case",
            output_past="an old name of use_cache", predict_special_tokens="generation of 2019, read by nothing since")
    d_model, n_heads, n_ctx = c("n_embd"), c("n_head"), c("n_positions", "n_ctx")
    d_head = d_model // n_heads
    scale = d_head ** -0.5 if c("scale_attn_weights", default=True) else 1.0
    by_depth = c("scale_attn_by_inverse_layer_idx", default=False)
    mixers = [Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=scale / (i + 1) if by_depth else scale,
                        qkv_bias=True, out_bias=True) for i in range(c("n_layer"))]
    act = c.activation("activation_function", default="gelu_new")
    mlp = FeedForward(d_ff=c("n_inner", default=4 * d_model), act=act, gated=False, bias=True)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=n_ctx, d_model=d_model,
                       layers=tuple(Layer(mixer=mixer, mlp=mlp) for mixer in mixers), learned_positions=n_ctx,
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_epsilon", default=1e-5)),
                       tied=c("tie_word_embeddings", default=True))
