"""MPT: ALiBi in place of positions, LayerNorm and matrices without biases; and what else its training code can build.

https://www.databricks.com/blog/mpt-7b
Facts: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/mpt/modeling_mpt.py, which reads half of the settings, and
https://github.com/mosaicml/llm-foundry (llmfoundry/models: mpt/, layers/attention.py, layers/norm.py), which reads them all.
"""
from typing import Any

from pellucid.errors import UnsupportedModel
from pellucid.families import _gguf, _gguf_derive
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PLAIN, QK_NORMS
from pellucid.spec import Alibi, Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {
    "transformer.wte.weight": "embed.weight", "lm_head.weight": "unembed.weight", "transformer.wpe.weight": "pos_embed.weight"}  # the last without ALiBi
WEIGHTS |= {f"transformer.{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "blocks.{i}.norm_1": "blocks.{i}.attn_norm", "blocks.{i}.norm_2": "blocks.{i}.mlp_norm",
    "blocks.{i}.attn.q_ln": "blocks.{i}.attn.q_norm", "blocks.{i}.attn.k_ln": "blocks.{i}.attn.k_norm",  # where qk_ln says so
    "blocks.{i}.attn.out_proj": "blocks.{i}.attn.o", "norm_f": "final_norm",
    "blocks.{i}.ffn.up_proj": "blocks.{i}.mlp.up", "blocks.{i}.ffn.down_proj": "blocks.{i}.mlp.down",
}.items()}
WEIGHTS |= {f"transformer.blocks.{{i}}.attn.Wqkv.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv")) for p in ("weight", "bias")}
GGUF = _gguf.Architecture(
    name="mpt", tensors=PLAIN | QK_NORMS | {"position_embd.weight": "pos_embed.weight"}, derive=_gguf_derive.mosaic,
    reads={"context_length": "max_seq_len", "embedding_length": "d_model", "block_count": "n_layers", "attention.head_count": "n_heads",
           "attention.layer_norm_epsilon": "layer_norm_epsilon", "vocab_size": "vocab_size"},
    also=("feed_forward_length", "attention.head_count_kv", "attention.clamp_kqv", "attention.max_alibi_bias"))


def spec(c: Config) -> DecoderSpec:
    c.inert(embedding_fraction="scales gradients", emb_pdrop="acts in training only", init_device="says where weights are made",
            init_config="says how training begins", verbose="prints", tokenizer_name="says what the tokenizer was made from")
    a = c.part("attn_config") if c("attn_config", default=None) else Config({})
    a.expect(prefix_lm=False, attn_uses_sequence_id=False, qk_gn=False, rope=False, sliding_window_size=-1)
    a.inert(attn_impl="is how it is computed", **dict.fromkeys(("rope_dail_config", "rope_hf_config", "rope_impl", "rope_theta"), "rope is off"))
    for part in (c, c.part("ffn_config") if c("ffn_config", default=None) else Config({})):
        part.expect(fc_type="torch", ffn_type="mptmlp")
    d_model, n_heads, bias, n_ctx = c("d_model"), c("n_heads"), not c("no_bias", default=True), c("max_seq_len")
    d_head, alibi, clip, qk_ln = d_model // n_heads, a("alibi", default=True), a("clip_qkv", default=None) or None, a("qk_ln", default=False)
    norms: dict[str, Any] = {"low_precision_layernorm": "layer", "layernorm": "layer", "low_precision_rmsnorm": "rms", "rmsnorm": "rms"}
    heads: dict[str, Any] = {"multihead_attention": n_heads, "multiquery_attention": 1, "grouped_query_attention": a("kv_n_heads", default=n_heads)}
    norm_type, attn_type = c("norm_type", default="low_precision_layernorm"), a("attn_type", default="multihead_attention")
    for found, name, known in ((norm_type, "norm_type", norms), (attn_type, "attn_type", heads)):
        if found not in known:
            raise UnsupportedModel(f"{c.where} has a setting this family does not implement: {name}={found!r} (known: {', '.join(known)})")
    n_kv_heads, logit_scale = heads[attn_type], c("logit_scale", default=1.0)
    a.expect(kv_n_heads=n_kv_heads)
    if clip and qk_ln:
        raise UnsupportedModel(f"{c.where} has a setting this family does not implement: clip_qkv={clip!r} with qk_ln=true (only one of the two)")
    norm = Norm(kind=norms[norm_type], bias=bias and norms[norm_type] == "layer", eps=c("layer_norm_epsilon", default=1e-5))
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head, scale=a("softmax_scale", default=d_head ** -0.5),
                      alibi=Alibi(steepness=float(a("alibi_bias_max", default=8))) if alibi else None,
                      clip=clip, qkv_bias=bias, out_bias=bias, qk_norm=norm if qk_ln else None, qk_norm_over="width" if qk_ln else "head")
    mlp = FeedForward(d_ff=c("expansion_ratio", default=4) * d_model, act="gelu", gated=False, bias=bias)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=n_ctx, d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("n_layers"), norm=norm,
                       learned_positions=n_ctx if c("learned_pos_emb", default=True) and not alibi else 0,
                       logit_scale=d_model ** -0.5 if logit_scale == "inv_sqrt_d_model" else logit_scale, tied=c("tie_word_embeddings", default=True))
