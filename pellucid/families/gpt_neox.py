"""GPT-NeoX and Pythia: parallel block with two norms; q, k and v stored head by head. https://arxiv.org/abs/2204.06745"""
from pellucid.families import _buffers
from pellucid.families._config import Config
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {"gpt_neox.embed_in.weight": "embed.weight", "embed_out.weight": "unembed.weight"}
for p in ("weight", "bias"):
    WEIGHTS |= {
        f"gpt_neox.layers.{{i}}.input_layernorm.{p}": f"blocks.{{i}}.attn_norm.{p}",
        f"gpt_neox.layers.{{i}}.attention.query_key_value.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv"), stacked="by_kv_head"),
        f"gpt_neox.layers.{{i}}.attention.dense.{p}": f"blocks.{{i}}.attn.o.{p}",
        f"gpt_neox.layers.{{i}}.post_attention_layernorm.{p}": f"blocks.{{i}}.mlp_norm.{p}",
        f"gpt_neox.layers.{{i}}.mlp.dense_h_to_4h.{p}": f"blocks.{{i}}.mlp.up.{p}",
        f"gpt_neox.layers.{{i}}.mlp.dense_4h_to_h.{p}": f"blocks.{{i}}.mlp.down.{p}",
        f"gpt_neox.final_layer_norm.{p}": f"final_norm.{p}",
    }
WEIGHTS |= _buffers.MASKS | _buffers.ROTARY


def spec(c: Config) -> DecoderSpec:
    d_model, n_heads, bias = c("hidden_size"), c("num_attention_heads"), c("attention_bias", default=True)
    d_head = d_model // n_heads
    rope = c.rope(d_head, fraction=0.25, theta_key="rotary_emb_base", fraction_key="rotary_pct")
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, rope=rope, qkv_bias=bias, out_bias=bias)
    mlp = FeedForward(d_ff=c("intermediate_size"), act=c.activation("hidden_act", default="gelu"), gated=False, bias=True)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=c("max_position_embeddings"), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("num_hidden_layers"),
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_eps", default=1e-5)),
                       parallel=c("use_parallel_residual", default=True), tied=c("tie_word_embeddings", default=False))
