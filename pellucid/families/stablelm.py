"""StableLM: LayerNorm, a quarter of each head rotates; the 12B runs both halves of a block at once. https://arxiv.org/abs/2402.17834"""
from pellucid.families import _gguf, _gguf_derive, _parts, llama
from pellucid.families._config import Config
from pellucid.families._gguf_tensors import FINAL_BIAS, TENSORS, block
from pellucid.spec import DecoderSpec, Layer, Norm
from pellucid.weights.names import Rule, to

WEIGHTS: dict[str, Rule] = {k: v for k, v in llama.WEIGHTS.items() if ".mlp." not in k or k.endswith(".weight")} | {
    "model.layers.{i}.input_layernorm.bias": "blocks.{i}.attn_norm.bias",
    "model.layers.{i}.post_attention_layernorm.bias": "blocks.{i}.mlp_norm.bias",
    "model.norm.bias": "final_norm.bias",
    **{f"model.layers.{{i}}.self_attn.{x}_layernorm.norms.{{h}}.weight":
       to(f"blocks.{{i}}.attn.{x}_norm.weight", index=True) for x in "qk"},  # where qk_layernorm says so: the 12B
}

GGUF = _gguf.Architecture(name="stablelm", tensors=TENSORS | FINAL_BIAS | block({f"attn_{x}_norm": f"attn.{x}_norm" for x in "qk"}, "weight"),
                          reads=_gguf.reads(eps="layer_norm_eps"), derive=lambda facts, raw: _gguf_derive.partial(facts, raw) | {
                              "use_parallel_residual": not facts.has("blk.0.ffn_norm.weight")},  # the converter's own key says true for all
                          also=("rope.dimension_count", "use_parallel_residual"),
                          inert=("use_parallel_residual",),
                          present={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"})


def spec(c: Config) -> DecoderSpec:
    c.expect(rotary_scaling_factor=1.0, use_norm_bias=False)  # the second: of the norms of single heads, which never have one
    eps, parallel = c("layer_norm_eps", default=1e-5), c("use_parallel_residual", default=False)
    qk_norm = Norm(kind="layer", eps=eps) if c("qk_layernorm", default=False) else None
    mixer = _parts.attention(c, fraction=0.25, heads_default=False, qkv_bias=c("use_qkv_bias", default=False), qk_norm=qk_norm,
                             qk_norm_over="each_head")
    return _parts.decoder(c, [Layer(mixer=mixer, mlp=_parts.feed_forward(c))] * c("num_hidden_layers"),
                          norm=Norm(kind="layer", bias=True, eps=eps), parallel=parallel, shared_norm=parallel)
