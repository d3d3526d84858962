"""GPT-NeoX and Pythia: parallel block with two norms; q, k and v stored head by head. https://arxiv.org/abs/2204.06745"""
from pellucid.families import _buffers, _gguf, _gguf_derive
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import PLAIN
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm
from pellucid.weights.names import Rule, old, to

WEIGHTS: dict[str, Rule] = {
    "gpt_neox.embed_in.weight": "embed.weight",
    "embed_out.weight": "unembed.weight",
    "lm_head.weight": old("unembed.weight"),  # what transformers 5 calls it in memory, and tools that save from there
}
WEIGHTS |= {f"gpt_neox.{theirs}.{p}": f"{ours}.{p}" for p in ("weight", "bias") for theirs, ours in {
    "layers.{i}.input_layernorm": "blocks.{i}.attn_norm",
    "layers.{i}.attention.dense": "blocks.{i}.attn.o",
    "layers.{i}.post_attention_layernorm": "blocks.{i}.mlp_norm",
    "layers.{i}.mlp.dense_h_to_4h": "blocks.{i}.mlp.up",
    "layers.{i}.mlp.dense_4h_to_h": "blocks.{i}.mlp.down",
    "final_layer_norm": "final_norm",
}.items()}
WEIGHTS |= {f"gpt_neox.layers.{{i}}.attention.query_key_value.{p}": to(*(f"blocks.{{i}}.attn.{x}.{p}" for x in "qkv"), stacked="by_kv_head")
            for p in ("weight", "bias")}
WEIGHTS |= _buffers.MASKS | _buffers.ROTARY
GGUF = _gguf.Architecture(
    name="gptneox", tensors=PLAIN, also=("rope.dimension_count",),
    reads=_gguf.reads({"rope.freq_base": "rotary_emb_base", "use_parallel_residual": "use_parallel_residual"}, eps="layer_norm_eps",
                      less=("attention.head_count_kv", "attention.key_length")),
    derive=lambda facts, raw: {"rotary_pct": _gguf_derive.turning(facts, raw), "attention_bias": facts.has("blk.0.attn_qkv.bias")})


def spec(c: Config) -> DecoderSpec:
    d_model, n_heads, bias = c("hidden_size"), c("num_attention_heads"), c("attention_bias", default=True)
    d_head = d_model // n_heads
    # transformers 4.50 wrote the newer names beside these two; alone they are read by nobody.
    c.expect(rope_theta=c("rotary_emb_base", default=10_000), partial_rotary_factor=c("rotary_pct", default=0.25))
    rope = c.rope(d_head, fraction=0.25, theta_key="rotary_emb_base", fraction_key="rotary_pct")
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, scale=d_head ** -0.5, rope=rope, qkv_bias=bias, out_bias=bias)
    mlp = FeedForward(d_ff=c("intermediate_size"), act=c.activation("hidden_act", default="gelu"), gated=False, bias=True)
    return DecoderSpec(family=c("model_type"), n_vocab=c("vocab_size"), n_ctx=c("max_position_embeddings"), d_model=d_model,
                       layers=(Layer(mixer=mixer, mlp=mlp),) * c("num_hidden_layers"),
                       norm=Norm(kind="layer", bias=True, eps=c("layer_norm_eps", default=1e-5)),
                       parallel=c("use_parallel_residual", default=True), tied=c("tie_word_embeddings", default=False))
