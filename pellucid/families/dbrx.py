"""DBRX: q, k and v as one clipped matrix, LayerNorm without bias, 16 experts side by side in one tensor. https://github.com/databricks/dbrx"""
from pellucid.errors import BadConfig
from pellucid.families import _gguf, _parts
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import ENDS, EXPERTS, QKV, block
from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {
    "transformer.wte.weight": "embed.weight",
    "transformer.blocks.{i}.norm_attn_norm.norm_1.weight": "blocks.{i}.attn_norm.weight",
    "transformer.blocks.{i}.norm_attn_norm.attn.Wqkv.weight": to(*(f"blocks.{{i}}.attn.{x}.weight" for x in "qkv")),
    "transformer.blocks.{i}.norm_attn_norm.attn.out_proj.weight": "blocks.{i}.attn.o.weight",
    "transformer.blocks.{i}.norm_attn_norm.norm_2.weight": "blocks.{i}.mlp_norm.weight",
    "transformer.blocks.{i}.ffn.router.layer.weight": "blocks.{i}.mlp.router.weight",
    "transformer.blocks.{i}.ffn.experts.mlp.w1": to("blocks.{i}.mlp.experts.{e}.gate.weight", all_experts="rows"),
    "transformer.blocks.{i}.ffn.experts.mlp.v1": to("blocks.{i}.mlp.experts.{e}.up.weight", all_experts="rows"),
    "transformer.blocks.{i}.ffn.experts.mlp.w2": to("blocks.{i}.mlp.experts.{e}.down.weight", transpose=True, all_experts="rows"),
    "transformer.norm_f.weight": "final_norm.weight",
    "lm_head.weight": "unembed.weight",
}
GGUF = _gguf.Architecture(
    name="dbrx", tensors=ENDS | QKV | EXPERTS | block({"attn_norm": "attn_norm", "attn_output": "attn.o", "attn_output_norm": "mlp_norm"}, "weight"),
    reads={"context_length": "max_seq_len", "embedding_length": "d_model", "block_count": "n_layers", "attention.head_count": "n_heads",
           "vocab_size": "vocab_size"},
    derive=lambda facts, raw: {
        "attn_config": {"kv_n_heads": facts.take("attention.head_count_kv"), "clip_qkv": facts.take("attention.clamp_kqv"),
                        "rope_theta": facts.take("rope.freq_base", _gguf.THETA)},
        "ffn_config": {"ffn_hidden_size": facts.take("feed_forward_length"), "moe_num_experts": facts.take("expert_count"),
                       "moe_top_k": facts.take("expert_used_count")}},
    also=("attention.head_count_kv", "attention.clamp_kqv", "rope.freq_base", "feed_forward_length", "expert_count", "expert_used_count",
          "attention.layer_norm_epsilon"))


def spec(c: Config) -> DecoderSpec:
    d_model, n_heads, attn, ffn = c("d_model"), c("n_heads"), c.part("attn_config"), c.part("ffn_config")
    d_head, n_kv_heads = d_model // n_heads, attn("kv_n_heads", default=1)
    c.expect(tie_word_embeddings=False, num_key_value_heads=n_kv_heads)
    ffn.expect(hidden_size=d_model)
    ffn.inert(moe_jitter_eps="acts in training only", moe_loss_weight="acts in training only")
    # The released files keep the base here; transformers 5 reads it at the top alone, and writes its default there.
    theta = attn("rope_theta", default=None)
    rope = _parts.whole_rope(c, d_head, theta=theta or 10_000.0)
    if theta is not None and rope.theta != theta:
        raise BadConfig(f"{c.where}: attn_config says rope_theta={theta:g}, and the file says {rope.theta:g} outside of it. Remove the wrong one.")
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head, scale=d_head ** -0.5, clip=attn("clip_qkv", default=None), rope=rope)
    act = Config({"name": "silu"} | ffn("ffn_act_fn", default={}), where=f"ffn_act_fn of {ffn.where}")
    each = FeedForward(d_ff=ffn("ffn_hidden_size", default=3584), act=act.activation("name"))
    act.finish()
    order = ffn.nullable("moe_normalize_expert_weights", absent=1.0)  # the norm by which the shares are divided
    ffn.expect(moe_normalize_expert_weights=1.0)
    mlp = Experts(n_experts=ffn("moe_num_experts", default=4), n_active=ffn("moe_top_k", default=1), renormalize=order is not None, each=each)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size", default=32000), n_ctx=c("max_seq_len", default=2048), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("n_layers"), norm=Norm(kind="layer", eps=1e-5))
