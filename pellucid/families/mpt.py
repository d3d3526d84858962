"""MPT: ALiBi in place of positions, LayerNorm and matrices without biases. https://www.databricks.com/blog/mpt-7b

Facts: https://github.com/mosaicml/llm-foundry (llmfoundry/models/mpt) and
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/mpt/modeling_mpt.py
"""
from pellucid.errors import UnsupportedModel
from pellucid.families._config import Config
from pellucid.spec import Alibi, Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {
    "transformer.wte.weight": "embed.weight",
    "transformer.blocks.{i}.norm_1.weight": "blocks.{i}.attn_norm.weight",
    "transformer.blocks.{i}.attn.Wqkv.weight": to(*(f"blocks.{{i}}.attn.{x}.weight" for x in "qkv")),
    "transformer.blocks.{i}.attn.out_proj.weight": "blocks.{i}.attn.o.weight",
    "transformer.blocks.{i}.norm_2.weight": "blocks.{i}.mlp_norm.weight",
    "transformer.blocks.{i}.ffn.up_proj.weight": "blocks.{i}.mlp.up.weight",
    "transformer.blocks.{i}.ffn.down_proj.weight": "blocks.{i}.mlp.down.weight",
    "transformer.norm_f.weight": "final_norm.weight",
    "lm_head.weight": "unembed.weight",
}


def spec(c: Config) -> DecoderSpec:
    # What llm-foundry can do and transformers does not read: no published model has it.
    c.expect(no_bias=True, expansion_ratio=4, logit_scale=None)
    c.inert(learned_pos_emb="ALiBi takes the place of positions", embedding_fraction="scales gradients", emb_pdrop="acts in training only",
            init_device="says where weights are made", init_config="says how training begins", verbose="prints",
            tokenizer_name="says what the tokenizer was made from")
    if (kind := c("norm_type", default="low_precision_layernorm")) not in ("low_precision_layernorm", "layernorm"):
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: norm_type={kind!r} "
                               f"(only 'low_precision_layernorm' and 'layernorm')")
    d_model, n_heads = c("d_model"), c("n_heads")
    d_head = d_model // n_heads
    c("attn_config", default=None)
    a = c.part("attn_config") if c.raw.get("attn_config") else Config({})
    a.expect(alibi=True, attn_type="multihead_attention", qk_ln=False, prefix_lm=False, attn_uses_sequence_id=False)
    a.inert(attn_impl="chooses how transformers computes, not what")
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=a("softmax_scale", default=d_head ** -0.5),
                      alibi=Alibi(steepness=float(a("alibi_bias_max", default=8))), clip=a("clip_qkv", default=None) or None)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=c("max_seq_len"), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=FeedForward(d_ff=4 * d_model, act="gelu", gated=False)),) * c("n_layers"),
                       norm=Norm(kind="layer", eps=c("layer_norm_epsilon", default=1e-5)), tied=c("tie_word_embeddings", default=True))
