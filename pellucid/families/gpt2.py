"""GPT-2: learned positions, LayerNorm, and Conv1D weights stored (in, out).

https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/gpt2/modeling_gpt2.py
"""
from pellucid.families import _buffers
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {
    "[transformer.]wte.weight": "embed.weight",  # OpenAI's own repositories were saved without the prefix
    "[transformer.]wpe.weight": "pos_embed.weight",
    "lm_head.weight": "unembed.weight",
}
for p in ("weight", "bias"):
    WEIGHTS |= {
        f"[transformer.]h.{{i}}.ln_1.{p}": f"blocks.{{i}}.attn_norm.{p}",
        f"[transformer.]h.{{i}}.attn.c_attn.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv"), transpose=p == "weight"),
        f"[transformer.]h.{{i}}.attn.c_proj.{p}": to(f"blocks.{{i}}.attn.o.{p}", transpose=p == "weight"),
        f"[transformer.]h.{{i}}.ln_2.{p}": f"blocks.{{i}}.mlp_norm.{p}",
        f"[transformer.]h.{{i}}.mlp.c_fc.{p}": to(f"blocks.{{i}}.mlp.up.{p}", transpose=p == "weight"),
        f"[transformer.]h.{{i}}.mlp.c_proj.{p}": to(f"blocks.{{i}}.mlp.down.{p}", transpose=p == "weight"),
        f"[transformer.]ln_f.{p}": f"final_norm.{p}",
    }
WEIGHTS |= _buffers.MASKS


def spec(c: Config) -> DecoderSpec:
    c.expect(add_cross_attention=False)
    c.inert(reorder_and_upcast_attn="orders the same sum differently; scores are float32 here in any case",
            output_past="an old name of use_cache", predict_special_tokens="generation of 2019, read by nothing since")
    d_model, n_heads, n_ctx = c("n_embd"), c("n_head"), c("n_positions", "n_ctx")
    d_head = d_model // n_heads
    mlp = FeedForward(d_ff=c("n_inner", default=4 * d_model), act=c.activation("activation_function", default="gelu_new"), gated=False, bias=True)
    scale = d_head ** -0.5 if c("scale_attn_weights", default=True) else 1.0
    by_depth = c("scale_attn_by_inverse_layer_idx", default=False)
    layers = tuple(Layer(mixer=Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=scale / (i + 1) if by_depth else scale,
                                         qkv_bias=True, out_bias=True), mlp=mlp) for i in range(c("n_layer")))
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=n_ctx, d_model=d_model, layers=layers, learned_positions=n_ctx,
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_epsilon", default=1e-5)), tied=c("tie_word_embeddings", default=True))
